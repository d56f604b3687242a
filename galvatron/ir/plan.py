"""Plans: which device runs which layer how. A frozen, versioned, diffable document."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from galvatron.errors import ParseError, PlanError, StrategyError, did_you_mean
from galvatron.ir import limits
from galvatron.ir.documents import is_text, read_json, shown
from galvatron.ir.files import read_text, write_text
from galvatron.ir.strategy import Strategy
from galvatron.schedules import Schedule

FORMAT = "galvatron-plan"
VERSION = 1


@dataclass(frozen=True)
class Plan:
    """One parallelisation of one program.

    `stages` holds, per pipeline stage, one strategy per layer, in layer order (layers that run once per micro-batch;
    the preamble and per-step layers follow their consumers). The schedule says which stages a pipeline rank holds, and
    every strategy of a plan uses the devices of one pipeline rank. `step_time_s` and `peak_bytes` (per pipeline rank,
    per device) are predictions, None in a plan that nobody estimated.
    """

    fingerprint: str
    global_batch_size: int
    world_size: int
    micro_batches: int
    schedule: str
    stages: tuple[tuple[Strategy, ...], ...]
    cluster: str = ""
    step_time_s: float | None = None
    peak_bytes: tuple[int, ...] | None = None

    @property
    def pipeline_degree(self) -> int:
        """The number of pipeline ranks."""
        return len(self.stages) // Schedule.parse(self.schedule).stages_per_rank

    @property
    def holders(self) -> tuple[int, ...]:
        """For each stage, the pipeline rank that holds it."""
        return Schedule.parse(self.schedule).holders(self.pipeline_degree)

    @property
    def devices_per_stage(self) -> int:
        """The devices of a pipeline rank, which all its stages use."""
        return self.world_size // self.pipeline_degree

    @property
    def shards(self) -> int:
        """What every micro-batch must divide into: the least common multiple of the data-parallel degrees."""
        return math.lcm(*(strategy.degree("dp") for strategy in self.strategies))

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """One strategy per layer of the whole program."""
        return tuple(s for stage in self.stages for s in stage)

    def __str__(self) -> str:
        """One line for a reader: `pp2/m4/1f1b: stage 0 dp1-tp2 ×3 | stage 1 dp2-tp1 ×2, dp1-tp2`."""
        stages = " | ".join(
            f"stage {i} " + ", ".join(f"{s} ×{n}" if n > 1 else str(s) for s, n in runs(stage))
            for i, stage in enumerate(self.stages)
        )
        return f"pp{self.pipeline_degree}/m{self.micro_batches}/{self.schedule}: {stages}"

    def to_json(self) -> str:
        """A JSON document with one line per run of equal strategies; `from_json` gives back an equal plan."""
        stages = ",\n".join(_stage_json(stage) for stage in self.stages)
        head = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "cluster": self.cluster,
            "world_size": self.world_size,
            "global_batch_size": self.global_batch_size,
            "micro_batches": self.micro_batches,
            "schedule": self.schedule,
            "step_time_s": self.step_time_s,
            "peak_bytes": self.peak_bytes,
        }
        lines = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
        return f'{{\n{lines}  "stages": [\n{stages}\n  ]\n}}\n'

    @staticmethod
    def from_json(text: str) -> Plan:
        """Reads a plan document.

        Raises:
            ParseError: malformed JSON, with line and column.
            PlanError: a field is missing, unknown or has bad content; the message names it.
        """
        return _read_document(read_json(text, "plan"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan document, atomically.

        Raises:
            PlanError: the file cannot be written.
        """
        try:
            write_text(path, self.to_json())
        except (OSError, ValueError) as error:
            raise PlanError(f"cannot write plan {os.fspath(path)!r}: {error}") from None

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Reads a plan file.

        Raises:
            PlanError: the file cannot be read, or see `from_json`.
            ParseError: see `from_json`; the message starts with the path.
        """
        try:
            text = read_text(path)
        except UnicodeDecodeError:
            raise PlanError(f"cannot read plan {os.fspath(path)!r}: it is not a text file") from None
        except (OSError, ValueError) as error:
            raise PlanError(f"cannot read plan {os.fspath(path)!r}: {error}") from None
        try:
            return Plan.from_json(text)
        except ParseError as error:
            located = ParseError(f"{os.fspath(path)}: {error}")
            located.line, located.column = error.line, error.column
            raise located from None
        except PlanError as error:
            raise PlanError(f"{os.fspath(path)}: {error}") from None


def runs(strategies: Sequence[Strategy]) -> list[tuple[Strategy, int]]:
    """Neighbouring equal strategies as (strategy, count)."""
    return [(strategy, len(list(group))) for strategy, group in itertools.groupby(strategies)]


def _stage_json(stage: Sequence[Strategy]) -> str:
    lines = ",\n".join(f'      {{"layers": {n}, "strategy": {json.dumps(str(s))}}}' for s, n in runs(stage))
    return f"    [\n{lines}\n    ]"


def _read_document(document: Any) -> Plan:
    if not isinstance(document, dict):
        raise PlanError(f"a plan is a JSON object, not a {type(document).__name__}")
    if document.get("format") != FORMAT:
        raise PlanError(f"plan field 'format' must be {FORMAT!r}, not {shown(document.get('format'))}")
    if type(document.get("version")) is not int or document["version"] != VERSION:
        raise PlanError(
            f"plan field 'version' is {shown(document.get('version'))}; "
            f"this Galvatron reads version {VERSION}: search again"
        )
    fields = {k: v for k, v in document.items() if k not in ("format", "version")}
    for key in fields:
        if key not in _FIELDS:
            raise PlanError(f"plan field {shown(key)} is unknown; {did_you_mean(key, _FIELDS)}")
    for key, (read, required) in _FIELDS.items():
        if key in fields:
            fields[key] = read(key, fields[key])
        elif required:
            raise PlanError(f"plan field {key!r} is missing")
    plan = Plan(**fields)
    check_shape(plan)
    if plan.peak_bytes is not None and len(plan.peak_bytes) != plan.pipeline_degree:
        raise PlanError(
            f"plan field 'peak_bytes' has {len(plan.peak_bytes)} entries for {plan.pipeline_degree} pipeline ranks"
        )
    return plan


def _text(key: str, value: Any) -> str:
    if not is_text(value):
        raise PlanError(f"plan field {key!r} must be text, not {shown(value)}")
    return value


def _count(key: str, value: Any, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PlanError(f"plan field {key!r} must be a whole number of at least 1, not {shown(value)}")
    if value > most:
        raise PlanError(f"plan field {key!r} must be at most {most}, not {shown(value)}")
    return value


def _samples(key: str, value: Any) -> int:
    return _count(key, value, limits.SAMPLES)


def _devices(key: str, value: Any) -> int:
    return _count(key, value, limits.DEVICES)


def _repeats(key: str, value: Any) -> int:
    return _count(key, value, limits.REPEATS)


def _schedule(key: str, value: Any) -> str:
    try:
        return str(Schedule.parse(value))
    except PlanError as error:
        raise PlanError(f"plan field {key!r}: {error}") from None


def _optional_seconds(key: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= sys.float_info.max:
        raise PlanError(f"plan field {key!r} must be a number of seconds or null, not {shown(value)}")
    return float(value)


def _optional_sizes(key: str, value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(v) is int and 0 <= v <= limits.SIZE for v in value):
        raise PlanError(f"plan field {key!r} must be a list of byte counts or null, not {shown(value)}")
    return tuple(value)


def _stages(key: str, value: Any) -> tuple[tuple[Strategy, ...], ...]:
    if not isinstance(value, list) or not value or not all(isinstance(stage, list) and stage for stage in value):
        raise PlanError(f"plan field {key!r} must be a list with one non-empty list of runs per stage")
    left, stages = limits.REPEATS, []
    for i, stage in enumerate(value):
        strategies: list[Strategy] = []
        for j, entry in enumerate(stage):
            strategy, layers = _run(f"{key}[{i}][{j}]", entry)
            left -= layers
            if left < 0:
                raise PlanError(f"plan field '{key}[{i}][{j}]': the plan has more than {limits.REPEATS} layers")
            strategies += [strategy] * layers
        stages.append(tuple(strategies))
    return tuple(stages)


def _run(key: str, run: Any) -> tuple[Strategy, int]:
    if not isinstance(run, dict) or set(run) != {"layers", "strategy"}:
        raise PlanError(f'plan field {key!r} must look like {{"layers": 4, "strategy": "dp2-tp2"}}, not {shown(run)}')
    try:
        strategy = Strategy.parse(_text(f"{key}.strategy", run["strategy"]))
    except StrategyError as error:
        raise PlanError(f"plan field '{key}.strategy': {error}") from None
    return strategy, _repeats(f"{key}.layers", run["layers"])


_FIELDS: dict[str, tuple[Callable[[str, Any], Any], bool]] = {
    "fingerprint": (_text, True),
    "cluster": (_text, False),
    "world_size": (_devices, True),
    "global_batch_size": (_samples, True),
    "micro_batches": (_repeats, True),
    "schedule": (_schedule, True),
    "step_time_s": (_optional_seconds, False),
    "peak_bytes": (_optional_sizes, False),
    "stages": (_stages, True),
}
"""Fields of a plan document besides format and version: how to read each, and whether it must be there."""


def check_shape(plan: Plan) -> None:
    """Checks what a plan must be in itself: whole stages, equal device counts, divisible batch, a schedule that can
    run.

    Raises:
        PlanError: says which number to change.
    """
    schedule, stages = Schedule.parse(plan.schedule), len(plan.stages)
    if not stages or stages % schedule.stages_per_rank:
        raise PlanError(
            f"schedule {schedule} gives every pipeline rank {schedule.stages_per_rank} stages; the plan has {stages}"
        )
    degree = plan.pipeline_degree
    if plan.world_size % degree:
        raise PlanError(f"{plan.world_size} devices cannot be divided into {degree} pipeline ranks")
    for index, stage in enumerate(plan.stages):
        for strategy, _ in runs(stage):
            if strategy.devices != plan.devices_per_stage:
                raise PlanError(
                    f"stage {index}: strategy {str(strategy)!r} is for {strategy.devices} devices, but "
                    f"{plan.world_size} devices in {degree} pipeline ranks are {plan.devices_per_stage} each"
                )
    schedule.check(degree, plan.micro_batches)
    check_batch(plan, plan.global_batch_size)


def check_batch(plan: Plan, global_batch_size: int) -> None:
    """Checks that a batch divides into micro-batches and shards.

    Raises:
        PlanError: says by what the batch must be divisible.
    """
    for strategy in dict.fromkeys(plan.strategies):
        parts = plan.micro_batches * strategy.degree("dp")
        if global_batch_size % parts:
            raise PlanError(
                f"a batch of {global_batch_size} samples cannot be divided into {plan.micro_batches} micro-batches of "
                f"{strategy.degree('dp')} data-parallel shards (strategy {str(strategy)!r}); use a batch divisible by "
                f"{parts}, or another number of micro-batches"
            )
