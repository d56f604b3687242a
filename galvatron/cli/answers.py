"""Answers as text for a reader, from what they are in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from galvatron.breakdown import TITLES
from galvatron.printing import text_table
from galvatron.units import format_bytes, format_seconds


def explanation_text(told: Mapping[str, Any]) -> str:
    """What limits a plan, where its time goes, and what would shorten it."""
    step_s = told["step_time_s"]
    lines = [f"a step takes {format_seconds(step_s)}"]
    if told["best_s"] < step_s * (1 - 1e-3):
        lines.append(f"a search finds a plan that takes {format_seconds(told['best_s'])}")
    lines += [
        f"limited by: {TITLES.get(told['binding'], told['binding'])}",
        "memory in use of the budget, by pipeline rank: " + ", ".join(f"{used:.1%}" for used in told["used"]),
        f"pipeline rank {told['critical_rank']}, which waits least: "
        + ", ".join(
            f"{TITLES.get(kind, kind)} {seconds / step_s:.1%}" for kind, seconds in told["critical_parts"].items()
        ),
        "",
        *text_table(
            ("class", "layers", "compute", "communication", "once per step"),
            [
                (
                    own["cls"],
                    str(own["layers"]),
                    *(format_seconds(own[f"{kind}_s"]) for kind in ("compute", "communication", "once")),
                )
                for own in told["classes"]
            ],
        ),
        "",
        _bought("one more GiB per device", told["one_more_gib"], told["best_s"], "its multiplier tells at most"),
        _bought("twice the bandwidth", told["twice_the_bandwidth"], told["best_s"], "with this very plan"),
    ]
    return "\n".join(lines)


def why_not_text(told: Mapping[str, Any]) -> str:
    """Which rules cut what was asked for, and what the best plan with it takes."""
    lines = [f"{count} by {rule}: {reason}" for rule, count, reason in told["cuts"]]
    lines = [f"strategies with {told['asked']} that rules cut:", *(f"  {line}" for line in lines)] if lines else []
    if told["plan"] is None:
        return "\n".join([*lines, f"no plan has {told['asked']}: {told['refusal']}"])
    more = f"{format_seconds(abs(told['more_s']))} {'more' if told['more_s'] >= 0 else 'less'} than the best"
    return "\n".join(
        [
            *lines,
            f"the best plan with {told['asked']} takes {format_seconds(told['step_time_s'])}, {more}",
            told["plan"],
        ]
    )


def alternatives_text(told: Sequence[Mapping[str, Any]]) -> str:
    """Plans, the fastest first, and what the others take more."""
    best_s = told[0]["step_time_s"] if told else 0.0
    rows = [
        (
            format_seconds(own["step_time_s"]),
            f"+{own['step_time_s'] / best_s - 1:.1%}",
            format_bytes(max(own["peak_bytes"])),
            own["plan"],
        )
        for own in told
    ]
    return "\n".join(text_table(("step time", "", "peak memory", "plan"), rows))


def differences_text(told: Sequence[Mapping[str, Any]]) -> str:
    """In what two plans differ."""
    rows = [(own["what"], own["first"], own["second"]) for own in told]
    return "\n".join(text_table(("", "first", "second"), rows)) if rows else "the plans are the same"


def curve_text(told: Sequence[Mapping[str, Any]]) -> str:
    """Budgets, with the fastest plan that fits."""
    rows = [
        (
            format_bytes(own["memory_bytes"]),
            "nothing fits" if own["step_time_s"] is None else format_seconds(own["step_time_s"]),
            own["plan"] or "",
        )
        for own in told
    ]
    return "\n".join(text_table(("budget", "step time", "plan"), rows))


def _bought(what: str, told: Mapping[str, Any], before_s: float, how: str) -> str:
    found = told["step_time_s"]
    searched = "no plan" if found is None else f"{format_seconds(max(0.0, before_s - found))} less when searched again"
    return f"{what}: {searched} ({how} {format_seconds(max(0.0, told['told_s']))})"
