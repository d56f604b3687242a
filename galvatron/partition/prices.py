"""Prices for the solver: what an op, a conversion or a piece of state costs on one axis of a machine, in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod

from galvatron.ir.collectives import Conversion, conversion
from galvatron.ir.factors import FactorTable, OpFactor
from galvatron.ir.graph import Graph
from galvatron.ir.layout import BROADCAST, Axis, Shard
from galvatron.ir.ops.notation import DimNames
from galvatron.ir.types import DTYPE_BYTES, evaluate, simplify_dim
from galvatron.machine import Machine
from galvatron.machine.kernel import OPTIMIZER_PASSES
from galvatron.machine.operators import LocalTensor, op_kernels
from galvatron.partition.boundary import Border
from galvatron.partition.modes import RING, AxisState, Mode, Split

OP_S = 1e-9
"""A tie-break: of two equal plans, the one with fewer conversions."""


class Prices:
    """Prices on one axis, given how many ways the axes solved before cut each op's factors and how far each value's
    bytes."""

    def __init__(
        self,
        graph: Graph,
        table: FactorTable,
        axis: Axis,
        machine: Machine,
        batch: int,
        border: Border,
        taken: list[dict[OpFactor, int]],
        value_shares: dict[str, float],
    ) -> None:
        self._graph = graph
        self._table = table
        self._axis = axis
        self._machine = machine
        self._differentiable = border.differentiable
        self._master_scale = border.master_scale
        self._taken = taken
        self._state = {v.name for v in graph.state}
        self._shapes = {n: tuple(evaluate(d, batch) for d in v.type.shape) for n, v in graph.values.items()}
        self._sizes = {
            i: {n: evaluate(size, batch) for n, size in dims.sizes.items()}
            for i, dims in table.dims.items()
            if dims is not None
        }
        self._bytes = {
            n: prod(self._shapes[n]) * DTYPE_BYTES[v.type.dtype] * value_shares.get(n, 1.0)
            for n, v in graph.values.items()
        }

    def op_s(self, index: int, mode: Mode) -> float:
        """This rank's part of an op in a mode, forward and backward."""
        op, dims = self._graph.ops[index], self._table.dims[index]
        sizes = self._local_sizes(index, mode)
        names = (*op.operands, *(v.name for v in op.results))
        places = (None,) * len(names) if dims is None else (*dims.operands, *dims.results)
        tensors = [
            LocalTensor(self._graph.values[n].type.dtype, _local_shape(self._shapes[n], place, sizes))
            for n, place in zip(names, places, strict=True)
        ]
        kernels = op_kernels(op, dims, sizes, tensors, self._differentiable)
        return sum(self._machine.kernel_s(kernel) for kernel in kernels)

    def _local_sizes(self, index: int, mode: Mode) -> dict[str, float]:
        """The sizes of an op's named dimensions on this rank."""
        sizes: dict[str, float] = dict(self._sizes.get(index, {}))
        own = [(mode.factor, self._axis.size)] if mode.factor is not None else []
        for factor, ways in (*self._taken[index].items(), *own):
            sizes[_QUERIES if factor.name == RING else factor.name] /= ways
        return sizes

    def state_s(self, name: str, state: AxisState) -> float:
        """The optimizer's traffic on this rank's part, and the sum of its gradient over the axis.

        Gradients travel together, so that none has a message's latency to itself.
        """
        if name not in self._differentiable:
            return 0.0
        share = 1 / self._axis.size if isinstance(state, Split) else 1.0
        size = self._bytes[name] * self._master_scale
        price = self._machine.moved_s(OPTIMIZER_PASSES * size * share)
        if state != BROADCAST:
            return price
        return price + self._collective_s("all_reduce", size) - self._collective_s("all_reduce", 0.0)

    def conversion_s(self, name: str, source: AxisState, target: AxisState) -> float:
        """Infinite where no op converts: for padded shards, and for parameters, whose shards stay where they are."""
        if name in self._state and isinstance(source, Split):
            return float("inf")
        row = _row(source, target)
        if row is None:
            return float("inf")
        # Of what is sharded before and after, no rank has more than a shard.
        payload_bytes = self._bytes[name] / (self._axis.size if row.source == row.target else 1)
        price = OP_S + self._collective_s(row.forward, payload_bytes)
        return price + (self._collective_s(row.backward, payload_bytes) if name in self._differentiable else 0.0)

    def _collective_s(self, kind: str | None, payload_bytes: float) -> float:
        return 0.0 if kind is None else self._machine.collective_s(kind, payload_bytes, self._axis)


_QUERIES = "q"
"""What ring attention shares out of attention's dimensions: every rank's queries meet all keys, turn by turn."""


def _local_shape(
    whole: tuple[int, ...], named: tuple[DimNames, ...] | None, sizes: Mapping[str, float]
) -> tuple[float, ...]:
    """What a rank has of a tensor: the named part of each dimension, and the whole of one without names."""
    if named is None:
        return whole
    return tuple(prod(sizes[n] for n in names) if names else size for names, size in zip(named, whole, strict=True))


@lru_cache(maxsize=1 << 12)
def _row(source: AxisState, target: AxisState) -> Conversion | None:
    """The conversion table's row for two states; the numbers in the placements do not matter to it."""
    return conversion(
        *(
            Shard(s.dim, simplify_dim(s.inner * s.size), s.padded, s.folded) if isinstance(s, Split) else s
            for s in (source, target)
        )
    )
