"""Records: what a dataclass declares is what JSON and text write, read and check."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest

from galvatron.errors import ParseError, PlanError
from galvatron.ir import records
from galvatron.ir.records import fields_of, read_members
from galvatron.ir.text.records import read_record, record_lines
from galvatron.ir.text.scanner import Scanner
from galvatron.ir.types import BATCH, Dim


@dataclass(frozen=True)
class Inner:
    latency_s: float


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    rates: tuple[tuple[str, float], ...]
    count: int
    label: str = ""
    share: float | None = None
    sizes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Step:
    name: str
    points: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Stairs:
    steps: tuple[Step, ...]
    railings: tuple[Inner, ...] = ()


@dataclass(frozen=True)
class Cost:
    saved_bytes: Dim


RECORD = Outer("a b", Inner(2e-6), (("f32", 1.5), ("bf16", 3.0)), 7, "x", None, (1, 2))
TEXT = """\
outer "a b" {
  rates.f32 = 1.5
  rates.bf16 = 3.0
  count = 7
  label = "x"
  sizes = [1, 2]
  inner {
    latency_s = 2e-06  // 2 us
  }
}"""


def members(**changed: object) -> dict[str, object]:
    fields = dataclasses.asdict(RECORD) | {"rates": [["f32", 1.5], ["bf16", 3]], "sizes": [1, 2]}
    return fields | changed


def test_text_and_json_say_what_is_declared() -> None:
    assert "\n".join(record_lines("outer", RECORD, lambda figure: f"  // {figure}")).replace("\x00", "") == TEXT
    assert read_record(Scanner(TEXT), Outer) == RECORD
    assert read_members(Outer, members(), "outer", PlanError) == RECORD


def test_what_has_a_default_may_be_left_out() -> None:
    text = "outer x { rates.f32 = 1 count = 7 inner { latency_s = 0.5 } }"
    left = Outer("x", Inner(0.5), (("f32", 1.0),), 7)
    assert read_record(Scanner(text), Outer) == left
    fields = {"name": "x", "inner": {"latency_s": 0.5}, "rates": [["f32", 1]], "count": 7}
    assert read_members(Outer, fields, "outer", PlanError) == left


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count = 7", "count = 7.5", "line 4, column 3: 'count' must be a whole number"),
        ("count = 7", "count = true", "'count' must be a whole number"),
        ("count = 7", "count.x = 7", "unknown field 'count.x'"),
        ("count = 7", "cuont = 7", "did you mean 'count'"),
        ("count = 7", "", "line 1, column 1: outer needs count"),
        ("count = 7", "count = 7 count = 7", "line 4, column 13: 'count' is given twice"),
        ("rates.f32 = 1.5", "rates = 1.5", "unknown field 'rates'"),
        ("1.5", '"fast"', "'rates.f32' must be a number"),
        ("1.5", "1e400", "'rates.f32' must be a number"),
        ("[1, 2]", "[1, none]", "'sizes' must be a list of whole numbers or none"),
        ("2e-06", "nan", "'latency_s' must be a number"),
        ("  inner {\n    latency_s = 2e-06  // 2 us\n  }\n", "", "outer needs inner"),
        ("inner {", "iner {", "unexpected 'iner'; expected 'inner', '}', a field"),
        ("  }\n}", "  } inner { latency_s = 1 }\n}", "a second inner"),
    ],
)
def test_text_is_refused_where_it_differs(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(ParseError) as caught:
        read_record(Scanner(TEXT.replace(old, new)), Outer)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"count": "7"}, "outer field 'count' must be a whole number, not '7'"),
        ({"rates": [["f32", "fast"]]}, "outer field 'rates' must be a list of names with numbers"),
        ({"inner": {}}, "outer inner field 'latency_s' is missing"),
        ({"inner": [1]}, "a outer inner is a JSON object, not a list"),
        ({"colour": 1}, "outer field 'colour' is unknown"),
    ],
)
def test_json_is_refused_by_name(changed: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        read_members(Outer, members(**changed), "outer", PlanError)
    assert message in str(caught.value)


def test_a_record_may_have_several_of_one_kind() -> None:
    stairs = Stairs((Step("a", ((1.0, 2.0), (3.0, 4.5))), Step("b")), (Inner(0.5),))
    text = """\
stairs {
  step a {
    points = [[1.0, 2.0], [3.0, 4.5]]
  }
  step b {
    points = []
  }
  railing {
    latency_s = 0.5
  }
}"""
    assert "\n".join(record_lines("stairs", stairs, lambda figure: "")) == text
    assert read_record(Scanner(text), Stairs) == stairs
    document = {"steps": [{"name": "a", "points": [[1, 2], [3, 4.5]]}, {"name": "b"}], "railings": [{"latency_s": 0.5}]}
    assert read_members(Stairs, document, "stairs", PlanError) == stairs
    assert read_record(Scanner("stairs { step a { } }"), Stairs) == Stairs((Step("a"),))


def test_several_are_refused_as_one_is() -> None:
    with pytest.raises(ParseError, match="stairs needs steps"):
        read_record(Scanner("stairs { }"), Stairs)
    with pytest.raises(ParseError, match="'points' must be a list of pairs of numbers"):
        read_record(Scanner("stairs { step a { points = [[1, 2, 3]] } }"), Stairs)
    with pytest.raises(ParseError, match="unknown field 'height'; known: railing, step"):
        read_record(Scanner("stairs { height = 3 }"), Stairs)
    with pytest.raises(PlanError, match="stairs field 'steps' must be a list, not 3"):
        read_members(Stairs, {"steps": 3}, "stairs", PlanError)
    with pytest.raises(PlanError, match="stairs step field 'name' is missing"):
        read_members(Stairs, {"steps": [{}]}, "stairs", PlanError)
    with pytest.raises(PlanError, match="stairs step field 'points' must be a list of pairs of numbers"):
        read_members(Stairs, {"steps": [{"name": "a", "points": [[1, "x"]]}]}, "stairs", PlanError)


def test_a_long_table_is_gone_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[object] = []
    monkeypatch.setattr(records, "is_text", lambda value: checked.append(value) or True)
    names = [f"a{i}" for i in range(300)]
    entries = "\n".join(f"  rates.{name} = 1.0" for name in names)
    text = TEXT.replace("  rates.f32 = 1.5\n  rates.bf16 = 3.0", entries)
    read = read_record(Scanner(text), Outer)
    assert read == dataclasses.replace(RECORD, rates=tuple((name, 1.0) for name in names))
    assert [value for value in checked if value in names] == names


def test_a_size_may_depend_on_the_batch() -> None:
    assert read_record(Scanner("cost { saved_bytes = 2*B }"), Cost) == Cost(2 * BATCH)


def test_a_field_of_no_kind_is_not_forgotten() -> None:
    @dataclass(frozen=True)
    class Odd:
        parts: set

    with pytest.raises(TypeError, match="Odd.parts is of a type that no kind of field has"):
        fields_of(Odd)
