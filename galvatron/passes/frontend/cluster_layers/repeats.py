"""Repeated structure: stacks of blocks, found as tandem repeats of the sequence of heavy ops.

Heavy ops (contractions with a weight) are the skeleton of a model; what stands between two of them may differ a little
from block to block (a mask, a rate, a bias that the first block makes for the others) without hiding the repeat. A
*gap* is the place before a heavy op (gap `g` is before anchor `g`, the last gap after all); a repeat says in which gaps
layers begin, and inside a gap the cut goes where the fewest values are alive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from galvatron.passes.frontend.cluster_layers.stream import Path, Stream, common_prefix

_MIN_WEIGHT = 0.02
"""A stack holds at least this share of the model, or it is a detail of some layer."""

_NEARLY = 0.95
"""Repeats that hold this share of what the best one holds are as good, if they are simpler."""

_CANDIDATES = 64

_SEVERAL = 3
"""Blocks inside a period are layers of their own from this number on; two may be parts of one block."""

_PER_EXTRA_VALUE = 3
"""Blocks may pass on one value more for every so many heavy ops they have."""

Side = Literal["start", "inside", "stop"]
"""Where a gap is in a stack."""


@dataclass(frozen=True)
class Stack:
    """Blocks that follow each other: layer `i` is the stream from `cuts[i]` to `cuts[i + 1]`, in gaps likewise.

    `blocks` are the different sequences of heavy labels that its layers have; `path` is the module path that holds them
    by index, None where hints say nothing.
    """

    gaps: tuple[int, ...]
    cuts: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    path: Path | None


@dataclass(frozen=True)
class _Tandem:
    """A stretch of the skeleton that equals itself shifted by one period: anchors `start` to `start + length`."""

    start: int
    length: int
    period: int
    weight: float


class GapView:
    """The gaps of a stream for one idea of which values count as alive (see `Stream.alive`)."""

    def __init__(self, stream: Stream, limit: float) -> None:
        self.stream = stream
        self._alive, self._elements = stream.alive(limit)
        self._best: dict[tuple[int, bool], int] = {}

    def cuts(self, gap: int) -> range:
        """The cuts in a gap, without the two ends of the stream where there are others."""
        anchors = self.stream.anchors
        first = int(anchors[gap - 1]) + 1 if gap else 0
        last = int(anchors[gap]) if gap < len(anchors) else len(self.stream)
        inner = range(max(first, 1), min(last, len(self.stream) - 1) + 1)
        return inner or range(first, last + 1)

    def best(self, gap: int, later: bool = True) -> int:
        """The best cut: fewest values alive, outermost in the modules, fewest elements, most read, and last of equals
        (or first)."""
        if (gap, later) not in self._best:
            self._best[gap, later] = min(self.cuts(gap), key=lambda c: (*self._quality(c), -c if later else c))
        return self._best[gap, later]

    def alive(self, cut: int) -> int:
        """The number of values alive at a cut."""
        return int(self._alive[cut])

    def elements(self, cut: int) -> int:
        """The elements of the values alive at a cut."""
        return int(self._elements[cut])

    def _quality(self, cut: int) -> tuple[int, int, int, int]:
        return self.alive(cut), self.stream.depth(cut), self.elements(cut), -int(self.stream.fan_out[cut])

    def like(self, cut: int, model: int, gap: int, side: Side) -> int:
        """The cut of `gap` with the same ops around as `cut` has in gap `model`, else the best one.

        Where layers begin (`start`) the ops after the cut count, where they end (`stop`) those before it, in between
        both.
        """
        found = []
        if side != "start":
            found.append(self._after_equal_ops(cut, model, gap))
        if side != "stop":
            found.append(self._before_equal_ops(cut, model, gap))
        there = min((c for c in found if c is not None), key=self._quality, default=None)
        return self.best(gap, later=side != "stop") if there is None else there

    def _after_equal_ops(self, cut: int, model: int, gap: int) -> int | None:
        anchors, labels = self.stream.anchors, self.stream.labels
        if not (gap and model):
            return None
        lead = cut - int(anchors[model - 1])
        there = int(anchors[gap - 1]) + lead
        equal = there in self.cuts(gap) and np.array_equal(
            labels[there - lead + 1 : there], labels[cut - lead + 1 : cut]
        )
        return there if equal else None

    def _before_equal_ops(self, cut: int, model: int, gap: int) -> int | None:
        anchors, labels = self.stream.anchors, self.stream.labels
        if not (gap < len(anchors) and model < len(anchors)):
            return None
        tail = int(anchors[model]) - cut
        there = int(anchors[gap]) - tail
        equal = there in self.cuts(gap) and np.array_equal(labels[there : there + tail], labels[cut : cut + tail])
        return there if equal else None


def find_stack(stream: Stream, lo: int, hi: int) -> Stack | None:
    """The stack between gaps `lo` and `hi` that holds most of the model, if any.

    Of periods that are multiples of each other, the shortest one whose blocks pass on the fewest values.
    """
    chosen: tuple[float, _Tandem, Stack] | None = None
    for tandem in _tandems(stream, lo, hi):
        if chosen and (tandem.weight < _NEARLY * chosen[1].weight or tandem.period % chosen[1].period):
            continue
        stack = _stack_of(stream, tandem, (lo, hi))
        if stack is not None and (not chosen or _mean_alive(stream, stack) <= chosen[0] - 0.5):
            chosen = _mean_alive(stream, stack), tandem, stack
    return chosen[2] if chosen else None


def _mean_alive(stream: Stream, stack: Stack) -> float:
    alive, _ = stream.alive()
    return float(np.mean(alive[list(stack.cuts[1:-1])]))


def _tandems(stream: Stream, lo: int, hi: int) -> Iterator[_Tandem]:
    """Repeats, best first: those that cover nearly the most weight, the shortest period of these before the others."""
    labels = stream.labels[stream.anchors[lo:hi]]
    heavy = np.concatenate([[0], np.cumsum(stream.weight[stream.anchors[lo:hi]])])
    found: list[_Tandem] = []
    for period in range(1, len(labels) // 2 + 1):
        equal = labels[:-period] == labels[period:]
        ends = np.concatenate([[-1], np.flatnonzero(~equal), [len(equal)]])
        for which in np.flatnonzero(np.diff(ends) - 1 >= period):
            start, length = int(ends[which]) + 1, int(ends[which + 1] - ends[which]) - 1 + period
            weight = float(heavy[start + length // period * period] - heavy[start])
            found.append(_Tandem(lo + start, length, period, weight))
    threshold = _MIN_WEIGHT * stream.weight.sum()
    found = sorted((t for t in found if t.weight >= threshold), key=lambda t: -t.weight)[:_CANDIDATES]
    while found:
        best = min(
            (t for t in found if t.weight >= _NEARLY * found[0].weight), key=lambda t: (t.period, -t.weight, t.start)
        )
        found.remove(best)
        yield best


def _stack_of(stream: Stream, tandem: _Tandem, region: tuple[int, int]) -> Stack | None:
    """The layers that a repeat means, or None when its copies are no blocks (see `_are_blocks`)."""
    anchors, period = stream.anchors, tandem.period
    view = GapView(stream, 1.5 * int(anchors[tandem.start + period] - anchors[tandem.start]))
    low = _low_phases(view, tandem)
    phase = _best_phase(view, tandem, low, region)
    first = tandem.start + phase
    copies = (tandem.length - phase) // period
    whole = [first + m * period for m in range(copies + 1)]
    if _are_parts(stream, whole) or not _are_blocks(stream, whole, [view.best(g) for g in whole]):
        return None
    models = _models(view, first, period, sorted((p - phase) % period for p in low))
    stop = tandem.start + tandem.length
    gaps = sorted(
        g for m in range(-1, copies + 1) for o in models if tandem.start <= (g := first + m * period + o) <= stop
    )
    cuts = []
    for gap in gaps:
        side = "start" if gap == gaps[0] else "stop" if gap == gaps[-1] else "inside"
        cuts.append(view.like(*models[(gap - first) % period], gap, side))
    labels = stream.labels[anchors]
    blocks = {tuple(int(n) for n in labels[a:b]): None for a, b in zip(gaps, gaps[1:], strict=False)}
    return Stack(tuple(gaps), tuple(cuts), tuple(blocks), _stack_path(stream, gaps))


def _low_phases(view: GapView, tandem: _Tandem) -> list[int]:
    """The positions within a period where the fewest values are alive."""
    rounds = range(1, tandem.length // tandem.period)
    alive = [
        median(view.alive(view.best(tandem.start + phase + m * tandem.period)) for m in rounds)
        for phase in range(tandem.period)
    ]
    return [phase for phase, count in enumerate(alive) if count <= min(alive) + 0.25]


def _best_phase(view: GapView, tandem: _Tandem, low: list[int], region: tuple[int, int]) -> int:
    """Where in the period a block begins, of the positions where few values are alive.

    Outermost in the tree of modules; then most whole blocks; then such that a rest before or after the whole blocks
    could be a block that differs in part; then where the value that is passed on is smallest, and has most readers.
    """
    period, length = tandem.period, tandem.length
    most = max((length - phase) // period for phase in low)
    rounds = range(1, length // period)

    def key(phase: int) -> tuple[float, ...]:
        gaps = [tandem.start + phase + m * period for m in rounds]
        copies = (length - phase) // period
        rest = length - phase - copies * period
        room_before, room_after = tandem.start - region[0], region[1] - tandem.start - length
        missing = max(0, period - phase - room_before) * (phase > 0) + max(0, period - rest - room_after) * (rest > 0)
        depth = median(_depth(view.stream, g) for g in gaps)
        elements = median(view.elements(view.best(g)) for g in gaps)
        readers = median(int(view.stream.fan_out[view.best(g)]) for g in gaps)
        return depth, -copies, missing, elements, -readers, phase

    return min((p for p in low if (length - p) // period >= max(2, most - 1)), key=key, default=low[0])


def _are_blocks(stream: Stream, gaps: Sequence[int], cuts: Sequence[int]) -> bool:
    """Whether copies that begin at `cuts` in `gaps` are layers, and not branches or parts of one.

    Every copy computes with what the copy before it makes, and it is as cheap to cut between the copies as somewhere
    near their ends. Large copies may pass on some values more: a bias that the first makes for all.
    """
    if len(cuts) < 3:
        return False
    view, period, last = GapView(stream, math.inf), gaps[1] - gaps[0], len(stream.anchors)
    before = min(view.alive(view.best(g)) for g in range(max(gaps[0] - period, 0), gaps[0] + 1))
    after = min(view.alive(view.best(g)) for g in range(gaps[-1], min(gaps[-1] + period, last) + 1))
    if max(view.alive(c) for c in cuts[1:-1]) > max(1, before, after) + period // _PER_EXTRA_VALUE:
        return False
    return all(_follows(stream, *span) for span in zip(cuts, cuts[1:], cuts[2:], strict=False))


def _follows(stream: Stream, start: int, middle: int, stop: int) -> bool:
    """Whether a heavy op between `middle` and `stop` depends on what is made between `start` and `middle`: that of a
    branch which is only added up with another in the end does not."""
    made = {value.name for op in stream.ops[start:middle] for value in op.results}
    for position in range(middle, stop):
        if not made.isdisjoint(stream.ops[position].operands):
            if stream.heavy[position]:
                return True
            made.update(value.name for value in stream.ops[position].results)
    return False


def _are_parts(stream: Stream, gaps: Sequence[int]) -> bool:
    """Whether copies, as hints have it, are parts of the members of a list of modules.

    Several are parts of one member where the list goes on, as two equal convolutions of a block are; or there are but
    two, both of one member that does what another one does.
    """
    paths = [stream.paths[a] for a in stream.anchors]
    own = paths[gaps[0] : gaps[-1]]
    shared = own[0][: min(common_prefix(path, own[0]) for path in own)]
    inside = [g for g in gaps[1:-1] if not _is_indexed(stream, g)]
    if any(name.isdigit() for g in inside for name in paths[g][len(shared) : _depth(stream, g)]):
        return True
    depth = max((place for place, name in enumerate(shared) if name.isdigit()), default=None)
    if len(gaps) != 3 or not inside or depth is None:
        return False
    members: dict[str, list[str]] = {}
    for anchor, path in zip(stream.anchors, paths, strict=True):
        if path[:depth] == shared[:depth] and len(path) > depth:
            members.setdefault(path[depth], []).append(stream.ops[anchor].target)
    kinds = members.pop(shared[depth])
    return kinds in members.values()


def _models(view: GapView, first: int, period: int, low: list[int]) -> dict[int, tuple[int, int]]:
    """Where layers begin within a period, which may hold several blocks (of alternating kinds, say).

    By offset, a cut and the gap that it is in, as the model for the cuts of that offset in all periods.
    """
    stream = view.stream
    start = first + period
    models = {0: (view.best(start), start)}
    if _is_indexed(stream, start):
        depth = _depth(stream, start)
        inside = [o for o in low if o and _is_indexed(stream, first + o) and _depth(stream, first + o) <= depth]
    else:
        inner = find_stack(stream, first, start)
        if inner is not None and _is_finer(view, inner, first, period):
            found = zip(inner.gaps, inner.cuts, strict=True)
            return models | {gap - first: (cut, gap) for gap, cut in found if first < gap < start}
        inside = _similar_parts(stream, first, period, low)
    return models | {o: (view.best(first + o), first + o) for o in inside}


def _is_finer(view: GapView, inner: Stack, first: int, period: int) -> bool:
    """Whether the blocks inside a period are the better layers: they are most of it, and as cheap to cut between."""
    weight = view.stream.weight[view.stream.anchors]
    share = weight[inner.gaps[0] : inner.gaps[-1]].sum() / weight[first : first + period].sum()
    if len(inner.cuts) <= _SEVERAL or share < 0.5:
        return False
    return max(view.alive(c) for c in inner.cuts) <= max(view.alive(view.best(g)) for g in (first, first + period))


def _similar_parts(stream: Stream, first: int, period: int, low: list[int]) -> list[int]:
    """The finest division of a period into parts of equally many segments that each resemble another part.

    Segments lie between the cuts where few values are alive; parts resemble each other when they have an equal segment
    at the same place. `attention a, mlp, attention b, mlp` divides into two, `attention, mlp` does not.
    """
    bounds = [*low, period]
    labels = stream.labels[stream.anchors[first : first + period]]
    segments = [tuple(labels[a:b].tolist()) for a, b in zip(bounds, bounds[1:], strict=False)]
    for size in range(1, len(segments)):
        if len(segments) % size:
            continue
        parts = [segments[i : i + size] for i in range(0, len(segments), size)]
        if all(any(q is not p and any(map(tuple.__eq__, p, q)) for q in parts) for p in parts):
            return low[size::size]
    return []


def _depth(stream: Stream, gap: int) -> int:
    """How deep in the tree of modules a gap stands, by the heavy ops around it."""
    anchors = stream.anchors
    if not 0 < gap < len(anchors):
        return 0
    return common_prefix(stream.paths[anchors[gap - 1]], stream.paths[anchors[gap]])


def _is_indexed(stream: Stream, gap: int) -> bool:
    """Whether a gap stands between two members of a list of modules."""
    anchors = stream.anchors
    if not 0 < gap < len(anchors):
        return False
    before, after = stream.paths[anchors[gap - 1]], stream.paths[anchors[gap]]
    depth = common_prefix(before, after)
    return len(before) > depth < len(after) and before[depth].isdigit() and after[depth].isdigit()


def _stack_path(stream: Stream, gaps: Sequence[int]) -> Path | None:
    paths = {stream.paths[stream.anchors[g]][: _depth(stream, g)] for g in gaps[1:-1] if _is_indexed(stream, g)}
    return paths.pop() if len(paths) == 1 else None
