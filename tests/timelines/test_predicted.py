"""The predicted timeline adds up to the predicted step, and is read back as it was written."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

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
from galvatron.timelines.arrows import arrows
from galvatron.timelines.compare import differences, table
from galvatron.timelines.predicted import predicted_timeline
from galvatron.timelines.text import read_timeline, timeline_text
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
    found = predicted_timeline(own.program, own.plan)
    events = checked(timeline_text(found))
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


def test_arrows_lead_from_who_sends_to_who_waits(program: Program) -> None:
    for text in ("pp2/m2/1f1b/dp1-tp2", "pp2/m6/zbv/dp2-zero3"):
        found = predicted_timeline(program, plan_of(program, text))
        drawn = list(arrows(found))
        for arrow in drawn:
            assert arrow.sender.process != arrow.receiver.process
            assert arrow.sender.end_s <= arrow.receiver.begin_s + 1e-12
            assert arrow.sender.micro_batch == arrow.receiver.micro_batch
        events = json.loads(timeline_text(found))["traceEvents"]
        ends = [[event["id"] for event in events if event["ph"] == phase] for phase in "sf"]
        assert ends[0] == ends[1] == list(range(len(drawn)))
    # A V of two ranks: the second holds the two stages in the middle, which send each other nothing.
    assert len(drawn) == 6 * 2 * 2


def test_what_is_written_is_read_back(program: Program) -> None:
    first, second = (predicted_timeline(program, plan_of(program, text)) for text in PLANS[1:3])
    again = read_timeline(timeline_text(first), "first.json")
    assert (again.kind, again.steps, len(again.slices)) == (first.kind, 1, len(first.slices))
    assert again.about == first.about and again.about["micro_batches"] == 2
    assert sum(level.bytes_of["state"] for level in again.levels) == sum(
        level.bytes_of["state"] for level in first.levels
    )
    assert all(math.isclose(one.first_s, one.second_s, abs_tol=1e-7) for one in differences(first, again))
    found = differences(first, second)
    assert abs(found[0].seconds) == max(abs(one.seconds) for one in found) > 0
    text = table(found, "A", "B", 3).splitlines()
    assert len(text) == 5 and text[0].split() == ["rank", "what", "A", "B", "off", "times"]


def small(**more: Any) -> dict[str, Any]:
    """A slice as an event."""
    return {"ph": "X", "pid": 0, "tid": 1, "name": "x", "cat": "compute", "ts": 0.0, "dur": 1.0, "args": {}, **more}


def small_text(event: dict[str, Any], about: dict[str, Any]) -> str:
    """A file of two events."""
    own = {"kind": "predicted", "pipeline_ranks": [0], "steps": 1, **about}
    head = json.dumps({"otherData": {"galvatron": own}})[:-1]
    return f'{head}, "traceEvents": [\n{json.dumps(small())},\n{json.dumps(small(**event))}\n]}}\n'


@pytest.mark.parametrize(
    ("event", "about", "message"),
    [
        ({}, {"kind": "guessed"}, "no timeline of galvatron: otherData"), ({}, {"steps": 0}, "otherData"),
        ({}, {"steps": 10**9}, "otherData"), ({}, {"pipeline_ranks": []}, "otherData"),
        ({}, {"micro_batches": 4, "micro_batches_shown": 5}, "otherData"), ({}, {"micro_batches": 4}, "otherData"),
        ({}, {"played_s": 0}, "otherData"), ({}, {"more": []}, "otherData"),
        ({"ph": 1}, {}, "event 1 is no part .* 'ph' is 1"), ({"pid": 7}, {}, "event 1 is of process 7, and there are"),
        ({"cat": "no track"}, {}, "on a track that no timeline has"), ({"ts": "now"}, {}, "'now' where a number"),
        ({"dur": -1.0}, {}, "less than no time"), ({"args": {"exposed_us": -1}}, {}, "less than no time"),
        ({"args": {"x": []}}, {}, "arguments of another kind"), ({"args": []}, {}, "'args' is \\[\\]"),
        ({"args": {str(n): n for n in range(17)}}, {}, "has 17 arguments"),
    ],
)  # fmt: skip
def test_other_files_are_refused(event: dict[str, Any], about: dict[str, Any], message: str) -> None:
    assert len(read_timeline(small_text({}, {}), "mine.json").slices) == 2
    with pytest.raises(ParseError, match=rf"mine\.json.*{message}"):
        read_timeline(small_text(event, about), "mine.json")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\n]}\n", "\n", "as galvatron writes it"), ("},\n{", "}\n{", "behind"), ("\n]}\n", "\n]}\n{}", "behind"),
        ("[\n", "[{}]}\n", "as galvatron writes it"), ("},\n", "},\n" * 2, "event 1 is not valid JSON"),
    ],
)  # fmt: skip
def test_files_that_are_cut_or_of_another_form_are_refused(old: str, new: str, message: str) -> None:
    text = timeline_text(Timeline("measured", (0,), 1, (Slice(0, STEPS, "step", 0.0, 1.0),)))
    assert len(read_timeline(text, "mine.json").slices) == 1 and old in text
    with pytest.raises(ParseError, match=rf"mine\.json.*{re.escape(message)}"):
        read_timeline(text.replace(old, new, 1), "mine.json")


def test_a_long_step_counts_whole_though_less_of_it_is_shown(program: Program) -> None:
    plan = plan_of(program, "pp2/m24/1f1b/dp2")
    whole, part = (predicted_timeline(program, plan, most=most) for most in (10**6, 400))
    assert (part.micro_batches, whole.micro_batches_shown) == (24, 24) and part.micro_batches_shown < 12
    read = read_timeline(timeline_text(part), "part.json")
    for one in differences(whole, read):
        if "of stage" not in one.name:  # what is waited for is no multiple
            assert one.second_s == pytest.approx(one.first_s, rel=1e-6, abs=1e-7), one
            assert one.times[1] == pytest.approx(one.times[0])


def test_of_what_is_too_long_for_a_file_a_part_is_written() -> None:
    slices = [Slice(process, STEPS, "step", step, 1.0, args={"step": step}) for process in (0, 1) for step in range(4)]
    slices += [
        Slice(process, COMPUTE, f"forward, stage 0 #{m}", step + m / 8, 0.1, args={"step": step, "micro_batch": m})
        for process in (0, 1)
        for step in range(4)
        for m in range(8)
    ]
    levels = [Level(0, at / 8, {"in use": 1.0}) for at in range(32)]
    own = Timeline("measured", (0, 0), 4, slices, levels)
    for most, steps, processes, shown in ((200, 4, 2, 8), (90, 2, 2, 8), (40, 1, 1, 8), (27, 1, 1, 4)):
        text = timeline_text(own, most)
        events = checked(text)
        assert len(json.loads(text)["traceEvents"]) <= most and events
        found = read_timeline(text, "part.json")
        assert (found.steps, len(found.pipeline_ranks), found.micro_batches_shown) == (steps, processes, shown)
        assert [one.times[1] for one in differences(own, found)] == [8, 1] or most == 200
        assert all(math.isclose(*one.times) for one in differences(own, found))


def test_communications_at_the_same_time_are_shown_in_turn() -> None:
    given = [Slice(0, "x", "b", 1.0, 4.0), Slice(0, "x", "a", 0.0, 2.0), Slice(0, "x", "c", 3.0, 1.0)]
    assert [(one.name, one.begin_s, one.end_s) for one in in_turn(given)] == [
        ("a", 0.0, 2.0), ("c", 3.0, 4.0), ("b", 4.0, 5.0),
    ]  # fmt: skip


def test_memory_is_a_counter() -> None:
    text = timeline_text(Timeline("measured", (0, 0), 1, (), (Level(1, 2e-6, {"in use": 5.0}),)))
    (counter,) = [event for event in json.loads(text)["traceEvents"] if event["ph"] == "C"]
    assert counter == {"ph": "C", "pid": 1, "tid": 0, "name": "memory", "ts": 2.0, "args": {"in use": 5.0}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a plan and its program"), (["plan.json", "--compare", "a.json", "b.json"], "reads two timelines"),
        (["--compare", "a.json", "b.json", "-o", "c.json"], "reads two timelines"),
        (["plan.json", "-p", "p.gir", "--json"], "are for --compare"),
        (["--compare", "missing.json", "missing.json"], "missing.json: No such file"),
    ],
)  # fmt: skip
def test_the_command_says_what_it_needs(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["trace", *arguments])
    assert result.exit_code == 2 and message in result.stderr


def test_two_files_are_compared(tmp_path: Path) -> None:
    for name, seconds in (("a.json", 3.0), ("b.json", 2.0)):
        slices = [Slice(0, STEPS, "step", 0.0, seconds), Slice(0, COMPUTE, "a\nb", 0.0, 1.0)]
        (tmp_path / name).write_text(timeline_text(Timeline("measured", (0,), 1, slices)))
    arguments = ["trace", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    first, *others = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert (first["track"], first["first_s"], first["second_s"], len(others)) == (STEPS, 3.0, 2.0, 1)
    assert len(json.loads(CliRunner().invoke(app, [*arguments, "--json", "--most", "1"]).stdout)) == 1
    head, *rows = CliRunner().invoke(app, arguments).stdout.splitlines()
    assert head.split() == ["rank", "what", "A", "B", "off", "times"] and len(rows) == 2
    assert "+1 s (+50%)" in rows[0] and r"a\nb" in rows[1]
