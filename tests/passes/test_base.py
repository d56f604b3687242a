"""Passes as values: option text, the registry, the chain of forms, and what stands around passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galvatron import passes
from galvatron.errors import BudgetError, PassError, VerifyError
from galvatron.ir.program import Form, Program
from galvatron.passes.base import Bytes, Pass, PassResult
from galvatron.passes.bisecting import bisect
from galvatron.passes.instrument import Reproducer, Timing, VerifyEach
from galvatron.passes.pipeline import Instrument, Pipeline, Step
from galvatron.passes.printing import PrintPrograms
from galvatron.passes.registry import load_pass, pass_names

PROGRAM = Program("toy", Form.CAPTURED, 4, (), (), "loss")


@dataclass(frozen=True)
class Everything(Pass):
    """Has an option of every type."""

    name = "everything"
    needs, leaves = Form.CAPTURED, Form.CAPTURED

    count: int = 1
    rate: float = 0.5
    label: str = ""
    deep_search: bool = False
    memory: Bytes | None = None
    schedule: Literal["gpipe", "1f1b"] | None = None
    skip: tuple[str, ...] = ()

    def run(self, program: Program) -> Program:
        return program


@dataclass(frozen=True)
class Append(Pass):
    """Appends to the program's name."""

    name = "append"
    needs, leaves = Form.CAPTURED, Form.CAPTURED

    text: str = ""

    def run(self, program: Program) -> Program:
        if self.text == "bug":
            raise KeyError("bug")
        if self.text == "budget":
            raise BudgetError("no plan fits")
        return replace(program, name=program.name + self.text)


@dataclass(frozen=True)
class Cluster(Pass):
    """Goes from captured to clustered, or says so and does not."""

    name = "cluster"
    needs, leaves = Form.CAPTURED, Form.CLUSTERED

    lie: bool = False

    def run(self, program: Program) -> Program:
        return program if self.lie else replace(program, form=Form.CLUSTERED)


@pytest.fixture(autouse=True)
def toy_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {cls.name: f"{__name__}:{cls.__name__}" for cls in (Everything, Append, Cluster)}
    monkeypatch.setattr("galvatron.passes.registry.PASSES", table)


@pytest.mark.parametrize(
    ("text", "pass_"),
    [
        ("everything", Everything()),
        ("everything{memory=36GiB,schedule=1f1b}", Everything(memory=Bytes(36 * 2**30), schedule="1f1b")),
        ("everything{count=-3,rate=1e-06,deep-search=true}", Everything(count=-3, rate=1e-6, deep_search=True)),
        ('everything{label="a, b}"}', Everything(label="a, b}")),
        ("everything{label=pp2/m4/1f1b/dp1-tp2+sp-recompute=selective}",
         Everything(label="pp2/m4/1f1b/dp1-tp2+sp-recompute=selective")),
        ('everything{skip=[tp-stays-in-node,"a,b"]}', Everything(skip=("tp-stays-in-node", "a,b"))),
    ],
)  # fmt: skip
def test_pass_text_both_ways(text: str, pass_: Pass) -> None:
    assert Pipeline.parse(text) == Pipeline((pass_,))
    assert str(pass_) == text


def test_lenient_spelling() -> None:
    assert Pipeline.parse(" everything{ deep_search = true , skip=[] } , append ") == Pipeline(
        (Everything(deep_search=True), Append())
    )
    assert Pipeline.parse("everything{memory=none}") == Pipeline((Everything(),))
    assert Pipeline.parse("") == Pipeline(())


texts = st.text(max_size=8)


@given(
    st.builds(
        Everything,
        count=st.integers(),
        rate=st.floats(allow_nan=False),
        label=texts,
        deep_search=st.booleans(),
        memory=st.none() | st.integers(0, 2**50),
        schedule=st.sampled_from([None, "gpipe", "1f1b"]),
        skip=st.lists(texts, max_size=3).map(tuple),
    ),
    texts,
)
def test_any_pipeline_round_trips(everything: Everything, label: str) -> None:
    pipeline = Pipeline((everything, Append(label)))
    assert Pipeline.parse(str(pipeline)) == pipeline


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("apend", "unknown pass 'apend'; did you mean 'append'"),
        ("everything{memry=1}", "pass 'everything' has no option 'memry'; did you mean 'memory'"),
        ("everything{memory=36GiBi}", "pass 'everything', option 'memory': .*unknown unit 'GiBi'; did you mean"),
        ("everything{count=x}", "pass 'everything', option 'count': .*'x'"),
        ("everything{deep-search=1}", "'1' is not true or false"),
        ("everything{schedule=1f1}", "'1f1' is not a choice; did you mean '1f1b'"),
        ("everything{skip=a}", r"'a' is not a list; write it like \[a,b\]"),
        ("everything{count}", "option 'count' has no value"),
        ("everything{count=1,count=2}", "option 'count' is given twice"),
        ("everything{count=1", "a bracket is not closed"),
        ("everything}", "column 11: unexpected '}'"),
        ('everything{label="a}', "column 18: the quote is not closed"),
        ("append,,append", "nothing between two commas"),
        ("append append", "'append append' is not a pass"),
    ],
)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        Pipeline.parse(text)


