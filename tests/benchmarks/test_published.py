"""Published measurements: tables that are read, programs made of few layers, and one prediction of each table."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from accuracy.habits import FrameworkCosts
from accuracy.models import Shape
from accuracy.predict import predict
from accuracy.programs import program_of
from accuracy.rows import Framework
from accuracy.scatter import scatter
from accuracy.statistics import Outcome, accuracy
from accuracy.tables import TABLES, rows_of

from galvatron.costs.sharded import ShardedCostModel
from galvatron.ir.cluster import Cluster
from galvatron.ir.planned import without_plan
from galvatron.ir.strategy import Strategy
from galvatron.ir.verify import verify
from tests.marks import some_slow

DATA = Path("/work/shared/data/published")

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the tables of published measurements are not in {DATA}")

ROWS = {
    "megatron_sc21_table1": 10,
    "korthikanti22_table5": 8,
    "mcore_h100_weak_scaling": 9,
    "torchtitan_llama3": 32,
    "vtrain_a100_single_node": 1440,
    "sailor_validation": 36,
    "mist_l4": 6,
}


@pytest.mark.slow
@pytest.mark.parametrize("family", some_slow(["gpt"], ["llama"]))
def test_layers_that_are_repeated_are_those_of_a_deeper_capture(family: str) -> None:
    """Up to the order of state, which has no meaning."""
    shape = Shape(family, 5, 32, 4, 16, 64, 64, 4, flash=family == "llama", dropout=0.1 if family == "gpt" else 0.0)
    program = program_of(shape, "bf16")
    verify(program)
    captured = program_of(shape, "bf16", captured_layers=5)
    assert (program.layers, program.classes) == (captured.layers, captured.classes)
    assert set(program.state) == set(captured.state)


@pytest.mark.slow
def test_habits_change_what_they_say_and_nothing_else() -> None:
    shape = Shape("gpt", 3, 256, 4, 64, 512, 1024, 4, fused_softmax=True, tied=False)
    program = without_plan(program_of(shape, "f16"), Cluster.parse("a100-80g:4x8"), 64)
    strategy = Strategy.parse("dp2-tp8")
    own = ShardedCostModel(program, program.required_cluster, overlap=False)
    habits = Framework("f16"), Framework("f16", half_gradients=True, scatters=True, overlaps_layers=True)
    plain, other = (FrameworkCosts(program, framework) for framework in habits)
    before, after = (model.layer(1, strategy, 4, ()) for model in (own, other))
    assert plain.layer(1, strategy, 4, ()) == before
    assert plain.transfer_s(1, strategy, 4) == own.transfer_s(1, strategy, 4)
    assert after.sync_s == before.sync_s / 2
    assert after.state.gradients == before.state.gradients / 2
    assert after.backward_s < before.backward_s
    assert 0 < after.forward_communication_s < before.forward_communication_s
    assert replace(after, **{name: getattr(before, name) for name in CHANGED}) == before
    large = [model.transfer_s(1, strategy, 4096) for model in (own, other)]
    assert large[1] < large[0] / 3


CHANGED = ("backward_s", "sync_s", "across_s", "state", "forward_communication_s", "backward_communication_s")
"""What these habits change of the costs of a layer."""


@needs_data
@pytest.mark.parametrize("table", TABLES)
def test_each_row_of_a_table_is_a_plan_for_its_devices(table: str) -> None:
    rows = rows_of(table, DATA)
    assert len(rows) == ROWS[table]
    for row in (row for row in rows if not row.refused):
        assert sum(map(len, row.stages)) == row.shape.layers
        assert row.batch % row.micro_batches == 0
        assert row.step_s > 0


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_a_row_of_each_table_is_predicted_within_a_factor_of_three(table: str) -> None:
    row = next(row for row in rows_of(table, DATA) if not row.refused)
    prediction = predict(row)
    outcome = Outcome(row, prediction)
    assert 1 / 3 < prediction.step_s / row.step_s < 3
    assert all(-0.6 < error < 0.6 for error in outcome.memory_errors)
    found = accuracy(table, [outcome])
    assert (found.rows, found.refused) == (1, 0)
    assert found.median == abs(found.bias) == found.worst


def test_a_table_without_predictions_has_no_errors() -> None:
    found = accuracy("empty", [])
    assert found.rows == 0
    assert math.isnan(found.median)


def test_what_is_right_is_drawn_on_the_diagonal() -> None:
    drawing = scatter("some", [(0.1, 0.1), (1.0, 1.0), (10.0, 20.0)])
    circles = [line for line in drawing.splitlines() if line.startswith("<circle")]
    places = [[float(part.split('"')[1]) for part in line.split()[1:3]] for line in circles]
    assert [x + y == pytest.approx(480, abs=0.2) for x, y in places] == [True, True, False]
