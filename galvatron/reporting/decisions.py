"""The decision tree of a report: at each pipeline degree what was tried, what a rule took off, and what was left."""

from __future__ import annotations

from typing import Any

from galvatron.answers.question import Question
from galvatron.passes.planning import prune, tree


def decisions_data(question: Question) -> dict[str, Any]:
    """The branches at the root with their cuts and their leaves, for JSON.

    Reasons are places in `reasons`, strategies places in `strategies`, both of which repeat from branch to branch.
    """
    program = question.candidates
    reasons: dict[str, int] = {}
    strategies: dict[str, int] = {}
    classes = list(dict.fromkeys(layer.cls for layer in program.planned_layers))
    branches: dict[str, dict[str, Any]] = {}

    def branch(root: str) -> dict[str, Any]:
        return branches.setdefault(root, {"root": root, "cuts": [], "leaves": []})

    for candidates in program.candidates:
        branch(f"pp{candidates.pipeline_degree}")
    for cut in program.cuts:
        root, _, rest = cut.branch.partition("/")
        reason = reasons.setdefault(cut.reason, len(reasons))
        branch(root)["cuts"].append([rest, cut.rule, reason])
    for root, own in branches.items():
        left: dict[str, list[int]] = {}
        for candidates in program.candidates:
            if f"pp{candidates.pipeline_degree}" == root:
                for strategy in candidates.strategies:
                    left.setdefault(str(strategy), []).append(classes.index(candidates.cls))
        own["leaves"] = [
            [strategies.setdefault(text, len(strategies)), *([] if len(of) == len(classes) else of)]
            for text, of in left.items()
        ]
    rules = [*tree.RULES, *prune.RULES.values()]
    used = {rule for own in branches.values() for _, rule, _ in own["cuts"]}
    return {
        "branches": list(branches.values()),
        "reasons": list(reasons),
        "strategies": list(strategies),
        "classes": classes,
        "rules": {rule.name: [rule.sound, rule.argument] for rule in rules if rule.name in used},
        "chosen": f"pp{question.plan.pipeline_degree}",
    }
