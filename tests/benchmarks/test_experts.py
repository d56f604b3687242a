"""Predictions of plans with experts beside measured steps, and what is compared with what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import emulated_cluster
import experts
import pytest
from accuracy.steps import Measured
from common.llama import Size

from galvatron.ir.planned import PlanShorthand
from galvatron.profiler.document import print_profiles
from tests.profiler.profiles import PROFILE

SIZE = Size(vocabulary=64, width=16, hidden=32, heads=2, layers=2, sequence=8, experts=8)


def model(*, uneven: bool) -> experts.Model:
    return experts.Model(SIZE, 16, ("ep4", "dp4"), experts.RANKS, uneven)


def test_plans_are_for_the_ranks_that_there_are() -> None:
    plans = [PlanShorthand.parse(plan) for plan in experts.PLANS]
    assert len(plans) == 8 and {plan.world_size for plan in plans} == {experts.RANKS}


@pytest.mark.slow
def test_predictions_are_for_the_skew_that_was_counted(tmp_path: Path) -> None:
    profile = tmp_path / "plain.profile.json"
    profile.write_text(print_profiles([PROFILE]), encoding="utf-8")
    by_rank = (0.1,) * experts.RANKS
    taken = vars(Measured(by_rank, by_rank, by_rank, by_rank, by_rank, by_rank, (100,) * experts.RANKS))
    even, uneven = model(uneven=False), model(uneven=True)
    found = {"ep4": taken, "dp4": taken, "dp8": {"refused": "too many"}}
    sent, kept = experts.compare("uneven", uneven, found, profile)
    assert 1 <= even.skew(4) < 1.5 < sent.estimate.skew == uneven.skew(4) < 4  # type: ignore[operator]  # it has one
    assert sent.estimate.balanced is not None and sent.predicted_s > sent.estimate.balanced.step_time_s
    assert kept.estimate.skew == uneven.skew(1) == 1


def test_a_searched_plan_is_beside_fixed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def main(words: Sequence[str]) -> int:
        given.extend(words)
        return 0

    monkeypatch.setattr(emulated_cluster, "main", main)
    assert experts.main(["network", "--rounds", "1"]) == 0
    arguments = emulated_cluster.parse(given)
    assert arguments.baselines == [] and arguments.plan == ["search"] and arguments.rounds == 1
    assert arguments.against == ["dp4", "dp4-zero3", "tp4"] and arguments.experts == 8


def test_ratios_are_to_the_best_of_the_plans_that_are_baselines() -> None:
    samples = {
        name: [emulated_cluster.Sample(name, seconds, size, 1.0, None, "")]
        for name, seconds, size in (("search", 0.5, 50), ("dp4", 0.6, 200), ("tp4", 1.0, 50))
    }
    rows = {row.contestant: row for row in emulated_cluster.rows_of(samples, 8, 100, ("dp4", "tp4"))}
    assert rows["search"].ratio_to_best_baseline is not None and rows["search"].ratio_to_best_baseline.median == 2