def test_of_takes_python_values_and_refuses_strays() -> None:
    assert Pipeline.of(("append", "cluster"), {"append": {"text": "x"}}) == Pipeline((Append("x"), Cluster()))
    with pytest.raises(
        PassError, match="options for pass 'apend', which is not in the pipeline; did you mean 'append'"
    ):
        Pipeline.of(("append",), {"apend": {}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "1f1"}, "pass 'everything', option 'schedule': '1f1' is not a choice; did you mean '1f1b'"),
        ({"memory": "36GiB"}, "option 'memory': must be of type int, not '36GiB'"),
        ({"count": True}, "option 'count': must be of type int, not True"),
        ({"deep_search": None}, "option 'deep-search': must be of type bool, not None"),
        ({"skip": "a"}, "option 'skip': must be a tuple, not 'a'"),
        ({"skip": ("a", 1)}, "option 'skip': must be of type str, not 1"),
    ],
)
def test_python_values_are_checked_like_text(options: dict[str, object], message: str) -> None:
    with pytest.raises(PassError, match=message):
        Pipeline.of(("everything",), {"everything": options})


def test_entry_points_add_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[galvatron.passes]\nshiny = shiny_plugin:Shiny\nwrong = shiny_plugin:Shiny\n"
    )
    (tmp_path / "shiny_plugin.py").write_text(
        "from galvatron.ir.program import Form\n"
        "from galvatron.passes.base import Pass\n"
        "class Shiny(Pass):\n"
        "    name = 'shiny'\n"
        "    needs = leaves = Form.CAPTURED\n"
        "    def run(self, program):\n"
        "        return program\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "shiny" in pass_names()
    assert load_pass("shiny").__module__ == "shiny_plugin"
    with pytest.raises(PassError, match="registered as pass 'wrong', is not a Pass of that name"):
        load_pass("wrong")


def test_run_goes_through_the_forms() -> None:
    assert Pipeline((Append("!"), Cluster())).run(PROGRAM) == replace(PROGRAM, name="toy!", form=Form.CLUSTERED)


def test_wrong_order_is_refused_before_anything_runs() -> None:
    with pytest.raises(
        PassError, match="'append' needs a program in form captured, but what 'cluster' leaves is in form "
    ):
        Pipeline((Append("bug"), Cluster(), Append())).run(PROGRAM)


def test_missing_pass_is_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Append, "needs", Form.CLUSTERED)
    with pytest.raises(PassError, match="but the program given is in form captured; run 'cluster' before it"):
        Pipeline((Append(),)).run(PROGRAM)


def test_a_pass_that_leaves_another_form_than_declared() -> None:
    with pytest.raises(PassError, match="'cluster' declares that it leaves form clustered, but it left captured"):
        Pipeline((Cluster(lie=True),)).run(PROGRAM)


def test_instruments_nest_first_outermost() -> None:
    log: list[str] = []

    def logger(name: str) -> Instrument:
        def around(step: Step, proceed: Callable[[], PassResult]) -> PassResult:
            log.append(f"{name} before {step.pass_}")
            result = proceed()
            log.append(f"{name} after {step.pass_}")
            return result

        return around

    Pipeline((Append("x"),)).run(PROGRAM, (logger("outer"), logger("inner")))
    text = "append{text=x}"
    assert log == [f"outer before {text}", f"inner before {text}", f"inner after {text}", f"outer after {text}"]


def test_timing_reports_every_pass_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    timing = Timing()
    Pipeline((Append("x"), Cluster())).run(PROGRAM, (timing,))
    timing.report()
    out, err = capsys.readouterr()
    assert [name for name, _ in timing.seconds] == ["append", "cluster"]
    assert not out and "append" in err and "cluster" in err and "total" in err


