"""Models whose forward does something unusual, under every kind of plan, against eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from galvatron.batches import BatchReader
from galvatron.errors import PlanError
from tests.marks import some_slow
from tests.parity.forwards import FORWARDS, inputs
from tests.parity.harness import check, costed, planned, subject

FAST = [
    ("write-halves", "m2/dp2"), ("write-scan", "tp2+sp"), ("size-inverse", "m2/dp2"), ("target-zeros", "m2/dp2"),
    ("input-table", "pp2/m2/1f1b/dp1"), ("size-repeat", "m2/dp2"), ("complex-attended", "tp2+sp"),
    ("traced-repeated", "m2/dp2"), ("aligned-mean", "m2/dp2"), ("converted-without-gradients", "m2/dp2"),
]  # fmt: skip
PLANS = ["dp2", "m2/dp2", "m4/dp1", "tp2", "m2/tp2+sp", "pp2/m2/1f1b/dp1", "pp2/m4/gpipe/dp2-zero3", "ulysses2"]
ALL = [(name, plan) for name in FORWARDS for plan in PLANS]


@pytest.mark.one_in(6)
@pytest.mark.parametrize(("model", "plan"), some_slow(FAST, ALL))
def test_equals_eager(model: str, plan: str) -> None:
    check(model, plan)


def test_a_plan_for_a_batch_on_the_other_side_of_a_branch_is_refused() -> None:
    plan = planned("size-branch", "dp2", 2).plan
    assert plan is not None
    with pytest.raises(PlanError, match="branches on the size of its batch, and was captured for batches from 1 to 63"):
        planned("size-branch", replace(plan, global_batch_size=64))


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("size-branch", lambda batch: inputs(FORWARDS["size-branch"], 64, 0), "captured for batches from 1 to 63"),
        ("input-row", lambda batch: batch | {"target": batch["target"][:4]}, "need the same number of samples"),
        ("input-row", lambda batch: batch | {"shift": batch["x"]}, "compile with batch_dims={'shift': 0}"),
    ],
)
def test_a_batch_outside_the_program_is_refused(model: str, change: Callable[[Any], Any], message: str) -> None:
    batch = inputs(FORWARDS[model], 8, 0)
    read = BatchReader(subject(model).model, batch, costed(model)[0]).read
    assert read(batch).keys() == batch.keys()
    with pytest.raises(PlanError, match=message):
        read(change(batch))
