"""The driver: applies rules to a graph until none changes anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache

from galvatron.ir.graph import Graph, Op, Ref
from galvatron.ir.names import Names
from galvatron.rewriting.builder import Builder
from galvatron.rewriting.rules import RewriteRule
from galvatron.rewriting.sharing import without_repeats

_Lookup = Callable[[str], Sequence[RewriteRule]]
"""The rules to try on an op, by its target."""


def rewritten(graph: Graph, rules: Iterable[RewriteRule], trainable: Iterable[str]) -> Graph:
    """The graph after every rewrite that applies, and those that they make possible; earlier rules of the list first.

    Ops and state that nobody reads are gone, and what depends on no trainable state is computed once.

    Args:
        trainable: names of the state that gradients flow to.
    """
    rules, trainable = tuple(rules), frozenset(trainable)
    lookup = cache(lambda target: tuple(rule for rule in rules if rule.fits(target)))
    names = Names(graph.values)  # one for all walks: a name keeps its value
    while (simpler := without_repeats(_walked(graph, lookup, trainable, names), trainable)) != graph:
        graph = simpler
    return graph


def _walked(graph: Graph, rules: _Lookup, trainable: frozenset[str], names: Names) -> Graph:
    """One walk from inputs to outputs."""
    build = Builder(graph, trainable, names)
    for op in graph.ops:
        build.begin(op)
        outcome = _step(rules, build)
        while isinstance(outcome, Op):
            build.become(outcome)
            outcome = _step(rules, build)
        build.finish(outcome)
    return build.graph


def _step(rules: _Lookup, build: Builder) -> Op | tuple[Ref, ...] | None:
    """What the first rule that changes the op at hand makes of it; None if none does: rules are about operators."""
    if build.op.function is not None:
        return None
    for rule in rules(build.op.target):
        outcome = rule.apply(build.op, build)
        if outcome is not None and outcome != build.op:
            return (outcome,) if isinstance(outcome, Ref) else outcome
    return None
