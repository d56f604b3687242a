"""Where layers begin: stacks of blocks first, then odd blocks beside a stack, then what is left."""

from __future__ import annotations

import difflib
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from galvatron.passes.frontend.cluster_layers.repeats import GapView, Side, Stack, find_stack
from galvatron.passes.frontend.cluster_layers.stream import Stream, common_prefix

_RESEMBLES = 0.4
"""The least similarity (`difflib` ratio of the heavy ops) of an odd block to the blocks of the stack beside it."""

_RESEMBLES_IN_PART = 0.25
"""The same where it has as many segments, a cheap place to cut between them, as a block has."""

_LEAST_SHARE = 0.005
"""A layer of a model without repeats has at least this share of the model's weight."""

_LARGE_SHARE = 0.25
"""Layers of a model without repeats that are larger, and have more than `_FEW` heavy ops, are divided further."""

_FEW = 4

_FEW_IN_MODULE = 12
"""The same for what is one module of a model without repeats."""

_FEW_IN_CHAIN = 6
"""Ops of a list of modules that each hold one, and only pass on what the next one reads, that stay one layer."""

_LARGE = 1.5
"""What stands beside blocks is divided if it has this many times the weight of the heaviest one."""


@dataclass(frozen=True)
class Region:
    """A layer to be: the stream from `start` to `stop`; `is_block` if it repeats or resembles one that does."""

    start: int
    stop: int
    is_block: bool


def find_regions(stream: Stream) -> tuple[Region, ...]:
    """The layers of a stream, in order, without gaps between them."""
    if not len(stream):
        return ()
    stacks = list(_stacks(stream, 0, len(stream.anchors)))
    repeated = {span for stack in stacks for span in zip(stack.cuts, stack.cuts[1:], strict=False)}
    odd = _with_bare_ends(stream, set(_odd_blocks(stream, stacks)))
    blocks = repeated | odd
    bounds = sorted({0, len(stream), *(c for span in blocks for c in span)})
    heaviest = max((stream.weight[a:b].sum() for a, b in blocks), default=0.0)
    regions = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        inner = [] if (start, stop) in blocks else _divided(stream, start, stop, heaviest)
        cuts = [start, *inner, stop]
        regions += [Region(a, b, (a, b) in blocks) for a, b in zip(cuts, cuts[1:], strict=False)]
    return tuple(regions)


