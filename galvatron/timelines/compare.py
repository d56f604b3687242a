"""Two timelines side by side: what the first is off, relative to the second, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from galvatron.printing import text_table
from galvatron.timelines.timeline import PIPELINE, STEPS, Timeline, without_micro_batch
from galvatron.units import format_seconds, relative_error

Key = tuple[int | None, str, str]
"""Pipeline rank, track, and name without the micro-batch."""


@dataclass(frozen=True)
class Difference:
    """What slices of one name take in a step, in the mean of the ranks of a pipeline rank.

    Attributes:
        pipeline_rank: None of messages between stages: they are the same whichever of both ranks waits for them.
        times: how many there are in a step, in the first timeline and in the second, also where not all are shown.
        first_s, second_s: what these take; of a communication what is exposed of it.
    """

    pipeline_rank: int | None
    track: str
    name: str
    times: tuple[float, float]
    first_s: float
    second_s: float

    @property
    def seconds(self) -> float:
        """By how much the first is off: negative if it is shorter."""
        return self.first_s - self.second_s

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "pipeline_rank": self.pipeline_rank,
            "track": self.track,
            "name": self.name,
            "times": list(self.times),
            "first_s": self.first_s,
            "second_s": self.second_s,
        }


def differences(first: Timeline, second: Timeline) -> tuple[Difference, ...]:
    """All names of two timelines, those that differ most before others."""
    seconds, times = _totals(first), _totals(second)
    keys = dict.fromkeys((*seconds, *times))
    found = [
        Difference(
            *key,
            (seconds.get(key, _NONE)[0], times.get(key, _NONE)[0]),
            seconds.get(key, _NONE)[1],
            times.get(key, _NONE)[1],
        )
        for key in keys
    ]
    return tuple(sorted(found, key=lambda one: -abs(one.seconds)))


_NONE = (0.0, 0.0)


def _totals(own: Timeline) -> dict[Key, tuple[float, float]]:
    """How many slices there are of each name, and what they take, in a step of a rank."""
    alike = len(own.pipeline_ranks) // len(set(own.pipeline_ranks))
    share = 1 / (own.steps * alike)
    of_micro_batch = share * own.micro_batches / own.micro_batches_shown
    of_step_s = share * float(own.about.get("predicted_s", 1.0)) / float(own.about.get("played_s", 1.0))
    found: dict[Key, tuple[float, float]] = {}
    for one in own.slices:
        rank = None if one.track == PIPELINE else own.pipeline_ranks[one.process]
        key = rank, one.track, without_micro_batch(one.name)
        times = share if one.micro_batch is None else of_micro_batch
        each_s = of_step_s if one.track == STEPS else times
        count, seconds = found.get(key, _NONE)
        found[key] = count + times, seconds + each_s * (one.seconds if one.exposed_s is None else one.exposed_s)
    return found


def table(found: Sequence[Difference], first: str, second: str, most: int = 20) -> str:
    """The largest differences as lines of text."""
    lines = text_table(("rank", "what", first, second, "off", "times"), map(_row, found[:most]), "llrrrr")
    left = len(found) - most
    return "\n".join([*lines, *([f"({left} more)"] if left > 0 else [])])


def _row(one: Difference) -> tuple[str, ...]:
    what = one.name if one.name == one.track else f"{one.track}: {one.name}"
    sign = "+" if one.seconds > 0 else "-" if one.seconds < 0 else ""
    off = f"{sign}{format_seconds(abs(one.seconds))}"
    relative = f" ({relative_error(one.first_s, one.second_s):+.0%})" if one.second_s else ""
    times = " / ".join(dict.fromkeys(f"{count:.4g}" for count in one.times))
    seconds = map(format_seconds, (one.first_s, one.second_s))
    return "" if one.pipeline_rank is None else str(one.pipeline_rank), what, *seconds, off + relative, times
