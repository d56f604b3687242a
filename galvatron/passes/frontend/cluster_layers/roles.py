"""Which ops of a flat graph carry the model, and which only prepare what it reads.

The *stream* is what depends on parameters and on the batch: it is cut into layers. Ops beside it *float*: they have no
place of their own in the order and go where their results are read. Floating ops are *free* (masks, position ids: no
parameter upstream) or *derived* (a reshaped weight, a position embedding: parameters but no batch upstream). Some free
ops make statistics of the whole batch, such as a count of tokens; those run once per *step*.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from galvatron.ir.graph import Graph
from galvatron.ir.ops.table import operator_of
from galvatron.ir.program import State
from galvatron.ir.random import is_random
from galvatron.ir.types import TensorType, has_samples


@dataclass(frozen=True)
class Roles:
    """The ops of a graph by role, as indices into `graph.ops`, in order.

    `step` holds all ops that the per-step values need, from the batch inputs on; the same ops may also be `floating`.
    `step_values` are the values that a per-step op makes, `derived` the values with parameters but no batch upstream.
    `epilogue` holds the ops at the end of a loss that couples samples; an op that others read too is in the stream as
    well. `closings` are those that make new values of state of sums over the batch, group by group.
    """

    stream: tuple[int, ...]
    floating: tuple[int, ...]
    step: tuple[int, ...]
    step_values: frozenset[str]
    derived: frozenset[str]
    epilogue: tuple[int, ...] = ()
    closings: tuple[tuple[int, ...], ...] = ()

    def with_closings(self, closings: tuple[tuple[int, ...], ...]) -> Roles:
        """The roles with ops of the stream, which nothing else in it reads, in groups at the end of a step."""
        apart = {i for ops in closings for i in ops}
        return replace(self, stream=tuple(i for i in self.stream if i not in apart), closings=closings)

    def with_epilogue(self, graph: Graph, ops: frozenset[int]) -> Roles:
        """The roles with some ops of the stream in the epilogue."""
        if not ops:
            return self
        kept = [i for i in self.stream if i not in ops]
        read = {name for i in kept for name in graph.ops[i].operands}
        for i in sorted(ops, reverse=True):
            if any(v.name in read for v in graph.ops[i].results):
                kept.append(i)
                read.update(graph.ops[i].operands)
        return replace(self, stream=tuple(sorted(kept)), epilogue=tuple(sorted(ops)))


def is_batched(type_: TensorType) -> bool:
    """Whether a size of the type depends on the batch size."""
    return any(map(has_samples, type_.shape))


@dataclass(frozen=True)
class _Upstream:
    """What a value was computed from."""

    parameter: bool = False
    batch: bool = False
    whole_batch: bool = False
    """Something whose size depends on the batch size."""
    stream: bool = False

    def __or__(self, other: _Upstream) -> _Upstream:
        return _Upstream(
            self.parameter or other.parameter,
            self.batch or other.batch,
            self.whole_batch or other.whole_batch,
            self.stream or other.stream,
        )


def find_roles(graph: Graph, state: dict[str, State]) -> Roles:
    """The role of every op of a graph without dead ops.

    The op that makes the loss is always in the stream, and so are those that make the other results of the graph, the
    new values of state, unless they follow from state alone and something goes on with them: then they are where that
    is, like all that floats.
    """
    upstream = {v.name: _Upstream(batch=True, whole_batch=is_batched(v.type)) for v in graph.inputs}
    upstream |= {v.name: _Upstream(parameter=state[v.name].kind == "parameter") for v in graph.state}
    stream, floating, step_values = [], [], set()
    for index, op in enumerate(graph.ops):
        origin = _Upstream()
        for name in op.operands:
            origin |= upstream[name]
        batched = any(is_batched(v.type) for v in op.results)
        is_stream = (
            origin.stream
            or (origin.parameter and (origin.batch or origin.whole_batch or batched))
            or is_random(op)
            or (operator_of(op).anchored and not origin.parameter)
            or any(_is_anchored(graph, v.name, origin) for v in op.results)
        )
        (stream if is_stream else floating).append(index)
        if not is_stream and not origin.parameter and origin.whole_batch and not batched:
            step_values.update(v.name for v in op.results)
        made = origin | _Upstream(whole_batch=batched, stream=is_stream)
        upstream.update((v.name, made) for v in op.results)
    derived = {v.name for i in floating for v in graph.ops[i].results if upstream[v.name].parameter}
    step = _ancestors(graph, floating, step_values)
    floating = [i for i in floating if not any(v.name in step_values for v in graph.ops[i].results)]
    return Roles(tuple(stream), tuple(floating), step, frozenset(step_values), frozenset(derived))


def _is_anchored(graph: Graph, name: str, origin: _Upstream) -> bool:
    """Whether a value is a result of the graph that has a place of its own."""
    from_batch = origin.batch or origin.whole_batch
    return name in graph.outputs and (name == graph.outputs[0] or from_batch or not graph.consumers[name])


def _ancestors(graph: Graph, candidates: list[int], wanted: set[str]) -> tuple[int, ...]:
    """The ops among `candidates` that the wanted values need."""
    needed, kept = set(wanted), []
    for index in reversed(candidates):
        op = graph.ops[index]
        if any(v.name in needed for v in op.results):
            kept.append(index)
            needed.update(op.operands)
    return tuple(reversed(kept))
