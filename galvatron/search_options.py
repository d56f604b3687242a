"""What a search tries, and what for: one value for `compile`, `search` and the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from galvatron.errors import GalvatronError


@dataclass(frozen=True)
class SearchOptions:
    """What a search tries, and what for. Whatever is left out is tried in every way.

    Attributes:
        require: constraints that the strategies of layers meet: `"layers.0=tp2"`, `"head=zero3"`, or without a layer of
            all of them. Layers are named by the program, exactly or by a glob (`layers.*`). Traits of a strategy stand
            with dashes between them (`tp2-recompute`): a degree (`tp2`, `tp2+sp`, `tp<=4`), a role on any number of
            devices (`cp`), a ZeRO level, a recomputation (`recompute=none`).
        forbid: constraints that they do not meet: `"zero3"`, `"tp>8"`.
        max_tp: the largest degree of tensor parallelism; the same as forbidding those above.
        pipeline_degree: the only one that is tried.
        schedule: those that are tried, with commas between them: `"1f1b"`, `"interleaved2,zbv"`. None: `1f1b`,
            `interleaved2` and `zbv`, and `gpipe` where the end of the loss needs all micro-batches.
        micro_batches: the only number that is tried.
        roles: of mesh axes, among `dp`, `tp`, `tp+sp`, `ulysses`, `cp` and, for layers with experts, `ep`.
        zero: levels, 0 to 3.
        recompute: kinds of recomputation, among `none`, `selective`, `full`, `alternate` and `attention`.
        objective: `"time"`: the shortest step; `"memory"`: the fastest of the plans with the least memory.
        width: how many partial choices of a stage are followed behind each layer: more find faster plans, prove more of
            them, and take longer. None: 64.
        skew: of rows that go to the ranks of what they choose, such as tokens to experts: how many the rank has that
            has most, over the mean. Time and memory of plans are those of that rank. None: 1.25.
        overlap: whether collectives of layers run beside computation where that pays.
        time_limit_s: seconds after which the best plan so far is taken; `plan.search.gap` says what is proven of it.

    Raises:
        GalvatronError: an option is of the wrong kind, or says what cannot be.
    """

    require: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    max_tp: int | None = None
    pipeline_degree: int | None = None
    schedule: str | None = None
    micro_batches: int | None = None
    roles: tuple[str, ...] | None = None
    zero: tuple[int, ...] | None = None
    recompute: tuple[str, ...] | None = None
    objective: str = "time"
    width: int | None = None
    skew: float | None = None
    overlap: bool = True
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("require", "forbid", "roles", "zero", "recompute"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, (list, tuple, type(None))):
                raise GalvatronError(f"option {name!r} of a search is a list, not {given!r}")
            if isinstance(given, list):
                object.__setattr__(self, name, tuple(given))
        for name in ("max_tp", "pipeline_degree"):
            count = getattr(self, name)
            if count is not None and (type(count) is not int or count < 1):
                raise GalvatronError(f"option {name!r} of a search is a whole number of at least 1, not {count!r}")
        if self.time_limit_s is not None and type(self.time_limit_s) is int:
            object.__setattr__(self, "time_limit_s", float(self.time_limit_s))
        if type(self.skew) is int:
            object.__setattr__(self, "skew", float(self.skew))
        self.check()

    def check(self) -> None:
        """Has the passes read the options, as far as they can without a program.

        Raises:
            GalvatronError: they refuse one.
        """
        from galvatron.passes.registry import load_pass

        for name, own in self.by_pass().items():
            load_pass(name)(**own)

    def by_pass(self) -> Mapping[str, Mapping[str, Any]]:
        """The options of the passes that search, by the name of the pass."""
        above = () if self.max_tp is None else (f"tp>{self.max_tp}",)
        degrees = None if self.pipeline_degree is None else (self.pipeline_degree,)
        named = {
            "enumerate-strategies": {
                "roles": self.roles,
                "zero": self.zero,
                "recompute": self.recompute,
                "pipeline_degrees": degrees,
            },
            "prune": {},
            "search": {
                "require": self.require,
                "forbid": (*self.forbid, *above),
                "schedule": self.schedule,
                "micro_batches": self.micro_batches,
                "objective": self.objective,
                "width": self.width,
                "skew": self.skew,
                "overlap": None if self.overlap is True else self.overlap,
                "time_limit_s": self.time_limit_s,
            },
        }
        return {name: {k: v for k, v in own.items() if v is not None} for name, own in named.items()}

    def __str__(self) -> str:
        """Those that say anything: `require=['layers.0=tp2'], max_tp=8`."""
        given = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        return ", ".join(f"{name}={value!r}" for name, value in given if value != defaults[name])
