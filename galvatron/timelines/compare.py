"""Two timelines side by side: what takes another time in one than in the other, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from galvatron.timelines.timeline import PIPELINE, Timeline, without_micro_batch
from galvatron.units import format_seconds

Key = tuple[int | None, str, str]
"""Pipeline rank, track, and name without the micro-batch."""


@dataclass(frozen=True)
class Difference:
    """What slices of one name take in a step, in the mean of the ranks of a pipeline rank.

    Attributes:
        pipeline_rank: None of messages between stages: they are the same whichever of both ranks waits for them.
        times: how many slices there are, in the first timeline and in the second.
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
        """By how much the second takes longer."""
        return self.second_s - self.first_s

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
    count: Counter[Key] = Counter()
    seconds: dict[Key, float] = {}
    for one in own.slices:
        rank = None if one.track == PIPELINE else own.pipeline_ranks[one.process]
        key = rank, one.track, without_micro_batch(one.name)
        count[key] += 1
        seconds[key] = seconds.get(key, 0.0) + (one.seconds if one.exposed_s is None else one.exposed_s)
    share = 1 / (own.steps * alike)
    return {key: (count[key] * share, seconds[key] * share) for key in seconds}


def table(found: Sequence[Difference], first: str, second: str, most: int = 20) -> str:
    """The largest differences as lines of text."""
    head = ("rank", "what", first, second, "differs by", "times")
    rows = [head, *(_row(one) for one in found[:most])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [_line(row, widths) for row in rows]
    left = len(found) - len(rows) + 1
    return "\n".join([*lines, *([f"({left} more)"] if left > 0 else [])])


def _row(one: Difference) -> tuple[str, ...]:
    what = one.name if one.name == one.track else f"{one.track}: {one.name}"
    sign = "+" if one.seconds > 0 else "-" if one.seconds < 0 else ""
    differs = f"{sign}{format_seconds(abs(one.seconds))}"
    relative = f" ({one.second_s / one.first_s - 1:+.0%})" if one.first_s else ""
    times = " / ".join(f"{count:.4g}" for count in dict.fromkeys(one.times))
    seconds = map(format_seconds, (one.first_s, one.second_s))
    return "" if one.pipeline_rank is None else str(one.pipeline_rank), what, *seconds, differs + relative, times


def _line(row: Iterable[str], widths: Sequence[int]) -> str:
    rank, what, *others = (
        text.ljust(width) if place < 2 else text.rjust(width)
        for place, (text, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join((rank, what, *others)).rstrip()
