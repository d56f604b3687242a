"""A timeline: slices of time on the tracks of processes, and memory beside them, as trace events in JSON.

The format is that of the Trace Event Format's complete events (`X`), counters (`C`) and metadata (`M`), in
microseconds; what it has no word for stands under `otherData`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from galvatron.errors import ParseError
from galvatron.ir.documents import is_text, read_json, shown
from galvatron.ir.limits import TIMELINE_CHARACTERS
from galvatron.schedules import Kind

STEPS, COMPUTE, LAYERS, PARAMETERS, GRADIENTS, PIPELINE, OTHERS = TRACKS = (
    "steps", "compute", "collectives in layers", "gathers of parameters", "sums of gradients", "from other stages",
    "other communication",
)  # fmt: skip
"""The tracks of a process, from top to bottom."""

MEMORY = "memory"
"""What the counter is called."""

STEP, OPTIMIZER, EPILOGUE, SENDING = "step", "optimizer", "end of the loss", "send"

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
    args: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def end_s(self) -> float:
        """When it is over."""
        return self.begin_s + self.seconds


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
        about: what else a reader may want to know, for `otherData`.
    """

    kind: str
    pipeline_ranks: Sequence[int]
    steps: int
    slices: Sequence[Slice]
    levels: Sequence[Level] = ()
    about: Mapping[str, str | int | float] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of a file. On each track slices are in each other or apart, in the order of their beginnings."""
        events = [*self._metadata(), *map(_event, _ordered(self.slices)), *map(_counter, self.levels)]
        own = {"kind": self.kind, "pipeline_ranks": list(self.pipeline_ranks), "steps": self.steps, **self.about}
        head = json.dumps({"displayTimeUnit": "ms", "otherData": {"galvatron": own}}, allow_nan=False)
        lines = ",\n".join(json.dumps(event, allow_nan=False) for event in events)
        return f'{head[:-1]}, "traceEvents": [\n{lines}\n]}}\n'

    def _metadata(self) -> Iterator[dict[str, Any]]:
        for process, pipeline_rank in enumerate(self.pipeline_ranks):
            rank = f", rank {process}" if self.kind == MEASURED else ""
            yield _named("process_name", process, 0, name=f"pipeline rank {pipeline_rank}{rank}")
            yield _named("process_sort_index", process, 0, sort_index=process)
            for place, track in enumerate(TRACKS):
                yield _named("thread_name", process, place, name=track)
                yield _named("thread_sort_index", process, place, sort_index=place)

    @staticmethod
    def from_json(text: str, what: str) -> Timeline:
        """Reads what `to_json` wrote.

        Raises:
            ParseError: it is no such text.
        """
        data = read_json(text, what, TIMELINE_CHARACTERS)
        own = _member(_member(data, "otherData", dict, what), "galvatron", dict, what)
        kind, steps = _member(own, "kind", str, what), _member(own, "steps", int, what)
        ranks = _member(own, "pipeline_ranks", list, what)
        if kind not in (PREDICTED, MEASURED) or steps < 1 or not ranks or any(type(rank) is not int for rank in ranks):
            raise ParseError(f"{what} is no timeline of galvatron: otherData.galvatron says {shown(own)}")
        slices: list[Slice] = []
        levels: list[Level] = []
        for number, event in enumerate(_member(data, "traceEvents", list, what)):
            where = f"{what}, event {number}"
            phase = _member(event, "ph", str, where)
            if phase == "X":
                slices.append(_slice(event, where, len(ranks)))
            elif phase == "C":
                args = _member(event, "args", dict, where)
                at_s = _seconds(event, "ts", where)
                levels.append(
                    Level(_process(event, where, len(ranks)), at_s, {k: _number(v, where) for k, v in args.items()})
                )
        return Timeline(kind, tuple(ranks), steps, tuple(slices), tuple(levels))


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


def _ordered(slices: Iterable[Slice]) -> Iterator[Slice]:
    """Track by track; of slices that begin together the one around the others first."""

    def track(one: Slice) -> tuple[int, int]:
        return one.process, TRACKS.index(one.track)

    for _, own in groupby(sorted(slices, key=track), track):
        yield from sorted(own, key=lambda one: (one.begin_s, -one.seconds))


def _event(one: Slice) -> dict[str, Any]:
    exposed = {} if one.exposed_s is None else {"exposed_us": one.exposed_s * 1e6}
    return {
        "ph": "X",
        "pid": one.process,
        "tid": TRACKS.index(one.track),
        "name": one.name,
        "cat": one.track,
        "ts": one.begin_s * 1e6,
        "dur": one.seconds * 1e6,
        "args": {**one.args, **exposed},
    }


def _counter(one: Level) -> dict[str, Any]:
    return {"ph": "C", "pid": one.process, "tid": 0, "name": MEMORY, "ts": one.at_s * 1e6, "args": dict(one.bytes_of)}


def _named(what: str, process: int, track: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": track, "name": what, "args": args}


def _slice(event: Any, where: str, processes: int) -> Slice:
    track, args = _member(event, "cat", str, where), _member(event, "args", dict, where)
    if track not in TRACKS or not all(is_text(v) or isinstance(v, (int, float)) for v in args.values()):
        raise ParseError(
            f"{where} is on a track that no timeline has, or has arguments of another kind: {shown(event)}"
        )
    exposed = args.pop("exposed_us", None)
    return Slice(
        _process(event, where, processes),
        track,
        _member(event, "name", str, where),
        _seconds(event, "ts", where),
        _seconds(event, "dur", where),
        None if exposed is None else _number(exposed, where) / 1e6,
        args,
    )


def _process(event: Any, where: str, processes: int) -> int:
    process = _member(event, "pid", int, where)
    if not 0 <= process < processes:
        raise ParseError(f"{where} is of process {process}, and there are {processes}")
    return process


def _member(data: Any, name: str, kind: type, where: str) -> Any:
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool) or (kind is str and not is_text(value)):
        raise ParseError(f"{where} is no part of a timeline of galvatron: {name!r} is {shown(value)}")
    return value


def _seconds(event: Any, name: str, where: str) -> float:
    return _number(event.get(name), where) / 1e6


def _number(value: Any, where: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > 1e300:
        raise ParseError(f"{where} has {shown(value)} where a number is needed")
    return float(value)
