"""Predictions beside measured steps: kept ones predicted again, and new ones taken, of a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cost_accuracy
import pytest
from accuracy.local import Comparison, summary
from accuracy.models import Shape
from accuracy.plans import MODELS, RANKS, Model
from accuracy.steps import Measured, measured, teller
from common.jobs import on_ranks

from galvatron.ir.cluster import Cluster
from galvatron.ir.planned import PlanShorthand
from galvatron.offline import Estimate
from galvatron.profiler.document import print_profiles
from tests.profiler.profiles import PROFILE

TINY = Model(Shape("llama", 2, 16, 2, 8, 32, 32, 2, flash=True, tied=False), 4, ("dp2", "tp2", "dp8"))


def taken(step_s: float, peak_bytes: int = 100) -> Measured:
    by_rank = (step_s,) * RANKS
    return Measured((step_s,) * 3, (step_s,) * 3, by_rank, by_rank, by_rank, by_rank, (peak_bytes,) * RANKS)


@pytest.mark.parametrize("name", MODELS)
def test_plans_are_for_the_ranks_that_there_are(name: str) -> None:
    for text in MODELS[name].plans:
        plan = PlanShorthand.parse(text)
        assert plan.pipeline_degree * plan.strategy.devices == RANKS
        assert MODELS[name].samples % plan.micro_batches == 0


@pytest.mark.slow
def test_what_was_measured_is_predicted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost_accuracy, "MODELS", {"tiny": TINY})
    results = tmp_path / "kept.json"
    rows = [
        {"network": "plain", "model": "tiny", "plan": plan, **vars(taken(step_s))}
        for plan, step_s in (("dp4", 0.1), ("pp2/m2/1f1b/dp2", 0.2), ("pp4/m4/gpipe/dp1", 0.3))
    ]
    refused = {"network": "plain", "model": "tiny", "plan": "dp8", "refused": "too many"}
    results.write_text(json.dumps({"benchmark": "cost_accuracy", "rows": [*rows, refused]}), encoding="utf-8")
    profile = cost_accuracy.profile_path(results, "plain")
    profile.parent.mkdir()
    profile.write_text(print_profiles([PROFILE]), encoding="utf-8")
    assert cost_accuracy.main(["--predict-only", str(results)]) == 0
    assert "pp2/m2/1f1b/dp2" in capsys.readouterr().out
    kept = json.loads(results.read_text(encoding="utf-8"))["rows"]
    assert kept[-1] == refused
    for row in kept[:-1]:
        assert row["predicted_s"] > 0 and len(row["predicted_bytes"]) == RANKS
    drawing = (profile.parent / "plain.svg").read_text(encoding="utf-8")
    assert drawing.count("<circle") == len(rows)


def test_errors_are_those_of_steps_and_of_each_rank() -> None:
    def compared(predicted_s: float, measured_s: float, peaks: tuple[int, ...]) -> Comparison:
        return Comparison("plain", "tiny", "", taken(measured_s), Estimate(predicted_s, peaks, ()))

    found = summary("plain", [compared(1.1, 1.0, (100, 90)), compared(1.8, 2.0, (110,)), compared(4.0, 4.0, (100,))])
    assert (found.plans, found.order) == (3, pytest.approx(1.0))
    assert (found.median, found.worst, found.bias) == pytest.approx((0.1, 0.1, 0.0))
    assert (found.memory_median, found.memory_low) == pytest.approx((0.05, -0.1))


def rank(path: str) -> dict[str, Any]:
    return dict(measured(TINY, Cluster.parse("a100-80g:1x2"), 2, teller(path, True)))


@pytest.mark.slow
def test_plans_take_turns_and_refused_ones_leave(tmp_path: Path) -> None:
    told = tmp_path / "told"
    found = on_ranks(rank, 2, str(told))
    assert list(found) == ["dp8", "dp2", "tp2"]
    assert "refused" in found["dp8"]
    one = Measured(**found["dp2"])
    assert len(one.step_s) == 2 and len(one.peak_bytes) == len(one.compute_s) == 2
    assert all(compute_s > 0 for compute_s in one.compute_s)
    assert min(one.peak_bytes) > 10_000
    assert "tp2: compiling" in told.read_text()
