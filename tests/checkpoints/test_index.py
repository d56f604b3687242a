"""What callers give along with a checkpoint, as JSON says it."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galvatron.checkpoints.folders import INDEX
from galvatron.checkpoints.index import Index
from galvatron.errors import GalvatronError
from galvatron.ir.json_values import unsayable, with_numbers, with_words

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9)
KEYS = st.sampled_from(["(number)", "(pairs)", "(tuple)", "a"]) | st.integers() | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda own: (
        st.lists(own, max_size=3)
        | st.lists(own, max_size=3).map(tuple)
        | st.dictionaries(KEYS | st.tuples(KEYS, KEYS), own, max_size=3)
    ),
)


@given(VALUES)
def test_values_come_back(value: Any) -> None:
    found = with_numbers(json.loads(json.dumps(with_words(value), allow_nan=False)))
    assert found == value and repr(found) == repr(value)


def test_what_schedulers_keep_comes_back() -> None:
    found = with_numbers(json.loads(json.dumps(with_words({"milestones": Counter([3, 3]), "best": math.inf}))))
    assert found == {"milestones": {3: 2}, "best": math.inf}


@pytest.mark.parametrize("value", [{"(pairs)": 1}, {"(pairs)": [[1]]}, {"(pairs)": [[[1], 2]]}, {"(pairs)": [[{}, 2]]}])
def test_other_pairs_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="belong"):
        with_numbers(value)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"last": [0.1, object()]}, "['last'][1]"),
        ({"a": {(1, object()): 2}}, "['a'][(1, <object"),
        ({"s": {1}}, "['s']"),
    ],
)
def test_what_cannot_be_said_is_named_by_its_place(value: Any, place: str) -> None:
    found = unsayable(value)
    assert found is not None and found[0].startswith(place)
    assert unsayable({"rates": [0.1, math.inf], (1, None): True}) is None


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    found = {"format": "galvatron checkpoint", "version": 3, "step": 0}
    (tmp_path / INDEX).write_text(json.dumps(found)[:-1] + ', "extra": {"rate": 1e999}}')
    with pytest.raises(GalvatronError, match="Out of range float values"):
        Index.read(tmp_path)
