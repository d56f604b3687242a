"""Which ops of two graphs are the same, whatever their values are called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from galvatron.ir.graph import Graph, Op, map_refs
from galvatron.ir.ops.arguments import typed


@dataclass(frozen=True)
class Alignment:
    """How one graph became another.

    Attributes:
        ops: the places of ops in the first graph → those of the same ops in the second.
        changed: the places in the first of those that have other arguments, or read other values.
        values: values of the first → those of the second that are the same: inputs, state, results of the same ops.
        instead: values of either whose op the other graph lacks → the value of the other that is read in its place.
        returned: whether both return the same values, but for those in the place of others.
        moved: the places in the first of those that stand in another order in the second.
    """

    ops: dict[int, int]
    changed: frozenset[int]
    values: dict[str, str]
    instead: dict[str, str] = field(default_factory=dict)
    returned: bool = True
    moved: frozenset[int] = frozenset()


def aligned(first: Graph, second: Graph, given: Mapping[str, str] | None = None) -> Alignment:
    """The alignment of two graphs: ops are the same that do the same at the same line of the model, in order; where
    that leaves some, those that call the same operator there, in order, and those that do the same on the same values.

    Args:
        given: inputs and state of the first → those of the second that are the same; without it those of one name.
    """
    ops = dict(_matched(range(len(first.ops)), range(len(second.ops)), first, second, _exactly))
    for own, other in _gaps(ops, len(first.ops), len(second.ops)):
        ops.update(_matched(own, other, first, second, _roughly))
    values = _of_one_name(first, second) if given is None else dict(given)
    for place, there in ops.items():
        pairs = zip(first.ops[place].results, second.ops[there].results, strict=True)
        values.update((value.name, same.name) for value, same in pairs)
    moved = _moved(first, second, ops, values)
    ops |= moved
    back, instead = {same: value for value, same in values.items()}, dict[str, str]()

    def same(own: Sequence[str], other: Sequence[str]) -> bool:
        """Whether both read the same values, but for those in the place of others, which are kept."""
        alike = len(own) == len(other)
        for name, found in zip(own, other, strict=False):
            if values.get(name) == found:
                continue
            if name not in values:
                instead.setdefault(name, found)
            elif found not in back:
                instead.setdefault(found, name)
            else:
                alike = False
        return alike

    changed = {
        place
        for place, there in ops.items()
        if not same((own := first.ops[place]).operands, (other := second.ops[there]).operands)
        or _exactly(own) != _exactly(other)
    }
    returned = same(first.outputs, second.outputs)
    return Alignment(ops, frozenset(changed), values, instead, returned, frozenset(moved))


def _moved(first: Graph, second: Graph, ops: Mapping[int, int], values: dict[str, str]) -> dict[int, int]:
    """The places of ops that do the same on the same values elsewhere; `values` gets their results."""
    taken = set(ops.values())
    left: dict[Hashable, list[int]] = defaultdict(list)
    for place, op in enumerate(second.ops):
        if place not in taken:
            left[_exactly(op), op.operands].append(place)
    found: dict[int, int] = {}
    for place, op in enumerate(first.ops):
        there = left.get((_exactly(op), tuple(values.get(name, "") for name in op.operands)))
        if there and place not in ops:
            found[place] = there.pop(0)
            pairs = zip(op.results, second.ops[found[place]].results, strict=True)
            values.update((value.name, same.name) for value, same in pairs)
    return found


def _of_one_name(first: Graph, second: Graph) -> dict[str, str]:
    given = {v.name for v in (*second.inputs, *second.state)}
    return {v.name: v.name for v in (*first.inputs, *first.state) if v.name in given}


def _where(op: Op) -> Hashable:
    return op.source and (op.source.file, op.source.line)


def _exactly(op: Op) -> Hashable:
    args, kwargs = (map_refs(part, lambda _: "") for part in (op.args, tuple(value for _, value in op.kwargs)))
    return op.target, typed(args), tuple(key for key, _ in op.kwargs), typed(kwargs), len(op.results), _where(op)


def _roughly(op: Op) -> Hashable:
    return op.name, len(op.results), _where(op)


def _matched(
    own: Sequence[int], other: Sequence[int], first: Graph, second: Graph, key: Callable[[Op], Hashable]
) -> Iterator[tuple[int, int]]:
    """Places of ops with equal keys, in order."""
    keys = [key(first.ops[i]) for i in own], [key(second.ops[i]) for i in other]
    for a, b, size in SequenceMatcher(None, *keys, autojunk=False).get_matching_blocks():
        yield from zip(own[a : a + size], other[b : b + size], strict=True)


def _gaps(ops: dict[int, int], first: int, second: int) -> Iterator[tuple[range, range]]:
    """The stretches between ops that are the same."""
    own, other = 0, 0
    for place, there in sorted((*ops.items(), (first, second))):
        if own < place and other < there:
            yield range(own, place), range(other, there)
        own, other = place + 1, there + 1