def _with_bare_ends(stream: Stream, odd: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Odd blocks, the first and the last with what is before and after all layers, where that has no weights."""
    first = next(iter(np.flatnonzero(stream.weighted)), 0)
    last = next(iter(np.flatnonzero(stream.weighted)[::-1]), len(stream))
    return {(0 if a <= first else a, len(stream) if b > last else b) for a, b in odd}


def _stacks(stream: Stream, lo: int, hi: int) -> Iterator[Stack]:
    """The stacks between two gaps, in order."""
    stack = find_stack(stream, lo, hi) if hi - lo > 1 else None
    if stack is not None:
        yield from _stacks(stream, lo, stack.gaps[0])
        yield stack
        yield from _stacks(stream, stack.gaps[-1], hi)


def _odd_blocks(stream: Stream, stacks: Sequence[Stack]) -> Iterator[tuple[int, int]]:
    """Layers right before or after a stack that its module path, or their resemblance to its blocks, makes part of it.

    A first block that computes a bias for the others, or one with a dense instead of a sparse feed-forward network.
    """
    lo = 0
    for left, right in zip([None, *stacks], [*stacks, None], strict=True):
        hi = right.gaps[0] if right else len(stream.anchors)
        if right:
            hi = yield from _odd_beside(stream, right, "start", hi, lo)
        if left:
            yield from _odd_beside(stream, left, "stop", lo, hi)
        lo = right.gaps[-1] if right else hi


def _odd_beside(stream: Stream, stack: Stack, side: Side, gap: int, end: int) -> Generator[tuple[int, int], None, int]:
    """The odd blocks beside a stack, outwards from its gap on a side up to the gap `end`; gives back where they end."""
    view = GapView(stream, 1.5 * (stack.cuts[-1] - stack.cuts[0]) / (len(stack.cuts) - 1))
    cut, step = (stack.cuts[0], -1) if side == "start" else (stack.cuts[-1], 1)
    while True:
        candidates = [(g, min(g, gap), max(g, gap)) for g in range(gap + step, end + step, step)]
        found = _best_match(view, stack, candidates)
        if found is None:
            return gap
        other = view.like(stack.cuts[1], stack.gaps[1], found, side)
        if (other - cut) * step <= 0:
            return gap
        yield min(other, cut), max(other, cut)
        gap, cut = found, other


def _best_match(view: GapView, stack: Stack, candidates: list[tuple[int, int, int]]) -> int | None:
    """The gap whose region `(gap, from, to)` is most like a block: as many segments, and then most of the heavy ops."""
    stream = view.stream
    longest = 2 * max(map(len, stack.blocks))
    labels = stream.labels[stream.anchors]
    alive = max(view.alive(c) for c in stack.cuts[1:-1] or stack.cuts)

    def segments(start: int, stop: int) -> int:
        return 1 + sum(view.alive(view.best(g)) <= alive for g in range(start + 1, stop))

    usual = segments(stack.gaps[0], stack.gaps[1])
    best, best_likeness = None, (False, 0.0)
    for gap, start, stop in candidates:
        if stop - start > longest:
            break
        if view.alive(view.best(gap)) > alive:
            continue
        if _is_member(stream, stack, start, stop) or _is_relative(stream, stack, start, stop):
            return gap
        region = labels[start:stop].tolist()
        ratio = max(difflib.SequenceMatcher(None, region, block, autojunk=False).ratio() for block in stack.blocks)
        likeness = (segments(start, stop) == usual, ratio)
        if ratio > (_RESEMBLES_IN_PART if likeness[0] and usual > 1 else _RESEMBLES) and likeness > best_likeness:
            best, best_likeness = gap, likeness
    return best


def _is_member(stream: Stream, stack: Stack, start: int, stop: int) -> bool:
    """Whether the heavy ops from `start` to `stop` are all those of one member of the stack's list of modules."""
    if stack.path is None:
        return False
    depth = len(stack.path)
    members = [stream.paths[a][: depth + 1] for a in stream.anchors]
    inside, outside = set(members[start:stop]), set(members[max(start - 1, 0) : start] + members[stop : stop + 1])
    member = next(iter(inside))
    in_list = member[:depth] == stack.path and len(member) > depth and member[depth].isdigit()
    return in_list and len(inside) == 1 and not inside & outside


def _is_relative(stream: Stream, stack: Stack, start: int, stop: int) -> bool:
    """Whether the heavy ops from `start` to `stop`, several, are all those of one member of any list of modules, and do
    what those of a block do, to other sizes: a block of the next stage of a convolutional network."""
    paths = [stream.paths[a] for a in stream.anchors]
    member = paths[start][: min(common_prefix(paths[start], path) for path in paths[start:stop])]
    if stop - start < 2 or not member or not member[-1].isdigit():
        return False
    beside = (*paths[max(start - 1, 0) : start], *paths[stop : stop + 1])
    if any(path[: len(member)] == member for path in beside):
        return False
    kinds = [stream.ops[a].target for a in stream.anchors]
    block = kinds[stack.gaps[0] : stack.gaps[1]]
    return difflib.SequenceMatcher(None, kinds[start:stop], block, autojunk=False).ratio() > _RESEMBLES


def _divided(stream: Stream, start: int, stop: int, heaviest: float) -> list[int]:
    """Cuts inside a region without repeats.

    Beside blocks (`heaviest` is the weight of the heaviest) only a region that outweighs them is divided.
    """
    anchors = [a for a in range(start, stop) if stream.heavy[a] or (stream.lookups[a] and not heaviest)]
    heavy = sum(bool(stream.heavy[a]) for a in anchors)
    if heavy < 2 or (heaviest and stream.weight[start:stop].sum() < _LARGE * heaviest):
        return []
    total = stream.weight.sum()
    limit, least = (_LARGE * heaviest, 0.5 * heaviest) if heaviest else (_LARGE_SHARE * total, _LEAST_SHARE * total)
    few = _FEW if heaviest else _FEW_IN_MODULE
    return _without_light(stream, start, stop, sorted(_splits(stream, anchors, limit, few)), least)


def _splits(
    stream: Stream, anchors: Sequence[int], limit: float, few_in_module: int, most_alive: float = math.inf
) -> set[int]:
    """Cuts between heavy ops where the fewest values are alive, and again inside pieces that stay large.

    Where hints are there, only between different modules: those that the paths of the piece name first. What is one
    module is not cut where more values are alive (`most_alive`) than around it.
    """
    alive, _ = stream.alive()
    between: dict[tuple[int, int], int] = {}
    for a, b in zip(anchors, anchors[1:], strict=False):
        if not (stream.lookups[a] and stream.lookups[b]):
            between[a, b] = min(range(a + 1, b + 1), key=lambda c: (alive[c], stream.depth(c), -stream.fan_out[c], -c))
    modules = _modules(stream, anchors)
    if len(set(modules.values())) > 1:
        between = {(a, b): c for (a, b), c in between.items() if modules[a] != modules[b]}
    fewest = min((alive[c] for c in between.values()), default=math.inf)
    if fewest > most_alive or not between:
        return set()
    cuts = {c for c in between.values() if alive[c] == fewest}
    bounds = [anchors[0], *sorted(cuts), anchors[-1] + 1]
    for a, b in zip(bounds, bounds[1:], strict=False):
        piece = [x for x in anchors if a <= x < b]
        inside = {modules[x] for x in piece} - {""}
        few = few_in_module if len(inside) == 1 else _FEW
        if len(inside) > 1 or (len(piece) > few and stream.weight[a:b].sum() > limit):
            cuts |= _splits(stream, piece, limit, few_in_module, fewest if len(inside) == 1 else most_alive)
    return cuts


def _modules(stream: Stream, anchors: Sequence[int]) -> dict[int, str]:
    """The module that each heavy op belongs to, of those that the ops' paths part into first; "" where unknown.

    The members of a list are modules of their own, unless they are a short chain of single ops.
    """
    known = [stream.paths[a] for a in anchors if stream.paths[a]]
    shared = min((common_prefix(path, known[0]) for path in known), default=0)
    paths = {a: stream.paths[a][shared:] for a in anchors}
    lists: dict[str, list[int]] = {}
    for a, path in paths.items():
        if len(path) > 1 and path[1].isdigit():
            lists.setdefault(path[0], []).append(a)
    chains = {
        name for name, own in lists.items() if len({paths[a][1] for a in own}) == len(own) and _is_chain(stream, own)
    }
    return {
        a: ".".join(path[:2] if path and path[0] in lists.keys() - chains and len(path) > 1 else path[:1])
        for a, path in paths.items()
    }


def _is_chain(stream: Stream, anchors: Sequence[int]) -> bool:
    """Whether between a few heavy ops nothing comes in from before and nothing leaves but at the end."""
    first, last = anchors[0], anchors[-1]
    _, definition, use = stream.edges.T
    inside = (definition >= first) & (definition < last)
    return len(anchors) <= _FEW_IN_CHAIN and bool(
        np.all(use[inside] <= last) and np.all(definition[(use > first) & (use <= last)] >= first)
    )


def _without_light(stream: Stream, start: int, stop: int, cuts: list[int], least: float) -> list[int]:
    """The cuts, less those that would make a layer lighter than `least`, unless it holds an embedding.

    A light layer joins the next one, the last one the one before.
    """

    def is_light(a: int, b: int) -> bool:
        return stream.weight[a:b].sum() < least and not stream.lookups[a:b].any()

    kept: list[int] = []
    for cut in cuts:
        if not is_light(kept[-1] if kept else start, cut):
            kept.append(cut)
    if kept and is_light(kept[-1], stop):
        kept.pop()
    return kept
