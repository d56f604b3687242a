"""The pass `enumerate-strategies`: every leaf of the decision tree.

The root decides the pipeline degree, so that stages lie across the slowest links. Below, each mesh axis is decided
(`galvatron.passes.planning.tree`), so a leaf is an ordered factorisation of the stage's devices over roles, with a ZeRO
level. Recomputation is decided at the leaf.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from galvatron.errors import PassError, did_you_mean
from galvatron.ir.program import Candidates, Cut, Form, Program
from galvatron.ir.strategy import RECOMPUTE, ROLE_NAMES, Strategy
from galvatron.ir.zero import LEVELS
from galvatron.partition.boundary import roles_of_graphs
from galvatron.passes.base import Pass
from galvatron.passes.planning.tree import RULES, Decision, Tree, divisors, grow, level_of, roles_of


@dataclass(frozen=True)
class EnumerateStrategies(Pass):
    """Lists the strategies of every layer class at every pipeline degree; options say which branches exist.

    `roles` are those an axis may have, `ep` where rows choose matrices, `zero` the ZeRO levels of axes that leave
    parameters whole, `recompute` the kinds of recomputation of a leaf, and `pipeline_degrees` the degrees at the root,
    all divisors of the world size if empty. `heuristics` switches the rules of the tree that are not sound.
    """

    name = "enumerate-strategies"
    needs, leaves = Form.COSTED, Form.CANDIDATES

    roles: tuple[str, ...] = ("dp", "tp", "tp+sp", "ulysses", "cp", "ep")
    zero: tuple[int, ...] = (0, 1, 2, 3)
    recompute: tuple[str, ...] = ("none", "selective", "full")
    pipeline_degrees: tuple[int, ...] = ()
    heuristics: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for role in self.roles:
            if role not in ROLE_NAMES:
                raise PassError(f"pass {self.name!r}: unknown role {role!r}; {did_you_mean(role, ROLE_NAMES)}")
        for kind in self.recompute:
            if kind not in RECOMPUTE:
                raise PassError(f"pass {self.name!r}: unknown recomputation {kind!r}; {did_you_mean(kind, RECOMPUTE)}")
        for level in self.zero:
            if level not in range(len(LEVELS)):
                raise PassError(f"pass {self.name!r}: there is no ZeRO level {level}; use 0 to {len(LEVELS) - 1}")

    def run(self, program: Program) -> Program:
        world_size, layers = program.required_cluster.world_size, program.planned_layers
        tried, cuts = self, list[Cut]()
        if program.lengths and (cutting := {"tp+sp", "ulysses", "cp"}.intersection(self.roles)):
            reason = f"the length {program.lengths[0]} of a batch may be one that does not divide"
            cuts += [Cut(f"*/{role}", "lengths-stay-whole", reason) for role in sorted(cutting)]
            tried = replace(self, roles=tuple(role for role in self.roles if role not in cutting))
        classes = dict.fromkeys(layer.cls for layer in layers)
        candidates: list[Candidates] = []
        for degree in divisors(world_size):
            if self.pipeline_degrees and degree not in self.pipeline_degrees:
                continue
            found: list[Candidates] = []
            if degree > len(layers):
                reason = f"{degree} stages for {len(layers)} layers leave a stage empty"
                cuts.append(Cut(f"pp{degree}", "stages-need-layers", reason))
                continue
            for own, of in tried._by_roles(program, classes):
                tree = own.tree(world_size // degree)
                leaves = own._leaves(tree)  # the same objects for all classes, which many facts are told of once
                gone = [(rule, tree.cut[rule.name]) for rule in RULES if tree.cut[rule.name]]
                where = "" if len(of) == len(classes) else f" @{', @'.join(of)}"
                cuts += [
                    Cut(f"pp{degree}/*{where}", rule.name, f"{rule.argument}: {n} of {tree.unpruned}")
                    for rule, n in gone
                ]
                found += [Candidates(degree, cls, leaves) for cls in of]
            by_class = {candidates.cls: candidates for candidates in found}
            candidates += [by_class[cls] for cls in classes]
        return replace(program, form=self.leaves, candidates=tuple(candidates), cuts=(*program.cuts, *cuts))

    def _by_roles(self, program: Program, classes: Iterable[str]) -> list[tuple[EnumerateStrategies, list[str]]]:
        """The classes that have the same roles to choose from, with a pass of just these roles."""
        by_roles: dict[tuple[str, ...], list[str]] = {}
        for cls in classes:
            known = roles_of_graphs([program.class_of[cls].graph])
            by_roles.setdefault(tuple(role for role in self.roles if role in known), []).append(cls)
        return [(replace(self, roles=roles), own) for roles, own in by_roles.items()]

    def tree(self, devices: int) -> Tree:
        """The axes of a stage on a number of devices."""
        rules = [rule for rule in RULES if rule.sound or self.heuristics]
        return grow(devices, Decision.every(self.roles, self.zero), rules)

    def leaves_of(self, devices: int) -> tuple[Strategy, ...]:
        """Every strategy of a stage on a number of devices."""
        return self._leaves(self.tree(devices))

    def _leaves(self, tree: Tree) -> tuple[Strategy, ...]:
        return tuple(
            Strategy(roles_of(axes), level_of(axes), recompute) for axes in tree.leaves for recompute in self.recompute
        )
