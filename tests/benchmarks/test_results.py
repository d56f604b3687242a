"""Figures and files of the benchmarks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from common import results
from common.measure import Spread, in_turn, ratios


@dataclass(frozen=True)
class Row:
    case: str
    ranks: int
    spread: Spread


def test_rows_of_other_keys_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    before = results.conditions()
    for case, figure in (("dp", 1.0), ("tp", 2.0), ("dp", 3.0)):
        entry = results.entry(Row(case, 2, Spread.of([figure])), before, samples=4)
        path = results.save("some", [entry], key=("case", "ranks"))
    rows = {row["case"]: row for row in json.loads(path.read_text())["rows"]}
    assert {case: row["spread"]["median"] for case, row in rows.items()} == {"dp": 3.0, "tp": 2.0}
    assert rows["dp"]["samples"] == 4
    assert {"date", "torch", "cpu", "load_average_before", "load_average_after"} <= set(rows["dp"]["conditions"])


def test_ratios_are_of_the_same_round() -> None:
    assert ratios([1.0, 20.0, 3.0], [2.0, 40.0, 6.0]) == Spread(0.5, 0.5, 0.5, 0.5, 0.5)


def test_every_round_begins_with_another_contestant() -> None:
    order: list[str] = []
    times = in_turn({name: lambda name=name: order.append(name) for name in "abc"}, 2, warm=1)
    assert "".join(order) == "abcbcacab"
    assert {name: len(figures.wall_s) for name, figures in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_steps_before_a_timed_one_are_the_same_contestants() -> None:
    order: list[str] = []
    times = in_turn({name: lambda name=name: order.append(name) for name in "ab"}, 2, warm=0, before=2)
    assert "".join(order) == "aaabbb" + "bbbaaa"
    assert [len(figures.wall_s) for figures in times.values()] == [2, 2]
