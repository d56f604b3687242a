"""The links of presets tell what was measured on such machines, and the fit is better than flat figures."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
from calibrate_links import LONG, PUBLISHED, Row, errors, halves, read

from galvatron.ir.cluster import Cluster

_ABOVE = [at / "shared/data/kernels" for at in Path(__file__).parents if (at / "shared/data/kernels").is_dir()]
TABLES = next(iter(_ABOVE), Path())
"""Condensed from microsoft/vidur (MIT), `data/profiling/network`."""

pytestmark = pytest.mark.skipif(not _ABOVE, reason="no shared/data/kernels in a folder above")


def in_a_node(card: str, kind: str) -> list[Row]:
    """Measured collectives in one node, of a size that training sends."""
    rows = [row for row in read(TABLES, card) if row.ranks == row.in_node and row.kind == kind]
    return [row for row in rows if row.size >= LONG]


def median_error(found: list[float]) -> float:
    return statistics.median(abs(math.exp(error) - 1) for error in found)


@pytest.mark.parametrize(("card", "kind", "most"), [
    ("a100", "all_reduce", 0.12), ("a100", "p2p", 0.20), ("h100", "all_reduce", 0.12), ("h100", "p2p", 0.07),
])  # fmt: skip
def test_presets_tell_what_was_measured(card: str, kind: str, most: float) -> None:
    levels = Cluster.parse(f"{card}-80g:2x8").levels
    assert median_error(errors(in_a_node(card, kind), (levels[0], levels[1]))) < most


def test_eight_a100s_do_not_reach_their_peak_with_33_megabytes() -> None:
    """2·7/8 · 36 MB in 424 us: 149 GB/s, where long messages reach 235."""
    (row,) = (row for row in in_a_node("a100", "all_reduce") if row.ranks == 8 and 33e6 < row.size < 40e6)
    levels = Cluster.parse("a100-80g:2x8").levels
    seconds = row.seconds * math.exp(errors([row], (levels[0], levels[1]))[0])
    assert 1.75 * row.size / seconds == pytest.approx(149e9, rel=0.12)


def test_half_of_the_sizes_are_held_out() -> None:
    for card in PUBLISHED:
        rows = read(TABLES, card)
        fitted, held = halves(rows)
        assert not {*fitted} & {*held} and {*fitted, *held} == {*rows}
        assert abs(len(fitted) - len(held)) <= len({row.shape for row in rows})
