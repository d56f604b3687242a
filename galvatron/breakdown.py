"""What a predicted step is made of: seconds and bytes of each stage by kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from galvatron.costs.memory import KINDS
from galvatron.costs.objective import Setting, StageReport

TITLES = {
    "compute": "compute",
    "host": "host, launching kernels",
    "communication": "gathered or under way",
    "awaited": "collectives in layers",
    "gather": "gathers of parameters",
    "reduce": "reduce-scatters of gradients",
    "transfer": "from other stages",
    "sync": "sums of gradients",
    "publish": "gathers of new values",
    "update": "optimizer",
    "epilogue": "end of the loss",
    "bubble": "waiting",
    "others": "other stages of the rank",
    "working": "working memory",
    "fixed": "workspaces of libraries",
}
"""What readers are shown for the kinds of seconds and bytes: those of the fields of a report, and `others`."""

_PER_STEP = frozenset({"sync", "publish", "update", "epilogue", "bubble"})
"""Kinds whose seconds are those of a step; of others, of a micro-batch."""


@dataclass(frozen=True)
class Part:
    """Seconds of one kind in a step of one device: those that lengthen the step, and those that run beside others."""

    kind: str
    exposed_s: float
    hidden_s: float = 0.0


@dataclass(frozen=True)
class StageBreakdown:
    """What a step of a device that holds a stage is made of.

    Attributes:
        times: exposed seconds add up to the step; where ranks share cores to more, if a stage computes faster while
            others wait than its seconds say.
        memory: bytes by kind, which add up to the peak of a device that holds this stage alone.
    """

    times: tuple[Part, ...]
    memory: tuple[tuple[str, float], ...]

    @property
    def step_s(self) -> float:
        return sum(part.exposed_s for part in self.times)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        times = {part.kind: {"exposed_s": part.exposed_s, "hidden_s": part.hidden_s} for part in self.times}
        return {"times": times, "memory_bytes": dict(self.memory)}


def breakdown(step_time_s: float, stages: Sequence[StageReport], micro_batches: int) -> tuple[StageBreakdown, ...]:
    """The stages of an estimate, one by one."""
    found: list[StageBreakdown] = []
    for stage in stages:
        times = tuple(_times(stage, micro_batches))
        rest_s = step_time_s - sum(part.exposed_s for part in times)
        if rest_s > _ROUNDING * step_time_s:  # where a rank holds several stages
            times = (*times, Part("others", rest_s))
        found.append(StageBreakdown(times, tuple(_memory(stage))))
    return tuple(found)


_ROUNDING = 1e-9


@dataclass(frozen=True)
class CriticalRank:
    """The pipeline rank that waits least for others, whose work therefore is what a step takes.

    Attributes:
        times: seconds of its step by kind, of all its stages, the waiting among them.
    """

    rank: int
    times: tuple[tuple[str, float], ...]

    @staticmethod
    def of(step_time_s: float, stages: Sequence[StageReport], setting: Setting) -> CriticalRank:
        """That of an estimate."""
        holders = setting.holders
        rank = holders[min(range(len(stages)), key=lambda index: stages[index].bubble_s)]
        times: dict[str, float] = defaultdict(float)
        for parts, holder in zip(breakdown(step_time_s, stages, setting.micro_batches), holders, strict=True):
            for part in parts.times if holder == rank else ():
                if part.exposed_s and part.kind not in ("bubble", "others"):
                    times[part.kind] += part.exposed_s
        waits_s = step_time_s - sum(times.values())
        if waits_s > _ROUNDING * step_time_s:
            times["bubble"] = waits_s
        return CriticalRank(rank, tuple(times.items()))

    @property
    def most(self) -> tuple[str, float]:
        """The kind of what it does that takes most of the step, and its seconds."""
        done = (own for own in self.times if own[0] != "bubble")
        return max(done, key=lambda own: own[1], default=("compute", 0.0))


def _times(stage: StageReport, micro_batches: int) -> Iterator[Part]:
    seconds = {f.name: getattr(stage, f.name) for f in fields(stage) if f.name.endswith("_s")}
    for name, exposed_s in seconds.items():
        if name.endswith("_hidden_s"):
            continue
        kind = name.removesuffix("_s")
        times = 1 if kind in _PER_STEP else micro_batches
        yield Part(kind, times * exposed_s, times * seconds.get(f"{kind}_hidden_s", 0.0))


def _memory(stage: StageReport) -> Iterator[tuple[str, float]]:
    memory = stage.memory
    yield from ((kind, getattr(memory, kind)) for kind in KINDS)
