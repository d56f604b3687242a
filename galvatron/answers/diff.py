"""In what two plans differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from galvatron.ir.plan import Plan, kept_text
from galvatron.units import format_bytes, format_seconds


@dataclass(frozen=True)
class Difference:
    """Something that two plans say differently: a field, a tie, or what becomes of layers that follow each other."""

    what: str
    first: str
    second: str


def differences(first: Plan, second: Plan, names: Sequence[str] = ()) -> tuple[Difference, ...]:
    """All differences of two plans, layer by layer if they have equally many.

    Args:
        names: of the layers; they have numbers where they have no names.
    """
    found = [
        Difference(what, say(getattr(first, field)), say(getattr(second, field)))
        for field, (what, say) in _FIELDS.items()
        if getattr(first, field) != getattr(second, field)
    ]
    ties = [{name: kept_text(kept) for name, kept in plan.ties} for plan in (first, second)]
    for name in dict.fromkeys([*ties[0], *ties[1]]):
        kept = [own.get(name, "") for own in ties]
        if kept[0] != kept[1]:
            found.append(Difference(f"tie {name}", *kept))
    if len(first.strategies) != len(second.strategies):
        counts = (f"{len(plan.strategies)} layers" for plan in (first, second))
        return (*found, Difference("layers", *counts))
    return (*found, *_layers(first, second, names))


def _seconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else format_seconds(seconds)


def _bytes(peaks: tuple[int, ...] | None) -> str:
    return "unknown" if peaks is None else ", ".join(map(format_bytes, peaks))


_FIELDS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "fingerprint": ("fingerprint of the program", str),
    "cluster": ("cluster", str),
    "global_batch_size": ("global batch", str),
    "world_size": ("devices", str),
    "pipeline_degree": ("pipeline ranks", str),
    "micro_batches": ("micro-batches", str),
    "schedule": ("schedule", str),
    "skew": ("rows of the fullest rank over the mean", lambda skew: "none choose" if skew is None else f"{skew:g}"),
    "overlap": ("collectives beside computation", lambda overlap: "where that pays" if overlap else "none"),
    "step_time_s": ("step time", _seconds),
    "peak_bytes": ("peak memory by pipeline rank", _bytes),
}
"""Fields that are compared: what they are called, and how they are written."""


def _layers(first: Plan, second: Plan, names: Sequence[str]) -> list[Difference]:
    """One difference for each run of layers that are alike in both plans, and not between them."""
    pairs = list(zip(_placed(first), _placed(second), strict=True))
    found: list[Difference] = []
    for (one, other), run in groupby(range(len(pairs)), key=lambda index: pairs[index]):
        indices = list(run)
        if one != other:
            ends = [names[i] if i < len(names) else f"layer {i}" for i in (indices[0], indices[-1])]
            what = ends[0] if len(indices) == 1 else f"{ends[0]} … {ends[1]} ({len(indices)})"
            found.append(Difference(what, one, other))
    return found


def _placed(plan: Plan) -> list[str]:
    """Of each layer, its stage and its strategy."""
    return [f"stage {index}: {strategy}" for index, stage in enumerate(plan.stages) for strategy in stage]
