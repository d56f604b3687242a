"""Which computation waits for which one of another process: arrows from slice to slice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from galvatron.schedules import Kind
from galvatron.timelines.timeline import COMPUTE, Slice, Timeline, computation

_WAITS_FOR = {
    Kind.FORWARD: ("values", -1, (Kind.FORWARD,)),
    Kind.BACKWARD: ("gradients", 1, (Kind.BACKWARD, Kind.BACKWARD_INPUT)),
    Kind.BACKWARD_INPUT: ("gradients", 1, (Kind.BACKWARD, Kind.BACKWARD_INPUT)),
}
"""What a computation is sent, by the stage how far away, and by which of its computations."""


@dataclass(frozen=True)
class Arrow:
    """A message, from the computation that makes it to the one that reads it."""

    what: str
    sender: Slice
    receiver: Slice


def arrows(own: Timeline) -> Iterator[Arrow]:
    """Those of all messages between processes, which have the same place in their pipeline ranks."""
    places = _places(own)
    computed = [one for one in own.slices if one.track == COMPUTE and _is_computation(one)]
    known = {(places[one.process], one.name, one.args.get("step")): one for one in computed}
    for one in computed:
        stage, micro_batch = int(one.args["stage"]), int(one.args["micro_batch"])
        for kind, (what, away, makers) in _WAITS_FOR.items():
            if one.name != computation(kind, stage, micro_batch):
                continue
            for maker in makers:
                name = computation(maker, stage + away, micro_batch)
                sender = known.get((places[one.process], name, one.args.get("step")))
                if sender is not None and sender.process != one.process:
                    yield Arrow(what, sender, one)


def _is_computation(one: Slice) -> bool:
    """Whether it is all that a rank does with a micro-batch on a stage, and not a part of that."""
    return "stage" in one.args and "micro_batch" in one.args and "layer" not in one.args


def _places(own: Timeline) -> list[int]:
    """Of each process, its place among those of its pipeline rank."""
    seen: defaultdict[Any, int] = defaultdict(int)
    found: list[int] = []
    for rank in own.pipeline_ranks:
        found.append(seen[rank])
        seen[rank] += 1
    return found
