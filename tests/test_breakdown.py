"""What a predicted step is made of: nothing is left out, nothing counts twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import galvatron
from galvatron.breakdown import breakdown
from galvatron.cli import app
from galvatron.ir.text import print_program
from tests.ir.programs import clustered

PLANS = ("m2/dp4-zero1", "m2/dp2-tp2", "pp2/m4/1f1b/dp2", "pp2/m4/interleaved2/dp2-zero2", "dp4-zero3-recompute")


@pytest.mark.parametrize("plan", PLANS)
def test_parts_add_up(plan: str) -> None:
    estimate = galvatron.estimate(clustered(), plan, "a100-80g:1x4", global_batch_size=16)
    micro_batches = int(next((p[1:] for p in plan.split("/") if p[0] == "m"), "1"))
    stages = breakdown(estimate.step_time_s, estimate.stages, micro_batches)
    assert len(stages) == len(estimate.stages)
    for stage, report in zip(stages, estimate.stages, strict=True):
        assert stage.step_s == pytest.approx(estimate.step_time_s, rel=1e-9)
        assert sum(size for _, size in stage.memory) == pytest.approx(report.peak_bytes, abs=1)
        kinds = [part.kind for part in stage.times]
        assert len(set(kinds)) == len(kinds)
        assert ("others" in kinds) == ("interleaved" in plan)
        assert {part.kind: part.exposed_s for part in stage.times}["compute"] > 0


def test_a_table_and_json(tmp_path: Path) -> None:
    program = tmp_path / "p.gir"
    program.write_text(print_program(clustered()))
    arguments = [
        "estimate",
        str(program),
        "--cluster",
        "a100-80g:1x4",
        "--plan",
        "pp4/m4/1f1b/dp1",
        "--global-batch",
        "16",
    ]
    result = CliRunner().invoke(app, [*arguments, "--breakdown"])
    assert result.exit_code == 0, result.output
    rows = {line.split("│")[1].strip(): line for line in result.stdout.splitlines() if line.count("│") > 2}
    assert "%" in rows["compute"] and "%" in rows["waiting"] and "%" in rows["from other stages"]
    assert "iB" in rows["activations"] or " B" in rows["activations"]
    assert "end of the loss" not in rows, "what takes nothing is left out"
    assert "breakdown" not in json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    told = json.loads(CliRunner().invoke(app, [*arguments, "--breakdown", "--json"]).stdout)
    assert len(told["breakdown"]) == 4
    for stage in told["breakdown"]:
        assert sum(part["exposed_s"] for part in stage["times"].values()) == pytest.approx(told["step_time_s"])
