"""The driver: applies rules to a graph until none changes anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

from galvatron.ir.graph import Graph, Op, Ref
from galvatron.ir.names import Names
from galvatron.rewriting.builder import Builder
from galvatron.rewriting.record import Rewrite, Rewrites
from galvatron.rewriting.rules import RewriteRule
from galvatron.rewriting.sharing import without_repeats

_Lookup = Callable[[str], Sequence[tuple[str, RewriteRule]]]
"""The rules to try on an op, with their names, by its target."""


def rewritten(
    graph: Graph, rules: Mapping[str, RewriteRule], trainable: Iterable[str], rewrites: Rewrites | None = None
) -> Graph:
    """The graph after every rewrite that applies, and those that they make possible; earlier rules first.

    Ops and state that nobody reads are gone, and what depends on no trainable state is computed once.

    Args:
        rules: by their names.
        trainable: names of the state that gradients flow to.
        rewrites: where it is kept what was rewritten, and which may allow no more.
    """
    trainable, rewrites = frozenset(trainable), rewrites or Rewrites()
    lookup = cache(lambda target: tuple((name, rule) for name, rule in rules.items() if rule.fits(target)))
    names = Names(graph.values)  # one for all walks: a name keeps its value
    while (simpler := without_repeats(_walked(graph, lookup, trainable, names, rewrites), trainable)) != graph:
        graph = simpler
    return graph


def _walked(graph: Graph, rules: _Lookup, trainable: frozenset[str], names: Names, rewrites: Rewrites) -> Graph:
    """One walk from inputs to outputs."""
    build = Builder(graph, trainable, names)
    for op in graph.ops:
        build.begin(op)
        outcome = _step(rules, build, rewrites)
        while isinstance(outcome, Op):
            build.become(outcome)
            outcome = _step(rules, build, rewrites)
        build.finish(outcome)
    return build.graph


def _step(rules: _Lookup, build: Builder, rewrites: Rewrites) -> Op | tuple[Ref, ...] | None:
    """What the first rule that changes the op at hand makes of it; None if none does: rules are about operators."""
    if build.op.function is not None or not rewrites.may_go_on:
        return None
    for name, rule in rules(build.op.target):
        outcome = rule.apply(build.op, build)
        if outcome is not None and outcome != build.op:
            rewrites.done.append(Rewrite(name, build.op))
            return (outcome,) if isinstance(outcome, Ref) else outcome
    return None
