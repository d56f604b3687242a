"""A rank is killed at any moment, and the run goes on: no sample is lost or comes twice, and losses are those of a run
that nothing has disturbed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.recovery import JOBS, killed_again_and_again, killed_on_other_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("plan", ["m2/dp2-zero2", "pp2/m2/1f1b/dp1"])
def test_of_twenty_kills_all_are_recovered_from(plan: str, tmp_path: Path) -> None:
    found = killed_again_and_again(tmp_path, plan, 20, random.Random(plan))
    assert found.is_well, found
    assert found.redone_steps > 0, "nothing was done twice"


def test_goes_on_with_other_numbers_of_ranks(tmp_path: Path) -> None:
    found = killed_on_other_ranks(tmp_path, len(JOBS) - 1, random.Random(0))
    assert found.is_well, found
