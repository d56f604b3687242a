"""Lines through what was observed at two batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from galvatron.costs.events import MARK, CollectiveCall, Event, Launch, Linear, Mark
from galvatron.costs.watch import ObservedEvent
from galvatron.ir.ops.work import Work


def fitted(batches: Sequence[int], events: Sequence[ObservedEvent]) -> Event:
    """A kernel or collective at any batch size, of one that was observed at two."""
    first, second = events
    size_bytes = Linear.through(batches, (first.size_bytes, second.size_bytes))
    if second.name == MARK and second.window is not None:
        return Mark(second.window)
    if second.axis is not None:
        return CollectiveCall(second.name, second.axis, size_bytes, second.window, second.at_once)
    return Launch(second.name, second.dtype, _work(batches, first.work, second.work), size_bytes, second.of_weight)


def all_fitted(batches: Sequence[int], first: list[ObservedEvent], second: list[ObservedEvent]) -> tuple[Event, ...]:
    """Everything of a pass at any batch size.

    The kernels of two batch sizes differ where a copy is needed at one of them only; then the larger run counts, in
    proportion to the batch.
    """
    if [(e.name, e.axis) for e in first] != [(e.name, e.axis) for e in second]:
        first = [_in_proportion(e, batches[0] / batches[1]) for e in second]
    return tuple(fitted(batches, pair) for pair in zip(first, second, strict=True))


def _work(batches: Sequence[int], first: Work | None, second: Work | None) -> Work | None:
    if first is None or second is None:
        return None
    sizes = (Linear.through(batches, pair) for pair in zip(first.sizes, second.sizes, strict=True))
    return Work(second.kind, tuple(sizes))


def _in_proportion(event: ObservedEvent, share: float) -> ObservedEvent:
    """The event of so large a share of a batch; the first size of work is how often it is done."""
    work = event.work and Work(event.work.kind, (event.work.sizes[0] * share, *event.work.sizes[1:]))
    return replace(event, size_bytes=event.size_bytes * share, work=work)
