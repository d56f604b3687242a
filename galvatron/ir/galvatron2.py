"""Plans of Galvatron-2, read and written: the JSON that its search writes and its training reads.

    {"pp_deg": 1, "tp_sizes_enc": "2,2,1", "tp_consecutive_flags": "1,1,1", "dp_types_enc": "0,0,1", "use_sp": "0,0,0",
     "checkpoint": "1,0,0", "global_bsz": 16, "chunks": 2, "pp_division": "3", "pipeline_type": "pipedream_flush",
     "default_dp_type": "zero2", "vtp": 2, "vsp": 0, "embed_sdp": 1}

Lists have an entry for each layer that repeats. All other layers, embedding and head, share one strategy, which the
last three fields say; one of them is on the stage of the repeated layer that follows, or on the last one. Neither the
number of devices nor whether tensor parallelism shards sequences is in the file: training is told.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from galvatron.errors import PlanError, did_you_mean
from galvatron.ir import limits, plan_rules
from galvatron.ir.documents import read_json, shown
from galvatron.ir.files import read_text
from galvatron.ir.records import read_members
from galvatron.ir.strategy import AxisRole, Strategy

if TYPE_CHECKING:
    from galvatron.ir.plan import Plan
    from galvatron.ir.program import Program

_SCHEDULES = {"gpipe": "gpipe", "pipedream_flush": "1f1b"}
_LEVELS = {"ddp": 0, "zero2": 2, "zero3": 3}


@dataclass(frozen=True)
class Config:
    """The fields as they stand there, with what training takes where one is missing.

    Attributes:
        tp_sizes_enc: devices among which a layer is sharded, by tensor parallelism or as in Ulysses (`use_sp` 1).
        tp_consecutive_flags: 1, these follow each other; 0, those of data parallelism do.
        dp_types_enc: 1, ZeRO level 3; 0, what `default_dp_type` says.
        checkpoint: 1, the layer is computed again in the backward.
        pp_division: repeated layers of each stage.
        vtp, vsp, embed_sdp: the same as the first, `use_sp` and `dp_types_enc` of the layers that do not repeat.
    """

    pp_deg: int
    tp_sizes_enc: str
    tp_consecutive_flags: str
    dp_types_enc: str
    global_bsz: int
    chunks: int
    use_sp: str = ""
    checkpoint: str = ""
    pp_division: str = ""
    pipeline_type: str = "gpipe"
    default_dp_type: str = "ddp"
    vtp: int = 1
    vsp: int = 0
    embed_sdp: int = 0


_ORDER = (
    "pp_deg", "tp_sizes_enc", "tp_consecutive_flags", "dp_types_enc", "use_sp", "checkpoint", "global_bsz", "chunks",
    "pp_division", "pipeline_type", "default_dp_type", "vtp", "vsp", "embed_sdp",
)  # fmt: skip


def read(
    cls: type[Plan], source: str | os.PathLike[str], program: Program, world_size: int | None, sequence_parallel: bool
) -> Plan:
    """The plan, a `cls`, that a text or file means for a program; see `Plan.from_galvatron2`."""
    what, text = _text(source)
    config = _config(text, what)
    world_size = _world_size(what, program) if world_size is None else world_size
    return _Reader(what, config, program, world_size, sequence_parallel).plan(cls)


@dataclass(frozen=True)
class _Reader:
    what: str
    config: Config
    program: Program
    world_size: int
    sequence_parallel: bool

    def plan(self, cls: type[Plan]) -> Plan:
        config = self.config
        for field, most in (("global_bsz", limits.SAMPLES), ("chunks", limits.REPEATS)):
            if not 1 <= getattr(config, field) <= most:
                self.refuse(field, f"must be from 1 to {most}, not {shown(getattr(config, field))}")
        if not 1 <= config.pp_deg <= self.world_size or self.world_size % config.pp_deg:
            self.refuse("pp_deg", f"is {config.pp_deg}, which does not divide {self.world_size} devices")
        schedule = self.one_of("pipeline_type", _SCHEDULES)
        degrees = self.numbers("tp_sizes_enc")
        inner = self.inner(len(degrees))
        devices, stages = self.world_size // config.pp_deg, self.stages(inner)
        outer = self.strategy("vtp", config.vtp, 1, config.vsp, self.level("embed_sdp", config.embed_sdp), 0, devices)
        flags = zip(
            degrees,
            self.flags("tp_consecutive_flags", len(degrees)),
            self.flags("use_sp", len(degrees)),
            (self.level("dp_types_enc", flag) for flag in self.flags("dp_types_enc", len(degrees))),
            self.flags("checkpoint", len(degrees)),
            strict=True,
        )
        strategies = [outer] * len(stages)
        for index, values in zip(inner, flags, strict=True):
            strategies[index] = self.strategy("tp_sizes_enc", *values, devices)
        plan = cls(
            fingerprint=self.program.fingerprint,
            global_batch_size=config.global_bsz,
            world_size=self.world_size,
            micro_batches=config.chunks,
            schedule=schedule,
            stages=tuple(
                tuple(s for s, held in zip(strategies, stages, strict=True) if held == stage)
                for stage in range(config.pp_deg)
            ),
        )
        try:
            plan_rules.require(plan_rules.problems(plan))
        except PlanError as error:
            raise PlanError(f"{self.what}: {error}") from None
        return plan

    def refuse(self, field: str, problem: str) -> NoReturn:
        raise PlanError(f"{self.what} field {field!r} {problem}")

    def one_of(self, field: str, known: dict[str, Any]) -> Any:
        if (value := getattr(self.config, field)) not in known:
            self.refuse(field, f"is {shown(value)}; {did_you_mean(value, known)}")
        return known[value]

    def numbers(self, field: str) -> list[int]:
        """A list of whole numbers, written with commas."""
        words = getattr(self.config, field).split(",")
        if len(words) > limits.REPEATS or not all(re.fullmatch("[0-9]{1,9}", word.strip()) for word in words):
            self.refuse(field, f"must be whole numbers like '1,1,2', not {shown(getattr(self.config, field))}")
        return [int(word) for word in words]

    def flags(self, field: str, count: int) -> list[int]:
        """A 0 or 1 for each repeated layer; all 0 where the field may be missing, and is."""
        if not getattr(self.config, field):
            return [0] * count
        found = self.numbers(field)
        if len(found) != count:
            self.refuse(field, f"has {len(found)} entries, but 'tp_sizes_enc' has {count}")
        for flag in found:
            self.flag(field, flag)
        return found

    def flag(self, field: str, value: int) -> int:
        if value not in (0, 1):
            self.refuse(field, f"must be 0 or 1, not {shown(value)}")
        return value

    def level(self, field: str, flag: int) -> int:
        """The ZeRO level that a flag means."""
        default = self.one_of("default_dp_type", _LEVELS)
        return 3 if self.flag(field, flag) else default

    def inner(self, count: int) -> list[int]:
        """The layers, by position, that the lists are about."""
        layers = self.program.planned_layers
        found = repeated(self.program)
        if count == len(found):
            return found
        if count in (len(layers), len(layers) - 2):
            return list(range(len(layers)))[slice(None) if count == len(layers) else slice(1, -1)]
        self.refuse(
            "tp_sizes_enc",
            f"is for {count} layers, but of the {len(layers)} layers of the program {len(found)} repeat; "
            "is it the plan of another model?",
        )

    def stages(self, inner: Sequence[int]) -> list[int]:
        """The stage of every layer."""
        degree = self.config.pp_deg
        if degree > len(inner):
            self.refuse("pp_deg", f"is {degree}, more than there are layers that repeat ({len(inner)})")
        shares = [len(inner) // degree] * degree
        shares[-1] += len(inner) - sum(shares)
        if self.config.pp_division:
            shares = self.numbers("pp_division")
        if len(shares) != degree or sum(shares) != len(inner) or 0 in shares:
            self.refuse(
                "pp_division", f"must say for each of {degree} stages how many of the {len(inner)} layers it has"
            )
        held = [stage for stage, share in enumerate(shares) for _ in range(share)]
        return held_by(dict(zip(inner, held, strict=True)), len(self.program.planned_layers))

    def strategy(
        self, field: str, degree: int, consecutive: int, ulysses: int, level: int, again: int, devices: int
    ) -> Strategy:
        if not 1 <= degree <= devices or devices % degree:
            self.refuse(field, f"has {degree}, which does not divide the {devices} devices of a stage")
        role = "tp+sp" if self.sequence_parallel else "tp"
        if self.flag("vsp" if field == "vtp" else "use_sp", ulysses):
            role = "ulysses"
        recompute = "full" if again else "none"
        outer, inner = AxisRole("dp", devices // degree), AxisRole(role, degree)
        if degree == 1:
            return Strategy((outer, AxisRole("tp", 1)), level, recompute)
        axes = (outer, inner) if consecutive or degree == devices else (inner, outer)
        return Strategy(axes if role != "ulysses" else (*axes, AxisRole("tp", 1)), level, recompute)


def repeated(program: Program) -> list[int]:
    """The layers, by position, whose class another layer has as well."""
    names = [program.class_of[layer.cls].origin_name for layer in program.planned_layers]
    count = Counter(names)
    return [index for index, name in enumerate(names) if count[name] > 1]


def held_by(stage_of: dict[int, int], count: int) -> list[int]:
    """The stages of all layers, from those of the repeated ones: any other is on that of the next one of these."""
    stages, after = [0] * count, max(stage_of.values())
    for index in reversed(range(count)):
        stages[index] = after = stage_of.get(index, after)
    return stages


def _text(source: str | os.PathLike[str]) -> tuple[str, str]:
    """What it is, for messages, and its text."""
    if isinstance(source, str) and source.lstrip().startswith("{"):
        return "Galvatron-2 plan", source
    path = os.fspath(source)
    try:
        return f"Galvatron-2 plan {path}", read_text(source)
    except UnicodeDecodeError:
        raise PlanError(f"cannot read plan {path!r}: it is not a text file") from None
    except (OSError, ValueError) as error:
        raise PlanError(f"cannot read plan {path!r}: {error}") from None


def _config(text: str, what: str) -> Config:
    document = read_json(text, what)
    if not isinstance(document, dict) or "tp_sizes_enc" not in document:
        raise PlanError(f"{what} is no plan of Galvatron-2: it has no 'tp_sizes_enc'")
    return read_members(Config, document, what, PlanError)


def _world_size(what: str, program: Program) -> int:
    """The number of devices, which the file does not have: its name may, as Galvatron-2 writes it, or the program."""
    if match := re.search(r"_([0-9]{1,6})nodes_([0-9]{1,6})gpus_per_node_", Path(what).name):
        return int(match[1]) * int(match[2])
    if program.cluster is not None:
        return program.cluster.world_size
    raise PlanError(f"{what} does not say for how many devices it is; give world_size=")


def written(plan: Plan, program: Program | None = None) -> str:
    """A plan as Galvatron-2 reads it; see `Plan.to_galvatron2`."""
    return json.dumps(_members(_written(plan, program)), indent=4) + "\n"


def _members(config: Config) -> dict[str, Any]:
    members = asdict(config)
    return {name: members[name] for name in _ORDER}


def _written(plan: Plan, program: Program | None) -> Config:
    strategies = plan.strategies
    inner = _inner_of(plan, program)
    others = {strategies[i]: i for i in range(len(strategies)) if i not in set(inner)}
    for index, strategy in enumerate(strategies):
        _check_sayable(index, strategy)
    if {"tp", "tp+sp"} <= {role for strategy in strategies for role in strategy.roles}:
        raise PlanError(
            "a plan of Galvatron-2 cannot have tp in one layer and tp+sp in another: use one of them in all"
        )
    schedule = {ours: theirs for theirs, ours in _SCHEDULES.items()}.get(plan.schedule)
    if schedule is None:
        raise PlanError(
            f"a plan of Galvatron-2 cannot have schedule {plan.schedule}; use {' or '.join(_SCHEDULES.values())}"
        )
    if len(others) > 1:
        first, second, *_ = others
        raise PlanError(
            "a plan of Galvatron-2 has one strategy for all layers that do not repeat, embedding and head, but layer "
            f"{others[first]} has {first} and layer {others[second]} {second}"
        )
    outer = next(iter(others), None)
    if outer is not None and (outer.recompute != "none" or not _is_consecutive(outer)):
        raise PlanError(
            f"a plan of Galvatron-2 cannot say {outer} of layer {others[outer]}: those that do not repeat are never "
            "computed again, and have dp outside"
        )
    stage_of = [stage for stage, layers in enumerate(plan.stages) for _ in layers]
    if held_by({i: stage_of[i] for i in inner}, len(strategies)) != stage_of:
        raise PlanError(
            "in a plan of Galvatron-2 a layer that does not repeat is on the stage of the next one that does, or on "
            "the last stage; move the cut between the stages"
        )
    chosen = [strategies[i] for i in inner]
    division = [sum(stage_of[i] == stage for i in inner) for stage in range(len(plan.stages))]
    if 0 in division:
        raise PlanError(f"stage {division.index(0)} has no layer that repeats, which Galvatron-2 needs in every stage")
    return Config(
        pp_deg=plan.pipeline_degree,
        tp_sizes_enc=_list(_sharded(s).degree for s in chosen),
        tp_consecutive_flags=_list(int(_is_consecutive(s)) for s in chosen),
        dp_types_enc=_list(int(s.zero == 3) for s in chosen),
        use_sp=_list(int(_sharded(s).role == "ulysses") for s in chosen),
        checkpoint=_list(int(s.recompute == "full") for s in chosen),
        global_bsz=plan.global_batch_size,
        chunks=plan.micro_batches,
        pp_division=_list(division),
        pipeline_type=schedule,
        default_dp_type=_default_type(strategies),
        vtp=_sharded(outer).degree if outer else 1,
        vsp=int(outer is not None and _sharded(outer).role == "ulysses"),
        embed_sdp=int(outer is not None and outer.zero == 3),
    )


def _inner_of(plan: Plan, program: Program | None) -> list[int]:
    count = len(plan.strategies)
    if program is not None:
        plan_rules.require(plan_rules.belongs(plan, program.fingerprint))
        plan_rules.require(plan_rules.covers(plan, [len(program.planned_layers)]))
        if found := repeated(program):
            return found
    if count < 3:
        raise PlanError(f"a plan of Galvatron-2 has an embedding, a head and layers between them; this one has {count}")
    return list(range(1, count - 1))


def _check_sayable(index: int, strategy: Strategy) -> None:
    """
    Raises:
        PlanError: Galvatron-2 has no word for something in a strategy.
    """
    told = f"layer {index} has {strategy}, which a plan of Galvatron-2 cannot say: it has"
    for role in strategy.roles:
        if role not in ("dp", "tp", "tp+sp", "ulysses"):
            raise PlanError(f"{told} no {role}")
    if len(set(strategy.roles) - {"dp"}) > 1:
        raise PlanError(f"{told} one of tp and ulysses in a layer")
    if strategy.zero not in _LEVELS.values():
        raise PlanError(f"{told} no ZeRO level {strategy.zero}; use 0, 2 or 3")
    if strategy.recompute not in ("none", "full"):
        raise PlanError(f"{told} no recompute={strategy.recompute}; use recompute, or none")


def _sharded(strategy: Strategy) -> AxisRole:
    """The axis beside data parallelism."""
    return next((axis for axis in strategy.axes if axis.role != "dp" and axis.degree > 1), AxisRole("tp", 1))


def _is_consecutive(strategy: Strategy) -> bool:
    return len(strategy.roles) < 2 or strategy.roles[0] == "dp"


def _default_type(strategies: Sequence[Strategy]) -> str:
    """Of all layers but those of ZeRO level 3."""
    levels = {s.zero for s in strategies} - {3}
    if len(levels) > 1:
        raise PlanError("a plan of Galvatron-2 has one ZeRO level beside level 3, but this one has levels 0 and 2")
    found = next(iter(levels), 2)
    return next(name for name, level in _LEVELS.items() if level == found)


def _list(numbers: Any) -> str:
    return ",".join(map(str, numbers))
