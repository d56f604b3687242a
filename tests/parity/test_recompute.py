"""Layers whose activations are computed again in the backward."""

from __future__ import annotations

import pytest

from tests.parity.harness import check


@pytest.mark.parametrize("kind", ["recompute", "recompute=selective"])
@pytest.mark.parametrize("plan", ["m2/dp2-tp2", "m2/cp2-ulysses2", "pp2/m4/1f1b/tp2+sp"])
def test_recomputed_layers_equal_eager(plan: str, kind: str) -> None:
    check("llama", f"{plan}-{kind}")
