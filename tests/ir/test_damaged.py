"""Damaged programs and plans: each is read and found valid, or refused with an error of ours; nothing else happens: it
takes neither long nor much memory, and nothing of it is run."""

from __future__ import annotations

import random

import pytest

from galvatron.checking.program import check_program
from galvatron.errors import GalvatronError
from galvatron.ir.plan import Plan
from galvatron.ir.planned import check
from galvatron.ir.text import parse_program, print_program
from tests.ir.damaged import PLANS, TEXTS, mutated, mutated_document
from tests.ir.guarding import Hangs, guarded
from tests.ir.programs import clustered

FAST, ALL = 200, 10_000


def read_program(seed: int) -> bool:
    """Reads and checks one damaged program; what is valid also prints and reads back. Whether it was."""
    draw = random.Random(seed)
    text = mutated(draw.choice(TEXTS), draw)
    try:
        with guarded():
            program = parse_program(text)
            refused = check_program(program, text).refused
            if refused is None:
                assert parse_program(print_program(program)) == program
    except GalvatronError as error:
        assert str(error)
        return False
    except (Exception, Hangs) as error:
        raise AssertionError(f"mutation {seed}:\n{text[:20_000]}") from error
    assert refused is None or refused.faults
    return refused is None


def read_plan(seed: int) -> bool:
    """Reads one damaged plan and checks it against its program; what is valid is written and read back."""
    draw = random.Random(seed)
    text = mutated_document(draw.choice(PLANS), draw)
    try:
        with guarded():
            plan = Plan.from_json(text)
            assert Plan.from_json(plan.to_json()) == plan
            check(plan, clustered(6), 4, 16)
    except GalvatronError as error:
        str(error).encode()
        return False
    except (Exception, Hangs) as error:
        raise AssertionError(f"mutation {seed}:\n{text[:5000]}") from error
    return True


@pytest.mark.parametrize("read", [read_program, read_plan])
def test_damaged_files(read) -> None:
    valid = sum(read(seed) for seed in range(FAST))
    assert 0 < valid < FAST


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("read", [read_program, read_plan])
def test_many_damaged_files(read) -> None:
    for seed in range(FAST, ALL):
        read(seed)
