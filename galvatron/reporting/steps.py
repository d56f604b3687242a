"""The step of a plan as figures: short, since a large plan has a hundred thousand computations."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from galvatron.costs.memory import KINDS
from galvatron.costs.steps import Once, spent
from galvatron.costs.timeline import Played
from galvatron.reporting.plans import Estimated
from galvatron.schedules import Kind

TICK_S = 1e-9
"""Times are whole numbers of this."""


def step_data(own: Estimated) -> dict[str, Any]:
    """When each rank does what, and what it has in use.

    A computation is three numbers, each in an array of its own: which it is, by its place in `computations`; how long
    after the end of the one before it begins; and how long it takes. Its micro-batch is how often it was there before.
    """
    kinds = (Kind.FORWARD, Kind.BACKWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT)
    done = {(action.kind, action.stage) for rank in own.step.ranks for action, _ in rank}
    places = {(kind, stage): 0 for stage in range(len(own.stages)) for kind in kinds if (kind, stage) in done}
    places = {key: place for place, key in enumerate(places)}
    computations = [
        {"stage": stage, "kind": kind.name, "releases": kind in (Kind.BACKWARD, Kind.BACKWARD_WEIGHT)}
        | {"spent": {name: seconds for name, seconds in asdict(spent(own.stages[stage])[kind]).items() if seconds}}
        for kind, stage in places
    ]
    return {
        "tick_s": TICK_S,
        "micro_batches": own.step.micro_batches,
        "pipeline_s": own.step.pipeline_s,
        "played_s": own.step.seconds,
        "computations": computations,
        "ranks": [_rank(own, rank, order, places) for rank, order in enumerate(own.step.ranks)],
    }


def _rank(own: Estimated, rank: int, order: Played, places: dict[tuple[Kind, int], int]) -> dict[str, Any]:
    what: list[int] = []
    waits: list[int] = []
    takes: list[int] = []
    before = 0
    for action, span in order:
        begin, end = round(span.begin_s / TICK_S), round(span.end_s / TICK_S)
        what.append(places[action.kind, action.stage])
        waits.append(begin - before)
        takes.append(end - begin)
        before = end
    spent_once = Once.of(rank, own.setting, own.stages)
    once = {"exposed": spent_once.exposed_s, "hidden": spent_once.hidden_s}
    return {"what": what, "waits": waits, "takes": takes, "once": once, "memory": _memory(own, rank)}


def _memory(own: Estimated, rank: int) -> dict[str, Any]:
    """What activations hold during each computation is a place in `levels`."""
    memory = own.memory[rank]
    levels = {size: place for place, size in enumerate(dict.fromkeys(memory.activations))}
    return {
        "state": [getattr(memory.state, kind) for kind in KINDS],
        "levels": list(levels),
        "held": [levels[size] for size in memory.activations],
        "kept": {str(stage): size for stage, size in memory.kept.items()},
        "extra_bytes": memory.extra.total,
        "update_bytes": memory.update_bytes,
        "peak_bytes": memory.peak_bytes,
    }
