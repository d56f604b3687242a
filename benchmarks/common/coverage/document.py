"""`docs/coverage.md` and the summary, from what became of the rows."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.table import Table

from common.architectures import FAMILIES, architectures
from common.coverage.outcomes import OUTCOMES, RowOutcome

DOCUMENT = Path(__file__).parents[3] / "docs" / "coverage.md"

_INTRODUCTION = """\
# Coverage

Written by `make coverage` from `benchmarks/results/coverage.json`; not by hand.

Every row is a real architecture with a small random configuration, in training mode, in float64 and without dropout
(`benchmarks/common/architectures/`). It is captured once, from a batch of 4 samples, and does a step on another
batch, of 8 samples where its program allows, under four plans on two ranks. Loss, every gradient and every buffer
after the step are compared with those of the unmodified model on one device, and then the loss in evaluation mode:
*equal* is within a relative error of 1e-9 (1e-5 for a model that itself computes something in float32, marked `f32`).
*Refused* is an error that says why; *wrong*, *crash* and *timeout* are bugs. Where a plan does not apply to a
program, such as several micro-batches to one that couples its samples, the next of its kind is tried, and why is said
below. A capture is timed in CPU seconds.
"""


def rows_in(path: Path) -> list[RowOutcome]:
    """The rows of a results file that are still in the registry, in its order."""
    known = {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    return [RowOutcome.read(known[row.name]) for row in architectures() if row.name in known]


def document(rows: Sequence[RowOutcome]) -> str:
    """The whole document."""
    parts = [_INTRODUCTION, _figures(rows)]
    for family in FAMILIES:
        own = [row for row in rows if row.family == family]
        if own:
            parts.append(f"## {family.replace('_', ' ').capitalize()}\n\n" + _table(own))
    if missing := [row.name for row in architectures() if row.name not in {row.name for row in rows}]:
        parts.append(f"## Not run yet\n\n{len(missing)} of {len(missing) + len(rows)} rows: {', '.join(missing)}\n")
    parts.append("## Why rows are not equal\n\n" + _causes(rows))
    parts.append("## Models that are only trained\n\n" + _not_evaluated(rows))
    parts.append("## Plans that do not apply\n\n" + _passed_over(rows))
    return "\n".join(parts)


def summary(rows: Sequence[RowOutcome]) -> Table:
    """Outcomes by family."""
    kinds = [kind for kind in OUTCOMES if any(row.outcome == kind for row in rows)]
    table = Table(title=_sentence(rows))
    for heading in ("family", "rows", *kinds, "median capture s"):
        table.add_column(heading, justify="left" if heading == "family" else "right")
    for family in [*FAMILIES, None]:
        own = [row for row in rows if family in (None, row.family)]
        if own:
            counted = Counter(row.outcome for row in own)
            figures = [str(counted[kind] or "") for kind in kinds]
            table.add_row(family or "all", str(len(own)), *figures, _median(own), end_section=family == FAMILIES[-1])
    return table


def _sentence(rows: Sequence[RowOutcome]) -> str:
    equal = sum(row.outcome == "equal" for row in rows)
    plans = Counter(plan.outcome for row in rows for plan in row.plans)
    return (
        f"{equal} of {len(rows)} architectures equal eager under all their plans; "
        f"{plans['equal']} of {plans.total()} plans"
    )


def _median(rows: Iterable[RowOutcome]) -> str:
    captured = [row.capture_s for row in rows if row.capture_s is not None and row.layers]
    return f"{statistics.median(captured):.1f}" if captured else ""


def _figures(rows: Sequence[RowOutcome]) -> str:
    counted = Counter(row.outcome for row in rows)
    lines = [
        f"{_sentence(rows)}. Median time of a capture: {_median(rows) or '-'} s.\n",
        "| outcome | rows |",
        "|---|---|",
    ]
    lines += [f"| {kind} | {counted[kind]} |" for kind in OUTCOMES if counted[kind]]
    seen = Counter(plan.plan for row in rows for plan in row.plans)
    good = Counter(plan.plan for row in rows for plan in row.plans if plan.outcome == "equal")
    lines += ["", "| plan | rows | equal |", "|---|---|---|"]
    lines += [f"| `{plan}` | {seen[plan]} | {good[plan]} |" for plan in sorted(seen)]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[RowOutcome]) -> str:
    lines = ["| model | library | parameters | layers | capture s | outcome | plans |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        plans = ", ".join(f"`{p.plan}`" + ("" if p.outcome == "equal" else f" **{p.outcome}**") for p in row.plans)
        outcome = row.outcome if row.outcome == "equal" else f"**{row.outcome}**"
        capture = "" if row.capture_s is None else f"{row.capture_s:.1f}"
        name = row.name + (" (f32)" if row.single else "")
        lines.append(
            f"| {name} | {row.library} | {row.parameters:,} | {row.layers or ''} | {capture} | {outcome} | {plans} |"
        )
    return "\n".join(lines) + "\n"


def _causes(rows: Sequence[RowOutcome]) -> str:
    """Every row that is not equal by what was said, the worst outcomes first."""
    causes: dict[tuple[int, str, str], list[str]] = {}
    for row in rows:
        if row.outcome == "equal":
            continue
        for outcome, cause, where in [
            *([(row.outcome, row.cause, row.name)] if row.cause else []),
            *((p.outcome, p.cause, f"{row.name} under `{p.plan}`") for p in row.plans if p.outcome != "equal"),
        ]:
            causes.setdefault((-OUTCOMES.index(outcome), outcome, cause.strip()), []).append(where)
    parts = [
        f"**{outcome}**: {', '.join(where)}\n\n```text\n{cause}\n```\n"
        for (_, outcome, cause), where in sorted(causes.items(), key=lambda item: item[0][0])
    ]
    return "\n".join(parts) or "There are none.\n"


def _not_evaluated(rows: Sequence[RowOutcome]) -> str:
    """What does something else in evaluation mode that the program does not have."""
    lines = [f"- {row.name}: {' '.join(row.evaluation.split())}" for row in rows if row.evaluation]
    return "\n".join(lines or ["There are none."]) + "\n"


def _passed_over(rows: Sequence[RowOutcome]) -> str:
    lines = [
        f"| {row.name} | `{plan}` | {' '.join(cause.split()).replace('|', chr(92) + '|')} |"
        for row in rows
        for tried in row.plans
        for plan, cause in (tried.passed_over or {}).items()
        if plan != tried.plan
    ]
    return "\n".join(["| model | plan | why |", "|---|---|---|", *lines]) + "\n" if lines else "There are none.\n"
