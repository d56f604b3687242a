"""A timeline: slices of time on the tracks of processes, and memory beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from galvatron.schedules import Kind

STEPS, COMPUTE, LAYERS, PARAMETERS, GRADIENTS, PIPELINE, OTHERS = TRACKS = (
    "steps", "compute", "collectives in layers", "gathers of parameters", "sums of gradients", "from other stages",
    "other communication",
)  # fmt: skip
"""The tracks of a process, from top to bottom."""

MEMORY = "memory"
"""What the counter is called."""

STEP, OPTIMIZER, EPILOGUE, SENDING = "step", "optimizer", "end of the loss", "send"

LAUNCHING = "launching_us"
"""An argument of a layer: microseconds for which the device waits for the process to launch its kernels."""

PREDICTED, MEASURED = "predicted", "measured"
"""Kinds of timelines."""


def computation(kind: Kind, stage: int, micro_batch: int) -> str:
    """The name of what a rank does with a micro-batch on a stage."""
    return EPILOGUE if kind is Kind.EPILOGUE else f"{kind.value}, stage {stage} #{micro_batch}"


def message(what: str, stage: int, micro_batch: int) -> str:
    """The name of the `values` or `gradients` that a stage sends to another one."""
    return f"{what} of stage {stage} #{micro_batch}"


def of_layer(what: str, layer: str) -> str:
    """The name of a part of such a computation: the `forward`, `backward` or `recompute` of a layer."""
    return f"{what} {layer}"


_MICRO_BATCH = re.compile(r" #\d+$")


def without_micro_batch(name: str) -> str:
    """The name that all micro-batches have in common."""
    return _MICRO_BATCH.sub("", name)


@dataclass(frozen=True)
class Slice:
    """A stretch of time on a track of a process.

    Attributes:
        exposed_s: of a communication, for how long its rank does nothing else; None for all others.
        args: what else is known of it: stage, layer and micro-batch.
    """

    process: int
    track: str
    name: str
    begin_s: float
    seconds: float
    exposed_s: float | None = None
    args: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.begin_s + self.seconds

    @property
    def micro_batch(self) -> int | None:
        """The micro-batch that it is for; None for what is done once in a step."""
        found = self.args.get("micro_batch")
        return found if isinstance(found, int) and self.name != EPILOGUE else None


@dataclass(frozen=True)
class Level:
    """Bytes that a process has in use from a moment on, by kind."""

    process: int
    at_s: float
    bytes_of: Mapping[str, float]


@dataclass(frozen=True)
class Timeline:
    """What processes do in some steps.

    Attributes:
        kind: `PREDICTED` or `MEASURED`.
        pipeline_ranks: by process, the pipeline rank of which it is.
        steps: that it is of.
        about: what else is known: how many micro-batches a step has and how many are shown, if these are not all, as
            "micro_batches" and "micro_batches_shown"; of a predicted step "predicted_s", and "played_s" of what is
            shown of it.
    """

    kind: str
    pipeline_ranks: Sequence[int]
    steps: int
    slices: Sequence[Slice]
    levels: Sequence[Level] = ()
    about: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def micro_batches(self) -> int:
        """That a step has."""
        return int(self.about.get("micro_batches", self.micro_batches_shown))

    @property
    def micro_batches_shown(self) -> int:
        """Of which there are slices: of a step with very many, some of them."""
        counted = max((m for one in self.slices if (m := one.micro_batch) is not None), default=0) + 1
        return int(self.about.get("micro_batches_shown", counted))


def in_turn(slices: Iterable[Slice]) -> list[Slice]:
    """Communications of one track of one process, which are under way at the same time, one after the other: each is
    shown from the end of the one before it on."""
    found: list[Slice] = []
    before_s = -math.inf
    for one in sorted(slices, key=lambda one: one.end_s):
        begin_s = min(max(one.begin_s, before_s), one.end_s)
        found.append(replace(one, begin_s=begin_s, seconds=one.end_s - begin_s))
        before_s = one.end_s
    return found
