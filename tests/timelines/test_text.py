"""Timelines of strangers: numbers that no timeline has are refused, wherever they stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from galvatron.cli import app
from galvatron.errors import ParseError
from galvatron.timelines.compare import differences
from galvatron.timelines.text import read_timeline, timeline_text
from galvatron.timelines.timeline import COMPUTE, PREDICTED, STEPS, Slice, Timeline
from tests.timelines.traces import checked

OWN = Timeline(
    PREDICTED, (0,), 1,
    (Slice(0, STEPS, "step", 0.0, 2.0), Slice(0, COMPUTE, "forward, stage 0 #0", 0.0, 1.0, args={"micro_batch": 0})),
    about={"micro_batches": 2, "micro_batches_shown": 1, "predicted_s": 2.0, "played_s": 1.0},
)  # fmt: skip


def edited(change: Callable[[dict[str, Any]], None]) -> str:
    """The text of a timeline in which `change` was made to the document."""
    data = json.loads(timeline_text(OWN))
    change(data)
    head = json.dumps({key: value for key, value in data.items() if key != "traceEvents"})
    events = ",\n".join(map(json.dumps, data["traceEvents"]))
    return f'{head[:-1]}, "traceEvents": [\n{events}\n]}}\n'


def about(**values: float) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["otherData"]["galvatron"].update(values)


def every_slice(**values: object) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for event in data["traceEvents"]:
            if event["ph"] == "X":
                event["args"].update(values) if "micro_batch" in values else event.update(values)

    return change


ODD = {
    "a negative micro-batch": every_slice(micro_batch=-1),
    "a micro-batch of many digits": every_slice(micro_batch=10**315),
    "a long duration": every_slice(dur=1e299),
    "a long step": about(predicted_s=1e300),
    "a short step": about(played_s=1e-300),
    "no step": about(played_s=0),
    "a pipeline rank of many digits": lambda data: data["otherData"]["galvatron"].update(pipeline_ranks=[10**400]),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_numbers_are_refused(odd: str) -> None:
    with pytest.raises(ParseError):
        read_timeline(edited(ODD[odd]), "a file")


def test_a_timeline_reads_back_and_is_compared() -> None:
    found = read_timeline(edited(lambda data: None), "a file")
    assert found == OWN
    assert {one.name: one.first_s for one in differences(found, found)} == {"step": 4.0, "forward, stage 0": 2.0}


def test_the_largest_numbers_are_compared_in_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    at_most, longest = about(predicted_s=1e24, played_s=1e-24), every_slice(dur=1e24)

    def change(data: dict[str, Any]) -> None:
        at_most(data)
        longest(data)

    path.write_text(edited(change))
    found = CliRunner().invoke(app, ["trace", "--compare", str(path), str(path), "--json"])
    assert found.exit_code == 0
    rows = json.loads(found.stdout, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert rows[0]["first_s"] > 1e60


def test_slices_that_touch_are_not_over_each_other_in_whole_nanoseconds() -> None:
    """Also where beginnings and lengths are no whole number of nanoseconds, and where sums of them are rounded."""
    slices: list[Slice] = []
    for step, share in enumerate((0.1, 1 / 3, 0.4999999999, 0.5, 0.5000000001, 0.7)):
        begin_s = seconds = (7 + share) * 1e-9
        for micro_batch in range(40):
            of = {"stage": 0, "micro_batch": micro_batch, "step": step}
            slices.append(Slice(step, COMPUTE, f"forward, stage 0 #{micro_batch}", begin_s, 3 * seconds, args=of))
            for part in range(3):
                slices.append(Slice(step, COMPUTE, "forward a", begin_s, seconds, args={**of, "layer": "a"}))
                begin_s += seconds * (1 + 1e-16 * part)
    assert len(checked(timeline_text(Timeline(PREDICTED, range(6), 6, slices)))) == len(slices)
