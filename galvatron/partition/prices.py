"""Prices for the solver: what an op, a conversion or a piece of state costs on one axis of a machine, in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import inf, prod

from galvatron.ir.collectives import CONVERSIONS, Conversion, conversion
from galvatron.ir.factors import FactorTable, OpFactor
from galvatron.ir.graph import Graph
from galvatron.ir.layout import BROADCAST, Axis, Shard
from galvatron.ir.ops.notation import DimNames
from galvatron.ir.types import BATCH, DTYPE_BYTES, evaluate, simplify_dim
from galvatron.ir.update_rule import ADAMW
from galvatron.machine import Machine
from galvatron.machine.operators import LocalTensor, op_kernels
from galvatron.partition.boundary import Border
from galvatron.partition.choosing import Steps
from galvatron.partition.modes import RING, AxisState, Mode, Split

OP_S = 1e-9
"""A tie-break: of two equal plans, the one with fewer conversions."""


class ClassPrices:
    """Prices of a class with so many samples of the whole batch, on whatever axes."""

    def __init__(self, graph: Graph, table: FactorTable, machine: Machine, samples: int, border: Border) -> None:
        self.machine, self.border = machine, border
        self.state = {v.name for v in graph.state}
        self._graph, self._table = graph, table
        self._shapes = {n: tuple(evaluate(d, samples) for d in v.type.shape) for n, v in graph.values.items()}
        self._sizes = {
            i: {n: evaluate(size, samples) for n, size in dims.sizes.items()}
            for i, dims in table.dims.items()
            if dims is not None
        }
        self._op_s: dict[tuple[int, Ways, bool], float] = {}
        self.bytes = {n: prod(self._shapes[n]) * DTYPE_BYTES[v.type.dtype] for n, v in graph.values.items()}

    def op_s(self, index: int, ways: Ways, *, routed: bool = False) -> float:
        """A rank's part of an op, forward and backward, where its named dimensions are shared out so many ways; with
        rows that are `routed` as in `Mode`."""
        key = index, ways, routed
        if key not in self._op_s:
            self._op_s[key] = self._kernels_s(index, dict(ways), routed)
        return self._op_s[key]

    def rows_of(self, index: int) -> str:
        """The name of the dimension of an op that is the batch, and what it has of each sample."""
        return next(factor.name for factor in self._table.op_factors(index) if factor.size == BATCH)

    def _kernels_s(self, index: int, ways: Mapping[str, int], routed: bool) -> float:
        op, dims = self._graph.ops[index], self._table.dims[index]
        if routed:
            op = replace(op, kwargs=(*op.kwargs, ("routed", True)))
        sizes = {name: size / ways.get(name, 1) for name, size in self._sizes.get(index, {}).items()}
        names = (*op.operands, *(v.name for v in op.results))
        places = (None,) * len(names) if dims is None else (*dims.operands, *dims.results)
        tensors = [
            LocalTensor(self._graph.values[n].type.dtype, _local_shape(self._shapes[n], place, sizes))
            for n, place in zip(names, places, strict=True)
        ]
        kernels = op_kernels(op, dims, sizes, tensors, self.border.differentiable)
        return sum(self.machine.kernel_s(kernel) for kernel in kernels)


Ways = tuple[tuple[str, int], ...]
"""By named dimension of an op, how many ways it is shared out; sorted."""


class Prices:
    """Prices on one axis.

    Args:
        taken: by op, how many ways the axes solved before share out its factors.
        cut: how many ways they share out values.
    """

    def __init__(
        self, of: ClassPrices, axis: Axis, taken: Sequence[Mapping[OpFactor, int]], cut: Mapping[str, int]
    ) -> None:
        self._of, self._axis, self._taken = of, axis, taken
        self._machine, self._differentiable = of.machine, of.border.differentiable
        self._bytes = {name: size / cut.get(name, 1) for name, size in of.bytes.items()}
        self._kinds: dict[tuple[float, bool], tuple[float, ...]] = {}

    def op_s(self, index: int, mode: Mode) -> float:
        """This rank's part of an op in a mode, forward and backward."""
        shared: dict[str, int] = {}
        own = ((mode.factor, self._axis.size),) if mode.factor is not None else ()
        for factor, ways in (*self._taken[index].items(), *own):
            name = _QUERIES if factor.name == RING else factor.name
            shared[name] = shared.get(name, 1) * ways
        if mode.routed:  # of the rows that choose a matrix as many come as others leave
            rows = self._of.rows_of(index)
            shared[rows] = shared.get(rows, 1) * self._axis.size
        return self._of.op_s(index, tuple(sorted(shared.items())), routed=mode.routed)

    def state_s(self, name: str, state: AxisState) -> float:
        """An optimizer's traffic on this rank's part, and the sum of its gradient over the axis.

        Gradients travel together, so that none has a message's latency to itself.
        """
        if name not in self._differentiable:
            return 0.0
        share = 1 / self._axis.size if isinstance(state, Split) else 1.0
        size = self._bytes[name] * self._of.border.master_scale
        price = self._machine.moved_s(ADAMW.passes * size * share)
        if state != BROADCAST:
            return price
        return price + self._collective_s("all_reduce", size) - self._collective_s("all_reduce", 0.0)

    def steps_s(self, name: str, steps: Steps) -> tuple[float, ...]:
        """The conversions of a value; infinite where no op converts: for padded shards, and for parameters, whose
        shards stay where they are."""
        key = self._bytes[name], name in self._differentiable
        if key not in self._kinds:
            self._kinds[key] = (0.0, inf, *(self._conversion_s(row, *key) for row in CONVERSIONS))
        prices = self._kinds[key]
        return tuple([prices[kind] for kind in _kinds(steps, name in self._of.state)])

    def _conversion_s(self, row: Conversion, size_bytes: float, differentiable: bool) -> float:
        # Of what is sharded before and after, no rank has more than a shard.
        both = isinstance(row.source, Shard) and isinstance(row.target, Shard)
        payload_bytes = size_bytes / (self._axis.size if both else 1)
        price = OP_S + self._collective_s(row.forward, payload_bytes)
        return price + (self._collective_s(row.backward, payload_bytes) if differentiable else 0.0)

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


@lru_cache(maxsize=1 << 14)
def _kinds(steps: Steps, is_state: bool) -> tuple[int, ...]:
    """By step: 0 where there is nothing to do, 1 where no op converts, else 2 and the number of the row of the
    conversion table."""
    rows = {id(row): number for number, row in enumerate(CONVERSIONS)}
    kinds: list[int] = []
    for source, target in steps.pairs:
        row = None if is_state and isinstance(source, Split) else _row(source, target)
        kinds.append(0 if source == target else 1 if row is None else 2 + rows[id(row)])
    return tuple(kinds)


def _row(source: AxisState, target: AxisState) -> Conversion | None:
    """The conversion table's row for two states; the numbers in the placements do not matter to it."""
    return conversion(
        *(
            Shard(s.dim, simplify_dim(s.inner * s.size), s.padded, s.folded, s.by) if isinstance(s, Split) else s
            for s in (source, target)
        )
    )
