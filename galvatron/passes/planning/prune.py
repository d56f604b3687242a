"""The pass `prune`: takes leaves off the decision tree that cannot win, and writes down by which rule and why.

A *sound* rule never removes every optimum of the cost model; a *heuristic* one may, and can be switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from galvatron.costs.state import local_parameter
from galvatron.errors import PassError, did_you_mean
from galvatron.ir.cluster import Cluster
from galvatron.ir.layout import BROADCAST
from galvatron.ir.program import Candidates, Cut, Form, Layer, Program
from galvatron.ir.spmd import chosen_matrices
from galvatron.ir.strategy import Strategy
from galvatron.partition.context import Partitioner
from galvatron.passes.base import Bytes, Pass
from galvatron.units import format_bytes


@dataclass(frozen=True)
class Branch:
    """What the rules look at: a layer class at one pipeline degree of the tree, with the strategies left to it.

    Attributes:
        layer: the first of the class.
        sequences: how long the sequences are that cross the border of the class with a gradient.
    """

    program: Program
    cluster: Cluster
    layer: Layer
    sequences: tuple[int, ...]
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
        if batch % strategy.sample_shards:
            yield strategy, f"{batch} samples cannot be divided into {strategy.sample_shards} shards"


def _indivisible_sequence(branch: Branch) -> Iterator[tuple[Strategy, str]]:
    for strategy in branch.strategies:
        pieces = strategy.sequence_pieces
        if odd := next((length for length in branch.sequences if length % pieces), None):
            yield strategy, f"a sequence of {odd} cannot be cut into {pieces} pieces"


def _undivided_matrices(branch: Branch) -> Iterator[tuple[Strategy, str]]:
    counts = chosen_matrices(branch.program.class_of[branch.layer.cls].graph)
    for strategy in branch.strategies:
        degree = strategy.degree("ep")
        if degree > 1 and all(count % degree for count in counts):
            told = " or ".join(map(str, sorted(set(counts))))
            yield strategy, f"{told} experts cannot be divided over ep{degree}"


def _tp_across_nodes(branch: Branch) -> Iterator[tuple[Strategy, str]]:
    for strategy in branch.strategies:
        for axis, role in zip(strategy.mesh, strategy.roles, strict=True):
            if role in ("tp", "tp+sp") and branch.cluster.slows_down(axis.size, axis.stride):
                yield strategy, f"groups of {axis.size} ranks, {axis.stride} apart, cross nodes"


def _too_much_state(branch: Branch) -> Iterator[tuple[Strategy, str]]:
    if branch.memory_bytes is None:
        return
    alike = {_cuts_state(strategy): strategy for strategy in branch.strategies}
    least = {key: least_state_bytes(branch.program, branch.layer, strategy) for key, strategy in alike.items()}
    if all(size > branch.memory_bytes for size in least.values()):
        return  # nothing fits, and the search says what comes nearest
    for strategy in branch.strategies:
        if (size := least[_cuts_state(strategy)]) > branch.memory_bytes:
            needed, given = format_bytes(round(size)), format_bytes(branch.memory_bytes)
            yield strategy, f"the parameters of layer {branch.layer.name} alone need {needed} of {given}"


def _cuts_state(strategy: Strategy) -> tuple[int, int, int]:
    """What of a strategy `least_state_bytes` depends on: into how many parts it cuts what, whatever the order is."""
    return strategy.devices, strategy.parameter_shards, strategy.zero


def least_state_bytes(program: Program, layer: Layer, strategy: Strategy) -> float:
    """What the parameters of a layer take of a device at least: each cut by tensor and expert parallelism, and over the
    other axes as its ZeRO level cuts it."""
    mesh = tuple(
        axis
        for axis, role in zip(strategy.mesh, strategy.roles, strict=True)
        if role.partition("+")[0] not in ("tp", "ep")
    )
    graph, total = program.class_of[layer.cls].graph, 0.0
    for value, name in zip(graph.state, layer.state, strict=True):
        if name in program.parameters:
            whole = local_parameter(
                program.state_of[name], replace(value, layout=(BROADCAST,) * len(mesh)), mesh, strategy.zero
            )
            total += whole.kept.total / strategy.parameter_shards
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
            "roles-divide-sequence",
            True,
            "pieces of a sequence are equally long, so the plan could not run",
            _indivisible_sequence,
        ),
        PruningRule(
            "ep-divides-experts",
            True,
            "without experts to divide, expert parallelism is data parallelism, which is tried as well",
            _undivided_matrices,
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
    """Applies the rules to every layer class at every pipeline degree.

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
        sequences = _sequences(program)
        kept, cuts = [], []
        for degree in dict.fromkeys(c.pipeline_degree for c in program.candidates):
            branch = [c for c in program.candidates if c.pipeline_degree == degree]
            removed = [self._removed(program, c, sequences) for c in branch]
            cuts += _cuts(branch, removed)
            kept += [
                replace(c, strategies=tuple(s for s in c.strategies if s not in gone))
                for c, gone in zip(branch, removed, strict=True)
            ]
        return replace(program, candidates=tuple(kept), cuts=(*program.cuts, *cuts))

    def _removed(self, program: Program, candidates: Candidates, sequences: Mapping[str, tuple[int, ...]]) -> Removed:
        """Strategies to cut of a class at one pipeline degree, with rule and reason."""
        layer = next(layer for layer in program.planned_layers if layer.cls == candidates.cls)
        left, removed = candidates.strategies, dict[Strategy, tuple[str, str]]()
        for rule in RULES.values():
            if rule.name in self.without or not (rule.sound or self.heuristics):
                continue
            seen = Branch(program, program.required_cluster, layer, sequences[candidates.cls], left, self.memory)
            removed.update((strategy, (rule.name, reason)) for strategy, reason in rule.cut(seen))
            left = tuple(s for s in left if s not in removed)
        return removed


Removed = dict[Strategy, tuple[str, str]]
"""Of strategies that are gone, the name of the rule and the reason."""


def _cuts(branch: Sequence[Candidates], removed: Sequence[Removed]) -> Iterator[Cut]:
    """The cuts at one pipeline degree: one for all classes where the rule is the same."""
    there = [frozenset(candidates.strategies) for candidates in branch]
    for strategy in dict.fromkeys(s for gone in removed for s in gone):
        by_rule: dict[str, list[Candidates]] = {}
        for candidates, gone in zip(branch, removed, strict=True):
            if strategy in gone:
                by_rule.setdefault(gone[strategy][0], []).append(candidates)
        having = sum(strategy in strategies for strategies in there)
        for rule, cut in by_rule.items():
            reason = next(gone[strategy][1] for gone in removed if gone.get(strategy, ("",))[0] == rule)
            where = "" if len(cut) == having else f" @{', @'.join(candidates.cls for candidates in cut)}"
            yield Cut(f"pp{branch[0].pipeline_degree}/{strategy}{where}", rule, reason)


def _sequences(program: Program) -> dict[str, tuple[int, ...]]:
    """For each class how long the sequences are that cross its border in the stream; those whose length is free, and
    that no strategy cuts, are left out."""
    partitioner = Partitioner(program, program.required_cluster)
    return {
        cls.name: tuple(size for size in partitioner.sequences(cls.name) if isinstance(size, int))
        for cls in program.classes
    }
