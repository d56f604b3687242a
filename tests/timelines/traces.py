"""What holds for every file of trace events."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import product
from typing import Any

from galvatron.timelines.timeline import TRACKS, without_micro_batch


def checked(text: str) -> list[dict[str, Any]]:
    """The complete events of a file, each as the trace-event format wants it, and on its track inside of another or
    apart from all others, in the order of their beginnings, whether who reads it rounds to nanoseconds or cuts off."""
    data = json.loads(text)
    assert set(data) == {"traceEvents", "displayTimeUnit", "otherData"}
    events, names = [], defaultdict(set)
    for event in data["traceEvents"]:
        assert {"ph", "pid", "tid", "name", "args"} <= set(event) and event["ph"] in "XCMsf"
        assert type(event["pid"]) is int and type(event["tid"]) is int and type(event["name"]) is str
        if event["ph"] == "M":
            assert set(event["args"]) in ({"name"}, {"sort_index"})
            names[event["name"]].add((event["pid"], event["tid"]))
        else:
            assert event["ts"] >= 0
        if event["ph"] == "C":
            assert event["args"] and all(isinstance(size, (int, float)) for size in event["args"].values())
        if event["ph"] == "X":
            assert event["dur"] >= 0 and event["cat"] == TRACKS[event["tid"]]
            events.append(event)
    assert {(event["pid"], event["tid"]) for event in events} <= names["thread_name"]
    tracks: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        tracks[event["pid"], event["tid"]].append(event)
    inner = defaultdict(list)
    for count, (place, own) in product((int, round), tracks.items()):
        around: list[int] = []
        begins = 0
        for event in own:
            begin, seconds = count(event["ts"] * 1000), count(event["dur"] * 1000)
            assert begin >= begins, event
            begins, end = begin, begin + seconds
            while around and begin >= around[-1]:
                around.pop()
            assert not around or end <= around[-1], event
            around.append(end)
            inner[place].append((begin, end))
    for event in data["traceEvents"]:
        if event["ph"] in "sf":
            assert any(
                begin <= event["ts"] * 1000 < end or begin == end == round(event["ts"] * 1000)
                for begin, end in inner[event["pid"], event["tid"]]
            ), event
    return events


def names_of(events: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Tracks and names without micro-batches."""
    return {(event["cat"], without_micro_batch(event["name"])) for event in events}