def test_timing_reports_verification_beside_its_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("galvatron.ir.verify.verify", lambda program: None)
    timing, verifier = Timing([("append", 3.0)]), VerifyEach()
    verifier.verify(PROGRAM)
    Pipeline((Append("x"),)).run(PROGRAM, (verifier,))
    assert len(verifier.seconds) == 2
    timing.report([0.5, 0.5])
    rows = [line.replace("│", " ").replace("┃", " ").split() for line in capsys.readouterr().err.splitlines()]
    assert ["(given)", "0.000", "0.500", "12%"] in rows and ["append", "3.000", "0.500", "88%"] in rows
    assert ["total", "3.000", "1.000"] in rows


def test_bisect_names_the_pass_that_broke_the_program() -> None:
    pipeline = Pipeline(tuple(Append(c) for c in "abcdefgh"))
    calls: list[str] = []

    def good(program: Program) -> bool:
        calls.append(program.name)
        return "e" not in program.name

    culprit = bisect(PROGRAM, pipeline, good)
    assert culprit is not None and culprit.after is not None
    assert (culprit.index, culprit.pass_) == (4, Append("e"))
    assert (culprit.before.name, culprit.after.name) == ("toyabcd", "toyabcde")
    assert len(calls) <= 5


def test_bisect_edges() -> None:
    pipeline = Pipeline((Append("a"), Append("bug"), Append("c")))
    culprit = bisect(PROGRAM, pipeline, lambda p: True)
    assert culprit is not None and (culprit.index, culprit.after) == (1, None)
    culprit = bisect(PROGRAM, pipeline, lambda p: "a" not in p.name)
    assert culprit is not None and culprit.index == 0
    assert bisect(PROGRAM, Pipeline((Append("a"),)), lambda p: True) is None
    assert bisect(PROGRAM, Pipeline(()), lambda p: True) is None
    with pytest.raises(PassError, match="not good before the first pass"):
        bisect(PROGRAM, pipeline, lambda p: False)


def test_every_pass_has_its_place() -> None:
    assert (*passes.FRONT_END, *passes.PLANNING, "use-plan", *passes.LOWERING) == tuple(passes.PASSES)


@pytest.fixture
def stub_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("galvatron.ir.text", "galvatron.ir.text.printer"):
        monkeypatch.setattr(f"{module}.print_program", lambda program, **options: f"program {program.name}\n")


def test_print_after(stub_text: None, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = Pipeline((Append("x"), Append()))
    pipeline.run(PROGRAM, (PrintPrograms(after_all=True),))
    out, err = capsys.readouterr()
    assert not out
    assert err == "// after append{text=x}\nprogram toyx\n\n// after append (no change)\nprogram toyx\n\n"
    pipeline.run(PROGRAM, (PrintPrograms(after_change=True),))
    assert capsys.readouterr().err == "// after append{text=x}\nprogram toyx\n\n"


def test_reproducer_of_an_error_keeps_its_type(stub_text: None, tmp_path: Path) -> None:
    path = tmp_path / "fails.gir"
    pipeline = Pipeline((Append("x"), Append("budget"), Append("y")))
    with pytest.raises(BudgetError, match="no plan fits\nreproducer: .*fails.gir"):
        pipeline.run(PROGRAM, (Reproducer(path),))
    command, text = path.read_text().splitlines()
    assert command == f"// galvatron opt {path} --passes 'append{{text=budget}},append{{text=y}}'"
    assert text == "program toyx"


def test_reproducer_of_a_bug(stub_text: None, tmp_path: Path) -> None:
    with pytest.raises(PassError, match="pass 'append' failed: KeyError: 'bug' .*\nreproducer: "):
        Pipeline((Append("bug"),)).run(PROGRAM, (Reproducer(tmp_path / "fails.gir"),))
    with pytest.raises(PassError, match="'bug' .*\nno reproducer could be written"):
        Pipeline((Append("bug"),)).run(PROGRAM, (Reproducer(tmp_path / "fails.gir" / "fails.gir"),))


def test_verification_names_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(program: Program) -> None:
        if program.name.endswith("bad"):
            raise VerifyError("line 3 is wrong")

    monkeypatch.setattr("galvatron.ir.verify.verify", verify)
    with pytest.raises(VerifyError, match=r"after pass 'append\{text=bad\}': line 3 is wrong"):
        Pipeline((Append("fine"), Append("bad"))).run(PROGRAM, (VerifyEach(),))
