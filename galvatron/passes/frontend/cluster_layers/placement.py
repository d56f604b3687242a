"""What each layer computes: its part of the stream, and the floating ops that it reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from galvatron.ir.graph import Graph, Op
from galvatron.ir.program import LayerKind
from galvatron.passes.frontend.cluster_layers.cuts import Region
from galvatron.passes.frontend.cluster_layers.roles import Roles

_PREAMBLE = -1
_FEW_OPS = 4
_FEW_ELEMENTS = 2**20


@dataclass(frozen=True)
class Part:
    """The ops of one layer before it has a name, and the values that others may read from it."""

    kind: LayerKind
    ops: tuple[Op, ...]
    gives: tuple[str, ...]


def place_ops(graph: Graph, roles: Roles, regions: Sequence[Region]) -> tuple[Part, ...]:
    """Every op of the graph in its layer: per-step values first, then the preamble, then the regions of the stream.

    A floating op goes to the one layer that needs it, before the first op that reads it. Needed by several layers, a
    free op goes to the preamble and a derived one, or the new value of state, to the first of the layers, except that
    ops on constants only and ops on state only (an `arange`, a transposed weight) are repeated in each. What runs
    behind all micro-batches computes all that it needs of them.
    """
    members = [roles.stream[region.start : region.stop] for region in regions]
    kinds = [LayerKind.PLANNED] * len(members)
    ends = [(ops, LayerKind.CLOSING) for ops in roles.closings]
    ends += [(roles.epilogue, LayerKind.EPILOGUE)] if roles.epilogue else []
    members += [ops for ops, _ in ends]
    kinds += [kind for _, kind in ends]
    homes = _homes(graph, roles, members, frozenset(range(len(regions), len(members))))
    parts = [_part(LayerKind.STEP, (graph.ops[i] for i in roles.step), roles.step_values)]
    parts.append(_part(LayerKind.PREAMBLE, (graph.ops[i] for i in roles.floating if _PREAMBLE in homes[i])))
    for number, own in enumerate(members):
        floating = {v.name for i in roles.floating if number in homes[i] for v in graph.ops[i].results}
        parts.append(_part(kinds[number], _with_floating(graph, (graph.ops[i] for i in own), floating)))
    return tuple(part for part in parts if part.ops)


def _part(kind: LayerKind, ops: Iterable[Op], gives: frozenset[str] | None = None) -> Part:
    ops = tuple(ops)
    return Part(kind, ops, tuple(v.name for op in ops for v in op.results if gives is None or v.name in gives))


def _homes(graph: Graph, roles: Roles, members: Sequence[tuple[int, ...]], ends: frozenset[int]) -> dict[int, set[int]]:
    """For each floating op, by index in the graph, the numbers of the layers that compute it.

    `members` are the ops of each layer, `ends` the numbers of those that run behind all micro-batches.
    """
    homes: dict[int, set[int]] = {}
    readers: dict[str, set[int]] = {v.name: set() for op in graph.ops for v in op.results}
    readers |= {v.name: set() for v in (*graph.inputs, *graph.state)}
    for number, own in enumerate(members):
        for i in own:
            for name in graph.ops[i].operands:
                readers[name].add(number)
    repeatable = _repeatable(graph, roles)
    for i in reversed(roles.floating):
        op = graph.ops[i]
        needed = set().union(*(readers[v.name] for v in op.results))
        at_end, needed = needed & ends, needed - ends
        if len(needed) > 1 and i not in repeatable:
            is_result = any(v.name in graph.outputs for v in op.results)
            needed = {min(needed)} if is_result or op.results[0].name in roles.derived else {_PREAMBLE}
        homes[i] = needed = needed | at_end
        for name in op.operands:
            readers[name] |= needed
    return homes


def _repeatable(graph: Graph, roles: Roles) -> set[int]:
    """Floating ops that are better computed twice than sent: a few ops on constants or on weights alone."""
    state = {v.name for v in graph.state}
    made: dict[str, int] = {}
    found = set()
    for i in roles.floating:
        op = graph.ops[i]
        derived = op.results[0].name in roles.derived
        allowed = state | made.keys() if derived else made.keys()
        count = 1 + sum(made.get(name, 0) for name in set(op.operands))
        if allowed >= set(op.operands) and count <= _FEW_OPS and (derived or _is_small(op)):
            found.add(i)
            made.update((v.name, count) for v in op.results)
    return found


def _is_small(op: Op) -> bool:
    return all(
        isinstance(v.type.numel, int) and v.type.numel <= _FEW_ELEMENTS and sum(d != 1 for d in v.type.shape) <= 1
        for v in op.results
    )


def _with_floating(graph: Graph, ops: Iterable[Op], floating: set[str]) -> tuple[Op, ...]:
    """The ops, each after those of the floating ops that it reads; the order follows from the structure alone."""
    placed: dict[str, Op] = {}

    def place(op: Op) -> None:
        if op.results[0].name not in placed:
            for name in op.operands:
                if name in floating:
                    place(graph.producers[name])
            placed[op.results[0].name] = op

    for op in ops:
        place(op)
    return tuple(placed.values())
