"""The predicted timeline adds up to the predicted step, and is read back as it was written."""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

from galvatron.cli import app
from galvatron.errors import ParseError
from galvatron.forms import with_costs
from galvatron.ir.plan import Plan
from galvatron.ir.planned import resolve
from galvatron.ir.program import Program
from galvatron.reporting.page import asked
from galvatron.schedules import Kind
from galvatron.timelines.compare import differences, table
from galvatron.timelines.predicted import predicted_timeline
from galvatron.timelines.timeline import COMPUTE, PIPELINE, STEPS, Level, Slice, Timeline, in_turn
from tests.ir.programs import costed
from tests.passes.planning.search.test_search import cluster
from tests.timelines.traces import checked

MACHINES = cluster("a100-80g:1x4")


@pytest.fixture(scope="module")
def program() -> Program:
    return with_costs(costed(), MACHINES, 48)


def plan_of(program: Program, text: str) -> Plan:
    return resolve(program, text, 48, 4)


PLANS = [
    "m4/dp4",
    "m2/dp2-tp2-zero3-recompute",
    "pp2/m4/gpipe/dp1-tp2",
    "pp2/m4/interleaved2/dp2",
    "pp2/m6/zbv/dp2-zero3",
]


@pytest.mark.parametrize("text", PLANS)
def test_the_timeline_is_the_step_that_is_predicted(program: Program, text: str) -> None:
    own = asked(program, plan_of(program, text), MACHINES, None, text)
    found = predicted_timeline(own.question.program, own.plan)
    events = checked(found.to_json())
    steps = [one for one in found.slices if one.track == STEPS]
    assert {one.seconds for one in steps} == {own.step.seconds}
    assert own.step.seconds == pytest.approx(own.estimate[0], rel=1e-9 if "gpipe" not in text else 0.05)
    assert max(one.end_s for one in found.slices) == pytest.approx(own.step.seconds, rel=1e-9)
    assert max(event["ts"] + event["dur"] for event in events) == pytest.approx(own.step.seconds * 1e6)
    for rank, order in enumerate(own.step.ranks):
        mine = [one for one in found.slices if one.process == rank and one.track == COMPUTE]
        layers = sum(
            one.seconds for one in mine if one.name.startswith(("forward ", "backward ")) and "layer" in one.args
        )
        computed_s = sum(span.end_s - span.computing_s for a, span in order if a.kind is not Kind.BACKWARD_WEIGHT)
        assert layers == pytest.approx(computed_s, rel=1e-9)
        received_s = sum(one.seconds for one in found.slices if one.process == rank and one.track == PIPELINE)
        assert received_s == pytest.approx(sum(span.computing_s - span.begin_s for _, span in order), abs=1e-15)
        peak = max(sum(level.bytes_of.values()) for level in found.levels if level.process == rank)
        assert peak == pytest.approx(own.memory[rank].peak_bytes)
    if "recompute" in text:
        again = [one for one in found.slices if one.name.startswith("recompute ")]
        assert len(again) == 2 * len(program.planned_layers)


def test_what_is_written_is_read_back(program: Program) -> None:
    first, second = (predicted_timeline(program, plan_of(program, text)) for text in PLANS[1:3])
    again = Timeline.from_json(first.to_json(), "first.json")
    assert (again.kind, again.steps, len(again.slices)) == (first.kind, 1, len(first.slices))
    assert sum(level.bytes_of["state"] for level in again.levels) == sum(
        level.bytes_of["state"] for level in first.levels
    )
    assert all(math.isclose(one.first_s, one.second_s, abs_tol=1e-12) for one in differences(first, again))
    found = differences(first, second)
    assert abs(found[0].seconds) == max(abs(one.seconds) for one in found) > 0
    text = table(found, "A", "B", 3).splitlines()
    assert len(text) == 5 and text[0].split() == ["rank", "what", "A", "B", "differs", "by", "times"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"kind": "predicted"', '"kind": "guessed"'), ('"steps": 1', '"steps": 0'), ('"ph": "X"', '"ph": 1'),
        ('"pid": 0', '"pid": 7'), ('"cat": "compute"', '"cat": "no track"'), ('"ts": ', '"ts": "now", "tt": '),
        ('"traceEvents": [', '"traceEvents": [['), ('"galvatron"', '"other"'), ('"args": {', '"args": {"x": [], '),
    ],
)  # fmt: skip
def test_other_files_are_refused(program: Program, old: str, new: str) -> None:
    text = predicted_timeline(program, plan_of(program, "m4/dp4")).to_json()
    assert old in text
    with pytest.raises(ParseError, match=r"mine\.json"):
        Timeline.from_json(text.replace(old, new), "mine.json")


def test_communications_at_the_same_time_are_shown_in_turn() -> None:
    given = [Slice(0, "x", "b", 1.0, 4.0), Slice(0, "x", "a", 0.0, 2.0), Slice(0, "x", "c", 3.0, 1.0)]
    assert [(one.name, one.begin_s, one.end_s) for one in in_turn(given)] == [
        ("a", 0.0, 2.0), ("c", 3.0, 4.0), ("b", 4.0, 5.0),
    ]  # fmt: skip


def test_memory_is_a_counter() -> None:
    text = Timeline("measured", (0, 0), 1, (), (Level(1, 2e-6, {"in use": 5.0}),)).to_json()
    (counter,) = [event for event in json.loads(text)["traceEvents"] if event["ph"] == "C"]
    assert counter == {"ph": "C", "pid": 1, "tid": 0, "name": "memory", "ts": 2.0, "args": {"in use": 5.0}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a plan and its program"), (["plan.json", "--compare", "a.json", "b.json"], "reads two timelines"),
        (["--compare", "missing.json", "missing.json"], "missing.json: No such file"),
    ],
)  # fmt: skip
def test_the_command_says_what_it_needs(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["trace", *arguments])
    assert result.exit_code == 2 and message in result.stderr
