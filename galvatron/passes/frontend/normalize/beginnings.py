"""Concatenations that begin with another one, made of that."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from galvatron.ir.graph import Arg, Graph, Op, Ref

_CAT = "aten.cat.default"


def with_shared_beginnings(graph: Graph) -> Graph:
    """The graph with every `cat` whose first parts are all those of an earlier one, along the same dim, reading that.

    The turns of a loop that read all that was made so far, or layers that each read all before them, would otherwise
    have as many operands together as the square of their number; so each adds its own to the last.
    """
    known: dict[Arg, _Beginning] = {}
    ops: list[Op] = []
    for op in graph.ops:
        if op.target == _CAT:
            parts, dim = op["tensors"], op["dim"]
            assert isinstance(parts, tuple)
            at, longest, count = known.setdefault(dim, _Beginning()), None, 0
            for place, part in enumerate(parts):
                at = at.longer.setdefault(part, _Beginning())
                if at.made is not None and place + 1 < len(parts):
                    longest, count = at.made, place + 1
            at.made = at.made or Ref(op.result.name)
            if longest is not None:
                op = replace(op, args=((longest, *parts[count:]), dim))
        ops.append(op)
    return replace(graph, ops=tuple(ops))


@dataclass
class _Beginning:
    """The first parts of some concatenations: the one that has no more, and what may come next in others."""

    made: Ref | None = None
    longer: dict[Arg, _Beginning] = field(default_factory=dict)
