"""Prices for the solver: what an op, a conversion or a piece of state costs on one axis of a cluster, in seconds."""

from __future__ import annotations

from galvatron.ir.cluster import Cluster
from galvatron.ir.graph import Graph
from galvatron.ir.layout import BROADCAST, Axis, Shard
from galvatron.ir.ops.table import operator_of
from galvatron.ir.types import DTYPE_BYTES, evaluate, simplify_dim
from galvatron.passes.costs.state import OPTIMIZER_PASSES
from galvatron.passes.sharding.boundary import Border
from galvatron.passes.sharding.conversion import Conversion, conversion
from galvatron.passes.sharding.factors import FactorTable
from galvatron.passes.sharding.modes import Split, State

BACKWARD_WORK = 2
"""A backward pass does the forward's work once per differentiable operand of a product, and reads twice as much."""

OP_S = 1e-9
"""A tie-break: of two equal plans, the one with fewer conversions."""


class Prices:
    """Prices on one axis, given how far each op's work and each value's bytes are shrunk by the axes solved before."""

    def __init__(
        self,
        graph: Graph,
        table: FactorTable,
        axis: Axis,
        cluster: Cluster,
        batch: int,
        border: Border,
        work_shares: list[float],
        value_shares: dict[str, float],
    ) -> None:
        self._graph = graph
        self._axis = axis
        self._cluster = cluster
        self._differentiable = border.differentiable
        self._master_scale = border.master_scale
        self._state = {v.name for v in graph.state}
        self._bytes = {
            n: evaluate(v.type.numel, batch) * DTYPE_BYTES[v.type.dtype] * value_shares.get(n, 1.0)
            for n, v in graph.values.items()
        }
        self._work = [self._op_s(i, table, batch) * share for i, share in enumerate(work_shares)]

    def _op_s(self, index: int, table: FactorTable, batch: int) -> float:
        op = self._graph.ops[index]
        operator = operator_of(op)
        if operator.free:
            return 0.0
        device = self._cluster.device
        moved = sum(self._bytes[n] for n in (*op.operands, *(v.name for v in op.results)))
        flop = 0.0
        dims = table.dims[index]
        if dims is not None and (len(dims.products) > 1 and dims.sizes or operator.dense):
            flop = 2.0
            for size in dims.sizes.values():
                flop *= evaluate(size, batch)
            if not set(dims.sizes) - {n for tensor in dims.results for names in tensor for n in names}:
                flop /= 2
        rate = device.flop_per_s(op.results[0].type.dtype) if op.results[0].type.is_floating else float("inf")
        passes = 1 + BACKWARD_WORK * any(v.name in self._differentiable for v in op.results)
        return passes * max(flop / rate, moved / device.memory_bytes_per_s)

    def op_s(self, index: int) -> float:
        return self._work[index]

    def state_s(self, name: str, state: State) -> float:
        """The optimizer's traffic on this rank's part, and the sum of its gradient over the axis.

        Gradients travel together, so that none has a message's latency to itself.
        """
        if name not in self._differentiable:
            return 0.0
        share = 1 / self._axis.size if isinstance(state, Split) else 1.0
        size = self._bytes[name] * self._master_scale
        price = OPTIMIZER_PASSES * size * share / self._cluster.device.memory_bytes_per_s
        if state != BROADCAST:
            return price
        return price + self._collective_s("all_reduce", size) - self._collective_s("all_reduce", 0.0)

    def conversion_s(self, name: str, source: State, target: State) -> float:
        """Infinite where no op converts: for padded shards, and for parameters, whose shards stay where they are."""
        if name in self._state and isinstance(source, Split):
            return float("inf")
        row = _row(source, target)
        if row is None:
            return float("inf")
        price = OP_S + self._collective_s(row.forward, self._bytes[name])
        return price + (self._collective_s(row.backward, self._bytes[name]) if name in self._differentiable else 0.0)

    def _collective_s(self, kind: str | None, payload_bytes: float) -> float:
        """Seconds of a collective on a value, given the bytes of the value as it is before the axis shards it."""
        if kind is None:
            return 0.0
        if kind == "all_to_all":
            payload_bytes /= self._axis.size  # the one collective that sees no more than a shard
        return self._cluster.collective_s(kind, payload_bytes, self._axis.size, self._axis.stride)


def _row(source: State, target: State) -> Conversion | None:
    """The conversion table's row for two states; the numbers in the placements do not matter to it."""
    return conversion(
        *(
            Shard(s.dim, simplify_dim(s.inner * s.size), s.padded) if isinstance(s, Split) else s
            for s in (source, target)
        )
    )
