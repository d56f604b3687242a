"""Blocks of samples as one batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from galvatron.data.joining import check_shared, digests, joined
from galvatron.errors import GalvatronError

ROWS: Any = SimpleNamespace(wanted=((0, 1), (4, 5)))


def blocks(*scales: float) -> list[dict[str, Any]]:
    return [{"ids": torch.ones(2, 3), "scale": torch.tensor(scale), "turns": 2} for scale in scales]


def test_what_has_no_rows_must_be_alike() -> None:
    found = joined(blocks(0.5, 0.5), ROWS, dict, {"ids"})
    assert found["ids"].shape == (4, 3) and float(found["scale"]) == 0.5
    with pytest.raises(GalvatronError, match="makes 'scale' without a row for each sample, and with other values"):
        joined(blocks(0.5, 0.25), ROWS, dict, {"ids"})


def test_ranks_must_have_the_same_of_it() -> None:
    ranks = [digests(joined(blocks(s, s), ROWS, dict, {"ids"}), ROWS, {"ids"}) for s in (0.5, 0.25)]
    check_shared([ranks[0], ranks[0]])
    with pytest.raises(GalvatronError, match="whole_batches=True"):
        check_shared(ranks)
