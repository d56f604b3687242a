"""A part of a timeline that is too long for a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from galvatron.timelines.arrows import arrows
from galvatron.timelines.timeline import Slice, Timeline


def shortened(own: Timeline, most: int, of_process: int = 0) -> Timeline:
    """A timeline if it has few enough events, or else one with fewer steps, one process of each pipeline rank, and then
    fewer micro-batches: the first ones.

    Args:
        of_process: events that each process has besides.
    """

    def is_too_long() -> bool:
        events = len(own.slices) + len(own.levels) + of_process * len(own.pipeline_ranks)
        return events > most or events + 2 * sum(1 for _ in arrows(own)) > most

    while is_too_long() and own.steps > 1:
        own = _of_steps(own, own.steps // 2)
    if is_too_long():
        own = _of_one_process_each(own)
    while is_too_long() and (shown := own.micro_batches_shown) > 1:
        own = _of_micro_batches(own, shown // 2)
    return own


def _of_steps(own: Timeline, steps: int) -> Timeline:
    return replace(_with(own, lambda one: int(one.args.get("step", 0)) < steps), steps=steps)


def _of_micro_batches(own: Timeline, most: int) -> Timeline:
    about = {**own.about, "micro_batches": own.micro_batches, "micro_batches_shown": most}
    return replace(_with(own, lambda one: one.micro_batch is None or one.micro_batch < most), about=about)


def _with(own: Timeline, keep: Callable[[Slice], bool]) -> Timeline:
    """Some slices, and the memory until the last of those that are of a micro-batch."""
    slices = tuple(filter(keep, own.slices))
    until_s = max((one.end_s for one in slices if one.micro_batch is not None), default=0.0)
    return replace(own, slices=slices, levels=tuple(level for level in own.levels if level.at_s <= until_s))


def _of_one_process_each(own: Timeline) -> Timeline:
    """The first process of each pipeline rank."""
    ranks = tuple(dict.fromkeys(own.pipeline_ranks))
    places = {own.pipeline_ranks.index(rank): place for place, rank in enumerate(ranks)}
    slices = (replace(one, process=places[one.process]) for one in own.slices if one.process in places)
    levels = (replace(one, process=places[one.process]) for one in own.levels if one.process in places)
    return replace(own, pipeline_ranks=ranks, slices=tuple(slices), levels=tuple(levels))
