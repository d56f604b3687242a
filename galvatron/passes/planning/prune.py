"""The pass `prune`: takes leaves off the decision tree that cannot win, and writes down by which rule and why.

A *sound* rule never removes every optimum of the cost model; a *heuristic* one may, and can be switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from galvatron.costs.state import trained_state
from galvatron.errors import PassError, did_you_mean
from galvatron.ir.cluster import Cluster
from galvatron.ir.layout import BROADCAST
from galvatron.ir.program import Candidates, Cut, Form, Layer, Program
from galvatron.ir.strategy import Strategy
from galvatron.passes.base import Bytes, Pass
from galvatron.units import format_bytes


@dataclass(frozen=True)
class Branch:
    """What the rules look at: one pipeline degree of the tree, with the strategies left at it."""

    program: Program
    cluster: Cluster
    pipeline_degree: int
    strategies: tuple[Strategy, ...]
    memory_bytes: int | None


@dataclass(frozen=True)
class PruningRule:
    """One reason to cut: which strategies of a branch it removes, each with why. `argument` justifies the rule."""

    name: str
    sound: bool
    argument: str
    cut: Callable[[Branch], Iterable[tuple[Strategy, str]]]


def _indivisible_batch(branch: Branch) -> Iterator[tuple[Strategy, str]]:
    batch = branch.program.batch_size
    for strategy in branch.strategies:
        if batch % strategy.degree("dp"):
            yield strategy, f"{batch} samples cannot be divided over dp{strategy.degree('dp')}"


def _tp_across_nodes(branch: Branch) -> Iterator[tuple[Strategy, str]]:
    for strategy in branch.strategies:
        for axis, role in zip(strategy.mesh, strategy.roles, strict=True):
            if role in ("tp", "tp+sp") and branch.cluster.slows_down(axis.size, axis.stride):
                yield strategy, f"groups of {axis.size} ranks, {axis.stride} apart, cross nodes"


def _too_much_state(branch: Branch) -> Iterator[tuple[Strategy, str]]:
    if branch.memory_bytes is None:
        return
    layers = {layer.cls: layer for layer in branch.program.planned_layers}.values()
    for strategy in branch.strategies:
        for layer in layers:
            least = least_state_bytes(branch.program, layer, strategy)
            if least > branch.memory_bytes:
                needed, given = format_bytes(round(least)), format_bytes(branch.memory_bytes)
                yield strategy, f"the parameters of layer {layer.name} alone need {needed} of {given}"
                break


def least_state_bytes(program: Program, layer: Layer, strategy: Strategy) -> float:
    """What the trained parameters of a layer take of a device at least: each cut by tensor parallelism, and over the
    other axes as its ZeRO level cuts it."""
    mesh = tuple(
        axis for axis, role in zip(strategy.mesh, strategy.roles, strict=True) if role.partition("+")[0] != "tp"
    )
    graph, total = program.class_of[layer.cls].graph, 0.0
    for value, name in zip(graph.state, layer.state, strict=True):
        if program.state_of[name].trainable:
            whole = trained_state(
                program.state_of[name], replace(value, layout=(BROADCAST,) * len(mesh)), mesh, strategy.zero
            )
            total += whole.kept.total / strategy.degree("tp")
    return total


RULES: dict[str, PruningRule] = {
    rule.name: rule
    for rule in (
        PruningRule(
            "dp-divides-batch",
            True,
            "a shard of a fraction of a sample does not exist, so the plan could not run",
            _indivisible_batch,
        ),
        PruningRule(
            "tp-stays-in-node",
            False,
            "tensor parallelism communicates in every layer, forward and backward, and cannot hide it; across nodes "
            "that takes longer than it saves unless a layer is very large",
            _tp_across_nodes,
        ),
        PruningRule(
            "memory-lower-bound-exceeds-budget",
            True,
            "a stage holds the parameters of each of its layers with what is kept of them, and each device its part",
            _too_much_state,
        ),
    )
}  # fmt: skip
"""The rules in the order in which they are tried: cheap ones first."""


@dataclass(frozen=True)
class Prune(Pass):
    """Applies the rules to every pipeline degree.

    `memory` is the budget per device for rules about memory, which do nothing without it; `heuristics` switches the
    rules that are not sound, `without` single rules by name.
    """

    name = "prune"
    needs, leaves = Form.CANDIDATES, Form.CANDIDATES

    memory: Bytes | None = None
    heuristics: bool = True
    without: tuple[str, ...] = ()

    def run(self, program: Program) -> Program:
        for name in self.without:
            if name not in RULES:
                raise PassError(f"pass {self.name!r}: unknown rule {name!r}; {did_you_mean(name, RULES)}")
        kept, cuts = [], []
        for degree in dict.fromkeys(c.pipeline_degree for c in program.candidates):
            branch = [c for c in program.candidates if c.pipeline_degree == degree]
            removed = self._removed(program, degree, branch)
            cuts += [Cut(f"pp{degree}/{s}", rule, reason) for s, (rule, reason) in removed.items()]
            kept += [replace(c, strategies=tuple(s for s in c.strategies if s not in removed)) for c in branch]
        return replace(program, candidates=tuple(kept), cuts=(*program.cuts, *cuts))

    def _removed(self, program: Program, degree: int, branch: list[Candidates]) -> dict[Strategy, tuple[str, str]]:
        """Strategies to cut at one pipeline degree, with rule and reason."""
        left = list(dict.fromkeys(s for c in branch for s in c.strategies))
        removed: dict[Strategy, tuple[str, str]] = {}
        for rule in RULES.values():
            if rule.name in self.without or not (rule.sound or self.heuristics):
                continue
            seen = Branch(program, program.required_cluster, degree, tuple(left), self.memory)
            removed.update((strategy, (rule.name, reason)) for strategy, reason in rule.cut(seen))
            left = [s for s in left if s not in removed]
        return removed
