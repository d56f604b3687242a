"""Plans: which device runs which layer how. A frozen, versioned, diffable document."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from galvatron.errors import ParseError, PlanError, StrategyError
from galvatron.ir import galvatron2, limits
from galvatron.ir.documents import is_text, read_json, shown
from galvatron.ir.files import read_text, write_text
from galvatron.ir.plan_rules import problems, require
from galvatron.ir.records import APART, OPTIONAL, fields_of, read_members
from galvatron.ir.strategy import Strategy
from galvatron.printing import html_table
from galvatron.schedules import Schedule
from galvatron.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from galvatron.ir.program import Program

FORMAT = "galvatron-plan"
VERSION = 1

Ties = tuple[tuple[str, Strategy | None], ...]
"""Of each tie (`galvatron.ir.ties`), by its first parameter, how it is kept: None for whole, or as under a strategy,
which is the `keeping` of those of all its layers."""

WHOLE = "whole"
"""How text says None there."""


@dataclass(frozen=True)
class Searched:
    """How a plan was found, and what is proven of it.

    Attributes:
        space: what was searched, in words; empty if nothing was.
        budget_bytes: of each device.
        bound_s: no plan of the space that fits the budget takes fewer seconds, by the cost model.
        gap: the share of its time that the plan may be slower than the fastest one by.
        complete: whether the search came to its end; otherwise its time was over, or it was interrupted.
    """

    space: str = ""
    budget_bytes: int = 0
    bound_s: float = 0.0
    gap: float = 0.0
    complete: bool = True


@dataclass(frozen=True)
class Plan:
    """One parallelisation of one program.

    `stages` holds, per pipeline stage, one strategy per layer, in layer order (layers that run once per micro-batch;
    the preamble and per-step layers follow their consumers). The schedule says which stages a pipeline rank holds, and
    every strategy of a plan uses the devices of one pipeline rank. `ties` says how parameters are kept that several
    layers share; what it leaves out is settled when the plan meets its program (`galvatron.ir.planned.fitted`).
    `step_time_s` and `peak_bytes` (per pipeline rank, per device) are predictions, None in a plan that nobody
    estimated. `skew` says how unevenly rows may choose (`galvatron.ir.skew`) where predictions hold; None where none
    do. With `overlap`, collectives of layers run beside computation where that pays. `search` says how it was found,
    if a search did.
    """

    fingerprint: str
    cluster: str = field(default="", kw_only=True)
    global_batch_size: int
    world_size: int
    micro_batches: int
    schedule: str
    ties: Ties = field(default=(), kw_only=True, metadata=APART)
    stages: tuple[tuple[Strategy, ...], ...] = field(metadata=APART)
    step_time_s: float | None = None
    peak_bytes: tuple[int, ...] | None = None
    skew: float | None = field(default=None, kw_only=True, metadata=OPTIONAL)
    overlap: bool = field(default=True, kw_only=True, metadata=OPTIONAL)
    search: Searched = field(default=Searched(), kw_only=True)

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
        return math.lcm(*(strategy.sample_shards for strategy in self.strategies))

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """One strategy per layer of the whole program."""
        return tuple(s for stage in self.stages for s in stage)

    def for_batch(self, global_batch_size: int) -> Plan:
        """The same for another batch, for which nothing is predicted yet."""
        if global_batch_size == self.global_batch_size:
            return self
        unknown = {"step_time_s": None, "peak_bytes": None, "search": Searched()}
        return replace(self, global_batch_size=global_batch_size, **unknown)

    def __str__(self) -> str:
        """One line for a reader: `pp2/m4/1f1b: stage 0 dp1-tp2 ×3 | stage 1 dp2-tp1 ×2, dp1-tp2`; where layers share
        parameters, also `| table.weight whole`."""
        stages = " | ".join(
            f"stage {i} " + ", ".join(f"{s} ×{n}" if n > 1 else str(s) for s, n in runs(stage))
            for i, stage in enumerate(self.stages)
        )
        ties = "".join(f" | {name} {kept_text(kept)}" for name, kept in self.ties)
        return f"pp{self.pipeline_degree}/m{self.micro_batches}/{self.schedule}: {stages}{ties}"

    @property
    def title(self) -> str:
        """What it is besides its strategies: `4 devices on a100-80g:1x4: pp2, 1 micro-batch, zbv, global batch 16`."""
        where = f" on {self.cluster}" if self.cluster else ""
        return (
            f"{format_count(self.world_size, 'device')}{where}: pp{self.pipeline_degree}, "
            f"{format_count(self.micro_batches, 'micro-batch', 'micro-batches')}, {self.schedule}, "
            f"global batch {self.global_batch_size}{'' if self.skew is None else f', skew {self.skew:g}'}"
        )

    def _repr_html_(self) -> str:
        step = "" if self.step_time_s is None else f"; a step is predicted to take {format_seconds(self.step_time_s)}"
        title = self.title + step
        rows: list[tuple[str, ...]] = []
        for index, (stage, rank) in enumerate(zip(self.stages, self.holders, strict=True)):
            peak = format_bytes(self.peak_bytes[rank]) if self.peak_bytes is not None else ""
            rows += ((str(index), f"{count:,}", str(strategy), peak) for strategy, count in runs(stage))
        return html_table(title, ("stage", "layers", "strategy", "peak memory"), rows, "rrlr")

    def to_json(self) -> str:
        """A JSON document with one line per run of equal strategies; `from_json` gives back an equal plan."""
        stages = ",\n".join(_stage_json(stage) for stage in self.stages)
        fields = {f.name: getattr(self, f.name) for f in fields_of(Plan) if f.kind is not None and f.is_said(self)}
        head = {"format": FORMAT, "version": VERSION, **fields}
        if self.search != Searched():
            head["search"] = asdict(self.search)
        if self.ties:
            head["ties"] = {name: kept_text(kept) for name, kept in self.ties}
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

    @staticmethod
    def from_galvatron2(
        source: str | os.PathLike[str],
        program: Program,
        *,
        world_size: int | None = None,
        sequence_parallel: bool = True,
    ) -> Plan:
        """Reads a plan that Galvatron-2 searched, for a program (clustered to planned).

        Args:
            source: JSON text, or the path of a file.
            world_size: the number of devices, which the file does not say; default: what its name says, or else the
                program's cluster has.
            sequence_parallel: whether it was to run with `--sequence-parallel`: its tensor parallelism is `tp+sp` then,
                otherwise `tp`.

        Raises:
            ParseError: malformed JSON.
            PlanError: the file cannot be read, or a field has bad content, which the message names.
        """
        return galvatron2.read(Plan, source, program, world_size, sequence_parallel)

    def to_galvatron2(self, program: Program | None = None) -> str:
        """The plan as Galvatron-2 reads it; train there with `--sequence-parallel` if it has `tp+sp`.

        Args:
            program: it is for; without, the first layer is taken to be the embedding and the last one the head.

        Raises:
            PlanError: Galvatron-2 cannot say something that the plan does; says what, and what to use instead.
        """
        return galvatron2.written(self, program)


def runs(strategies: Sequence[Strategy]) -> list[tuple[Strategy, int]]:
    """Neighbouring equal strategies as (strategy, count)."""
    return [(strategy, len(list(group))) for strategy, group in itertools.groupby(strategies)]


def kept_text(kept: Strategy | None) -> str:
    """How a tie is kept, as text."""
    return WHOLE if kept is None else str(kept)


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
    members = {key: value for key, value in document.items() if key not in ("format", "version")}
    plan = read_members(Plan, members, "plan", PlanError, {"ties": _ties, "stages": _stages})
    require(problems(plan))
    return plan


def _ties(key: str, value: Any) -> Ties:
    if not isinstance(value, dict) or not all(map(is_text, value.values())):
        raise PlanError(f'plan field {key!r} must look like {{"table.weight": "dp2-tp2", "scale": "{WHOLE}"}}')
    try:
        return tuple((name, None if kept == WHOLE else Strategy.parse(kept).keeping) for name, kept in value.items())
    except StrategyError as error:
        raise PlanError(f"plan field {key!r}: {error}; a tie is kept as under a strategy, or {WHOLE}") from None


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
    text, layers = run["strategy"], run["layers"]
    if not is_text(text):
        raise PlanError(f"plan field '{key}.strategy' must be text, not {shown(text)}")
    if type(layers) is not int or layers < 1:
        raise PlanError(f"plan field '{key}.layers' must be a whole number of at least 1, not {shown(layers)}")
    if layers > limits.REPEATS:
        raise PlanError(f"plan field '{key}.layers' must be at most {limits.REPEATS}, not {shown(layers)}")
    try:
        return Strategy.parse(text), layers
    except StrategyError as error:
        raise PlanError(f"plan field '{key}.strategy': {error}") from None
