"""What a search is told, as one value: what it refuses by itself, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import galvatron
from galvatron.answers import plan_cache
from galvatron.answers.plan_cache import plan_file, remembered
from galvatron.errors import GalvatronError
from galvatron.forms import searched, with_costs
from galvatron.ir.plan import Plan
from galvatron.ir.planned import with_plan
from galvatron.ir.program import Program
from galvatron.ir.text import parse_program, print_program
from galvatron.search_options import SearchOptions
from tests.ir.programs import costed
from tests.passes.planning.search.test_search import cluster

SMALL = SearchOptions(roles=("dp", "tp"), zero=(0,), recompute=("none",))


@pytest.fixture(scope="module")
def program() -> Program:
    return with_costs(costed(), cluster("a100-80g:1x2"), 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"require": "tp2"}, "option 'require' of a search is a list, not 'tp2'"),
        ({"require": ["tq2"]}, "unknown trait 'tq2'; did you mean 'tp2'"),
        ({"forbid": [3]}, "forbid"),
        ({"max_tp": 0}, "'max_tp' of a search is a whole number of at least 1"),
        ({"pipeline_degree": "4"}, "'pipeline_degree' of a search is a whole number"),
        ({"schedule": "1f2b"}, "did you mean '1f1b'"),
        ({"micro_batches": 0}, "must be from 1 to"),
        ({"roles": ["tpp"]}, "unknown role 'tpp'; did you mean 'tp'"),
        ({"zero": [4]}, "there is no ZeRO level 4"),
        ({"recompute": ["some"]}, "unknown recomputation 'some'"),
        ({"objective": "speed"}, "'speed' is not a choice"),
        ({"overlap": "no"}, "'overlap'"),
        ({"time_limit_s": -1}, "must be a positive number of seconds"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GalvatronError, match=message):
        SearchOptions(**options)


def test_lists_and_whole_numbers_do() -> None:
    assert SearchOptions(zero=[0, 3], time_limit_s=60) == SearchOptions(zero=(0, 3), time_limit_s=60.0)  # type: ignore[arg-type]


def test_it_says_what_is_not_left_out() -> None:
    assert str(SearchOptions()) == ""
    assert str(SearchOptions(max_tp=8, zero=(0, 3))) == "max_tp=8, zero=(0, 3)"


def test_the_most_tensor_parallelism_is_a_constraint() -> None:
    assert SearchOptions(forbid=("zero3",), max_tp=8).by_pass()["search"]["forbid"] == ("zero3", "tp>8")


def test_a_schedule_is_said_once(program: Program) -> None:
    options = SearchOptions(schedule="gpipe")
    assert galvatron.search(program, "a100-80g:1x2", search=options).schedule == "gpipe"
    with pytest.raises(GalvatronError, match="schedule is one of the options of search: give it there"):
        galvatron.search(program, "a100-80g:1x2", search=options, schedule="gpipe")
    with pytest.raises(GalvatronError, match=r"must be a galvatron\.SearchOptions, not dict"):
        galvatron.search(program, "a100-80g:1x2", search={"schedule": "gpipe"})  # type: ignore[arg-type]


def test_a_plan_says_where_it_overlaps_nothing(program: Program) -> None:
    plan = galvatron.search(program, "a100-80g:1x2", search=replace(SMALL, overlap=False))
    assert not plan.overlap and '"overlap": false' in plan.to_json() and Plan.from_json(plan.to_json()) == plan
    assert '"overlap"' not in replace(plan, overlap=True).to_json()
    text = print_program(with_plan(program, plan))
    assert "overlap           = false" in text and parse_program(text) == with_plan(program, plan)


def test_a_range_of_batches(program: Program) -> None:
    plan = galvatron.search(program, "a100-80g:1x2", global_batch_size=(4, 16), search=SMALL)
    assert plan.global_batch_size in (4, 8, 16)


def test_a_plan_is_found_again(program: Program, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "galvatron"):
        first = remembered(program, 30_000, SMALL, tmp_path)
        assert "earlier search" not in caplog.text
        again = remembered(program, 30_000, SMALL, tmp_path)
    assert "the plan is that of an earlier search" in caplog.text
    assert again.plan == first.plan == searched(program, 30_000, SMALL).plan


def test_what_a_search_depends_on_is_in_the_name_of_its_file(program: Program, tmp_path: Any) -> None:
    others = [
        plan_file(program, 30_001, SMALL, tmp_path),
        plan_file(program, None, SMALL, tmp_path),
        plan_file(program, 30_000, SearchOptions(), tmp_path),
        plan_file(with_costs(costed(), cluster("a100-80g:1x4"), 8), 30_000, SMALL, tmp_path),
        plan_file(with_costs(costed(), cluster("a100-80g:1x2"), 4), 30_000, SMALL, tmp_path),
        plan_file(with_costs(costed(), cluster("a100-80g:1x2"), 8, inductor=True), 30_000, SMALL, tmp_path),
    ]
    own = plan_file(program, 30_000, SMALL, tmp_path)
    assert own == plan_file(with_costs(costed(), cluster("a100-80g:1x2"), 8), 30_000, SMALL, tmp_path)
    assert len({own, *others}) == 1 + len(others)


def test_operators_of_this_process_alone_are_not_remembered(
    program: Program, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_cache, "as_shipped", lambda _: False)
    assert remembered(program, 30_000, SMALL, tmp_path).plan == searched(program, 30_000, SMALL).plan
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_as_none(program: Program, tmp_path: Any) -> None:
    path = plan_file(program, 30_000, SMALL, tmp_path)
    wanted = remembered(program, 30_000, SMALL, tmp_path).plan
    path.write_text(path.read_text()[:-20])
    assert remembered(program, 30_000, SMALL, tmp_path).plan == wanted == Plan.load(path)
