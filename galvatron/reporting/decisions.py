"""The decision tree of a report: at each pipeline degree what was tried, what a rule took off, and what was left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from galvatron.answers.question import Question
from galvatron.ir.program import Cut
from galvatron.ir.strategy import Strategy
from galvatron.passes.planning import prune, tree

LISTED = 24_000
"""So many strategies, left or cut, are listed at most; all are counted. A thousand devices have millions."""


def decisions_data(question: Question) -> dict[str, Any]:
    """The branches at the root with their cuts and their leaves, for JSON.

    A cut is what it is of, its rule, and its reason, a place in `reasons`; a leaf is a place in `strategies`, and the
    classes that have it, where not all have. `more_cuts`, by rule, and `more_leaves` are those that are not listed.
    """
    program = question.candidates
    classes = list(dict.fromkeys(layer.cls for layer in program.planned_layers))
    roots = dict.fromkeys([*(f"pp{c.pipeline_degree}" for c in program.candidates), *map(_root, program.cuts)])
    each = LISTED // (2 * len(roots))
    reasons: dict[str, int] = {}
    strategies: dict[str, int] = {}
    branches: list[dict[str, Any]] = []
    for root in roots:
        cuts = [cut for cut in program.cuts if _root(cut) == root]
        left: dict[Strategy, list[int]] = {}
        for strategy, of in _leaves(question, root, classes):
            left.setdefault(strategy, []).append(of)
        told = list(left.items())[:each]
        branches.append(
            {
                "root": root,
                "cuts": [
                    [cut.branch.partition("/")[2], cut.rule, reasons.setdefault(cut.reason, len(reasons))]
                    for cut in cuts[:each]
                ],
                "more_cuts": Counter(cut.rule for cut in cuts[each:]),
                "leaves": [
                    [strategies.setdefault(str(strategy), len(strategies)), *([] if len(of) == len(classes) else of)]
                    for strategy, of in told
                ],
                "more_leaves": len(left) - len(told),
            }
        )
    rules = [*tree.RULES, *prune.RULES.values()]
    used = {cut.rule for cut in program.cuts}
    return {
        "branches": branches,
        "reasons": list(reasons),
        "strategies": list(strategies),
        "classes": classes,
        "rules": {rule.name: [rule.sound, rule.argument] for rule in rules if rule.name in used},
        "chosen": f"pp{question.plan.pipeline_degree}",
    }


def _root(cut: Cut) -> str:
    return cut.branch.partition("/")[0]


def _leaves(question: Question, root: str, classes: list[str]) -> Iterator[tuple[Strategy, int]]:
    """The strategies that are left at a pipeline degree, with the places of the classes that have them."""
    for candidates in question.candidates.candidates:
        if f"pp{candidates.pipeline_degree}" == root:
            yield from ((strategy, classes.index(candidates.cls)) for strategy in candidates.strategies)
