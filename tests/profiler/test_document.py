"""Profiles as documents: what is written is read back, and what cannot be is refused by name."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galvatron.errors import ClusterError, GalvatronError, ParseError
from galvatron.profiler.document import print_profiles, read_profiles
from galvatron.profiler.profile import Measurement, Profile
from tests.profiler.profiles import MEASUREMENTS, PROFILE

names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)
seconds = st.floats(1e-9, 1e5).map(lambda s: float(f"{s:.4g}"))
measurements = st.builds(
    Measurement,
    name=names,
    how=names,
    dtype=st.sampled_from(["f32", "bf16"]),
    sizes=st.dictionaries(names, st.integers(1, 2**40).map(float), max_size=3).map(lambda d: tuple(d.items())),
    seconds=seconds,
    spread=seconds,
    repeats=st.integers(1, 100),
)
profiles = st.builds(
    replace,
    st.just(PROFILE),
    name=names,
    measurements=st.lists(measurements, max_size=4, unique_by=lambda m: m.key).map(tuple),
)


@given(st.lists(profiles, max_size=3))
def test_what_is_written_is_read_back(some: list[Profile]) -> None:
    assert read_profiles(print_profiles(some)) == some


def test_each_measurement_is_on_a_line_of_its_own() -> None:
    lines = print_profiles([PROFILE]).splitlines()
    first = MEASUREMENTS[2]
    assert sum('"repeats"' in line for line in lines) == len(MEASUREMENTS)
    (line,) = (line for line in lines if '"rows": 64, "columns": 64, "inner": 64' in line)
    assert json.loads(line.rstrip(","))["seconds"] == float(f"{first.seconds:.4g}")


def document(**changed: Any) -> dict[str, Any]:
    return {**json.loads(print_profiles([PROFILE])), **changed}


def with_first(**changed: Any) -> dict[str, Any]:
    """The document with something changed in its first measurement."""
    found = document()
    found["profiles"][0]["measurements"][0] |= changed
    return found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "is no document of profiles"),
        ({"format": "something"}, "is no document of profiles"),
        (document(version=2), "has version 2 of the format"),
        (document(more=1), "and nothing else"),
        (document(profiles=3), "at most 256 'profiles'"),
        (document(profiles=[3]), "is a JSON object, not a int"),
        (document(profiles=[{}]), "'name' is missing"),
        (with_first(seconds=0.0), "seconds is 0.0, not a time that anything takes"),
        (with_first(seconds=-1.0), "seconds is -1.0"),
        (with_first(seconds="fast"), "'seconds' must be a number, not 'fast'"),
        (with_first(spread=-0.5), "spread is -0.5"),
        (with_first(repeats=0), "repeats is 0"),
        (with_first(sizes={"bytes": 0}), "size 'bytes' is 0.0"),
        (with_first(sizes={"bytes": "all"}), "'sizes' must be a list of names with numbers"),
        (with_first(code="import os"), "field 'code' is unknown"),
    ],
)
def test_what_cannot_be_is_refused(found: object, message: str) -> None:
    with pytest.raises(ClusterError) as caught:
        read_profiles(json.dumps(found), "p.json")
    assert message in str(caught.value)


def test_two_entries_of_one_key_are_refused() -> None:
    twice = replace(PROFILE, measurements=(MEASUREMENTS[0], MEASUREMENTS[0]))
    with pytest.raises(ClusterError, match="two entries of one key"):
        read_profiles(print_profiles([twice]))


@pytest.mark.parametrize("text", ["", "{", '{"format": NaN}', print_profiles([PROFILE])[:-20], "[" * 100])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        read_profiles(text)


@given(st.data())
def test_a_damaged_document_is_read_or_refused(data: st.DataObject) -> None:
    text = print_profiles([replace(PROFILE, measurements=MEASUREMENTS[:3])])
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    damaged = text[:start] + data.draw(st.text(max_size=8)) + text[end:]
    with suppress(GalvatronError):
        read_profiles(damaged)
