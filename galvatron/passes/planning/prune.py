"""The pass `prune`: takes leaves off the decision tree that cannot win, and writes down by which rule and why.

A *sound* rule never removes every optimum of the cost model; a *heuristic* one may, and can be switched off.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from galvatron.costs.estimate import cost_model
from galvatron.costs.model import CostModel
from galvatron.costs.objective import added_shared_bytes
from galvatron.errors import PassError, did_you_mean
from galvatron.ir import limits
from galvatron.ir.cluster import Cluster
from galvatron.ir.plan import Ties
from galvatron.ir.program import Candidates, Cut, Form, Program
from galvatron.ir.strategy import Strategy
from galvatron.passes.base import Bytes, Pass
from galvatron.passes.planning.enumerate_strategies import divisors
from galvatron.units import format_bytes


@dataclass(frozen=True)
class Branch:
    """What the rules look at: one pipeline degree of the tree, with the strategies left at it."""

    program: Program
    cluster: Cluster
    model: CostModel
    pipeline_degree: int
    strategies: tuple[Strategy, ...]
    memory_bytes: int | None

    @cached_property
    def sizes(self) -> list[int]:
        """Samples that a micro-batch may have."""
        return divisors(self.program.batch_size)

    def ways(self, strategy: Strategy, index: int | None = None) -> list[Ties]:
        """The ways to keep ties whose layers have a strategy, in the same order for all: each whole, or as under it.

        Args:
            index: of a layer, which only its own ties and those of its neighbours concern: others are whole.
        """
        tied = self.model.tied()
        concerned = (index is None or any(abs(layer - index) <= 1 for layer in of) for of in tied.values())
        options = ((None, strategy.keeping) if concerns else (None,) for concerns in concerned)
        return [tuple(zip(tied, kept, strict=True)) for kept in itertools.product(*options)]

    def keeping(self, strategy: Strategy) -> Strategy | None:
        """How layers of a strategy keep a tie in parts; None where there is no tie."""
        return strategy.keeping if self.model.tied() else None

    @cached_property
    def representatives(self) -> list[int]:
        """One layer of each kind."""
        kinds = self.model.kinds()
        return [i for i, kind in enumerate(kinds) if kind not in kinds[:i]]


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
    for strategy in branch.strategies:
        size = next(size for size in branch.sizes if size % strategy.degree("dp") == 0)
        for index in branch.representatives:
            costs = [
                branch.model.layer(index, strategy, size, ties).on_stage(0) for ties in branch.ways(strategy, index)
            ]
            least = min(
                max(
                    cost.state_bytes - cost.late_bytes + cost.saved_bytes + cost.extra_bytes,
                    cost.state_bytes + cost.update_bytes,
                )
                for cost in costs
            )
            if least > branch.memory_bytes:
                layer = branch.program.planned_layers[index].name
                yield (
                    strategy,
                    f"layer {layer} alone needs {format_bytes(least)} of {format_bytes(branch.memory_bytes)}",
                )
                break


def _dominated(branch: Branch) -> Iterator[tuple[Strategy, str]]:
    if 2 ** len(branch.model.tied()) > limits.WAYS:
        return  # too many to compare, and to search unless all ties are whole
    left = list(branch.strategies)
    for strategy in branch.strategies:
        found = _replacements(branch, left, strategy) if strategy in left else {}
        left = [s for s in left if s not in found]
        yield from ((s, f"{other} takes no more time and memory in every layer") for s, other in found.items())


def _replacements(branch: Branch, left: list[Strategy], strategy: Strategy) -> dict[Strategy, Strategy]:
    """A strategy and those that leave with it, each with what dominates it; none if one of them has to stay."""
    for kept in dict.fromkeys(branch.keeping(s) for s in left):
        leaving = _leaving(branch, left, strategy, kept)
        others = [s for s in left if branch.keeping(s) == kept and s not in leaving]
        pairs = ((s, next((o for o in others if _dominates(branch, left, o, s)), None)) for s in leaving)
        found = {s: other for s, other in pairs if other is not None}
        if len(found) == len(leaving):
            return found
    return {}


def _leaving(branch: Branch, left: list[Strategy], strategy: Strategy, kept: Strategy | None) -> list[Strategy]:
    """What has to go with a strategy that others replace which keep ties as `kept`.

    A tie that is kept in parts is kept alike in all its layers. So strategies that keep ties alike leave together.
    """
    own = branch.keeping(strategy)
    return [strategy] if own in (None, kept) else [s for s in left if branch.keeping(s) == own]


_Kept = tuple[Strategy, Ties]
"""A strategy, and how ties are kept where layers have it."""


def _dominates(branch: Branch, left: list[Strategy], better: Strategy, worse: Strategy) -> bool:
    """Whether replacing `worse` by `better` in all layers at once never costs time or memory, however ties are kept:
    those that are whole stay so, those in parts as under `worse` become as under `better`."""
    model, layers = branch.model, len(branch.model.kinds())
    if worse.degree("dp") % better.degree("dp"):
        return False  # there are micro-batches that only `worse` can divide
    for size in branch.sizes:
        if size % worse.degree("dp"):
            continue
        for index in branch.representatives:
            for a, b in zip(branch.ways(better, index), branch.ways(worse, index), strict=True):
                if not _costs_no_more(model, index, (better, a), (worse, b), size):
                    return False
        for a, b in zip(branch.ways(better), branch.ways(worse), strict=True):
            if _shares_more(model, left, (better, a), (worse, b), size):
                return False
        for index in range(1, layers):
            if branch.pipeline_degree > 1 and (
                model.boundary_bytes(index, better, size) > model.boundary_bytes(index, worse, size)
                or model.transfer_s(index, better, size) > model.transfer_s(index, worse, size)
            ):
                return False
            for third in left:
                if third not in (better, worse) and (
                    model.conversion_s(index, third, better, size) > model.conversion_s(index, third, worse, size)
                    or model.conversion_s(index, better, third, size) > model.conversion_s(index, worse, third, size)
                ):
                    return False
    return True


def _shares_more(model: CostModel, left: list[Strategy], better: _Kept, worse: _Kept, size: int) -> bool:
    """Whether `better` adds more shared values than `worse`, first in a stage or beside any other strategy."""

    def added(kept: _Kept, before: Strategy | None = None, after: Strategy | None = None) -> float:
        strategy, ties = kept
        return added_shared_bytes(model, strategy if after else before, after or strategy, size, ties)

    others = [strategy for strategy in left if strategy not in (better[0], worse[0])]
    if any(added(better, before) > added(worse, before) for before in (None, *others)):
        return True
    return any(added(better, after=after) > added(worse, after=after) for after in others)


def _costs_no_more(model: CostModel, index: int, better: _Kept, worse: _Kept, size: int) -> bool:
    """Whether a layer costs no more, wherever its stage begins among the layers that have parameters of it too."""
    costs = [model.layer(index, strategy, size, ties) for strategy, ties in (better, worse)]
    for begin in {0, index, *(parameter.layer + 1 for cost in costs for parameter in cost.repeated)}:
        a, b = (cost.on_stage(begin) for cost in costs)
        pairs = (
            (a.forward_pass_s, b.forward_pass_s),
            (a.backward_pass_s, b.backward_pass_s),
            (a.forward_gather_s, b.forward_gather_s),
            (a.backward_gather_s + a.reduce_s, b.backward_gather_s + b.reduce_s),
            (a.reduce_s, b.reduce_s),  # what is left where the backward follows at once
            (a.sync_s, b.sync_s),
            (a.publish_s, b.publish_s),
            (a.start_s if a.bucket_bytes else 0.0, b.start_s if b.bucket_bytes else 0.0),
            (a.once_s, b.once_s),
            # The more of the first bucket a layer fills, the less of it is left for layers behind it.
            (b.bucket_bytes, a.bucket_bytes),
            (a.saved_bytes, b.saved_bytes),
            (a.state_bytes, b.state_bytes),
            (a.state_bytes - a.late_bytes, b.state_bytes - b.late_bytes),
            (a.state_bytes + a.update_bytes, b.state_bytes + b.update_bytes),
            (a.extra_bytes, b.extra_bytes),
            # The less of both speeds is left, the less hides beside the other.
            (b.contention.compute, a.contention.compute),
            (b.contention.communication, a.contention.communication),
        )
        if any(x > y for x, y in pairs):
            return False
    return True


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
            "a layer's own state and the activations of the smallest micro-batch bound its stage's memory from below",
            _too_much_state,
        ),
        PruningRule(
            "dominated-in-time-and-memory",
            True,
            "in any plan the dominated strategy can be replaced in all layers at once: every layer, conversion to a "
            "third strategy and transfer costs no more, and conversions between equals are free",
            _dominated,
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
        model, kept, cuts = cost_model(program), [], []
        for degree in dict.fromkeys(c.pipeline_degree for c in program.candidates):
            branch = [c for c in program.candidates if c.pipeline_degree == degree]
            removed = self._removed(program, program.required_cluster, model, degree, branch)
            cuts += [Cut(f"pp{degree}/{s}", rule, reason) for s, (rule, reason) in removed.items()]
            kept += [replace(c, strategies=tuple(s for s in c.strategies if s not in removed)) for c in branch]
        return replace(program, candidates=tuple(kept), cuts=(*program.cuts, *cuts))

    def _removed(
        self, program: Program, cluster: Cluster, model: CostModel, degree: int, branch: list[Candidates]
    ) -> dict[Strategy, tuple[str, str]]:
        """Strategies to cut at one pipeline degree, with rule and reason."""
        left = list(dict.fromkeys(s for c in branch for s in c.strategies))
        removed: dict[Strategy, tuple[str, str]] = {}
        for rule in RULES.values():
            if rule.name in self.without or not (rule.sound or self.heuristics):
                continue
            for strategy, reason in rule.cut(Branch(program, cluster, model, degree, tuple(left), self.memory)):
                removed[strategy] = rule.name, reason
            left = [s for s in left if s not in removed]
        return removed
