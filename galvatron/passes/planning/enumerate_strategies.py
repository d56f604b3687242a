"""The pass `enumerate-strategies`: every leaf of the decision tree.

The root decides the pipeline degree, so that stages lie across the slowest links. Below, each mesh axis, from the
innermost (fastest links) to the outermost, gets a role and a size, until the devices of a stage are used up. A role is
taken once, so a leaf is an ordered factorisation of the stage's devices over roles. ZeRO levels and recomputation are
decided at the leaf.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from galvatron.errors import PassError, did_you_mean
from galvatron.ir.program import Candidates, Cut, Form, Program
from galvatron.ir.strategy import RECOMPUTE, ROLE_NAMES, AxisRole, Strategy
from galvatron.ir.zero import LEVELS
from galvatron.passes.base import Pass


@dataclass(frozen=True)
class EnumerateStrategies(Pass):
    """Lists the strategies of every layer class at every pipeline degree; options say which branches exist.

    `roles` are those an axis may have, `zero` the ZeRO levels and `recompute` the kinds of recomputation of a leaf, and
    `pipeline_degrees` the degrees at the root, all divisors of the world size if empty.
    """

    name = "enumerate-strategies"
    needs, leaves = Form.COSTED, Form.CANDIDATES

    roles: tuple[str, ...] = ("dp", "tp")
    zero: tuple[int, ...] = (0,)
    recompute: tuple[str, ...] = ("none",)
    pipeline_degrees: tuple[int, ...] = ()

    def run(self, program: Program) -> Program:
        world_size, layers = program.required_cluster.world_size, program.planned_layers
        for role in self.roles:
            if role not in ROLE_NAMES:
                raise PassError(f"pass {self.name!r}: unknown role {role!r}; {did_you_mean(role, ROLE_NAMES)}")
        for kind in self.recompute:
            if kind not in RECOMPUTE:
                raise PassError(f"pass {self.name!r}: unknown recomputation {kind!r}; {did_you_mean(kind, RECOMPUTE)}")
        for level in self.zero:
            if level not in range(len(LEVELS)):
                raise PassError(f"pass {self.name!r}: there is no ZeRO level {level}; use 0 to {len(LEVELS) - 1}")
        classes = dict.fromkeys(layer.cls for layer in layers)
        candidates: list[Candidates] = []
        cuts: list[Cut] = []
        for degree in divisors(world_size):
            if self.pipeline_degrees and degree not in self.pipeline_degrees:
                continue
            if degree > len(layers):
                reason = f"{degree} stages for {len(layers)} layers leave a stage empty"
                cuts.append(Cut(f"pp{degree}", "stages-need-layers", reason))
                continue
            leaves_ = tuple(self.leaves_of(world_size // degree))
            candidates += [Candidates(degree, cls, leaves_) for cls in classes]
        return replace(program, form=self.leaves, candidates=tuple(candidates), cuts=(*program.cuts, *cuts))

    def leaves_of(self, devices: int) -> Iterator[Strategy]:
        """Every strategy of a stage on a number of devices."""
        for axes in axis_roles(devices, self.roles):
            named = {axis.role for axis in axes}
            # dp and tp are always written, as dp1 outside or tp1 inside, so that text shows what a strategy leaves out.
            outer = () if "dp" in named else (AxisRole("dp", 1),)
            inner = () if named & {"tp", "tp+sp"} else (AxisRole("tp", 1),)
            for zero in self.zero:
                for recompute in self.recompute:
                    yield Strategy((*outer, *axes, *inner), zero, recompute)


def axis_roles(devices: int, roles: tuple[str, ...]) -> Iterator[tuple[AxisRole, ...]]:
    """Every way to give roles to mesh axes, outermost first, with degrees above one whose product is `devices`."""
    if devices == 1:
        yield ()
        return
    for role in roles:
        # tp and tp+sp are one role on a layer: both shard its parameters.
        others = tuple(r for r in roles if r.partition("+")[0] != role.partition("+")[0])
        for degree in divisors(devices)[1:]:
            for outer in axis_roles(devices // degree, others):
                yield (*outer, AxisRole(role, degree))


def divisors(number: int) -> list[int]:
    """All divisors in increasing order."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]
