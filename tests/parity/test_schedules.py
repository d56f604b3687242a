"""Schedules with several stages per rank, against eager PyTorch."""

from __future__ import annotations

import pytest

from tests.parity.harness import check

PLANS = [
    f"pp2/{m}/{schedule}/{strategy}"
    for m, schedule in (("m4", "interleaved2"), ("m3", "zbv"))
    for strategy in ("dp2", "tp2")
]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("model", ["llama-tied", "gpt-untied"])
def test_several_stages_on_a_rank(model: str, plan: str) -> None:
    check(model, plan, global_batch_size=24)
