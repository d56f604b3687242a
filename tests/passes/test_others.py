"""Passes, instruments and checks of others: whatever they raise or give, an error names them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest

from galvatron import passes
from galvatron.debugging.passes import outcomes
from galvatron.errors import PassError
from galvatron.ir.program import Form, Program
from galvatron.passes.base import Pass, PassResult, Remark
from galvatron.passes.bisecting import Culprit, bisect, first_rewrite
from galvatron.passes.instrument import Timing
from galvatron.passes.pipeline import Instrument, Pipeline
from galvatron.passes.registry import load_pass, loadable_passes
from tests.ir.programs import captured

PROGRAM = captured(1)


@dataclass(frozen=True)
class Same(Pass):
    """Changes nothing."""

    name = "same"
    needs = leaves = Form.CAPTURED

    def run(self, program: Program) -> Program:
        return program


def test_an_entry_point_that_leads_nowhere_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "lost-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lost\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[galvatron.passes]\ngone = not_there:Gone\nvague = vague_plugin:Vague\n")
    (tmp_path / "vague_plugin.py").write_text(
        "from galvatron.passes.base import Pass\n"
        "class Vague(Pass):\n"
        "    name = 'vague'\n"
        "    def run(self, program):\n"
        "        return program\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        PassError, match="'not_there:Gone', which lost registers as pass 'gone', failed: ModuleNotFound"
    ):
        load_pass("gone")
    with pytest.raises(PassError, match="'vague', does not say which forms it needs and leaves"):
        load_pass("vague")
    refused: list[PassError] = []
    assert len(list(loadable_passes(refused))) == len(passes.PASSES) and len(refused) == 2
    with pytest.raises(PassError, match="'split-stages' needs a program in form sharded, .* run 'shard' before"):
        Pipeline.parse("split-stages").run(PROGRAM)


@dataclass(frozen=True)
class Odd(Pass):
    """A pass of others that gives or raises what none should."""

    name = "odd"
    needs = leaves = Form.CAPTURED

    what: str = ""

    def result(self, program: Program) -> PassResult:
        if self.what == "value":
            raise ValueError("\x1b[31mred")
        if self.what == "exit":
            raise SystemExit(0)
        return {"none": None, "text": PassResult("text")}[self.what]  # type: ignore[arg-type,return-value]


ODD = {
    "none": "pass 'odd' gave None, not a PassResult of a Program",
    "text": "pass 'odd' gave a PassResult of str, not a PassResult of a Program",
    "value": "pass 'odd' failed: ValueError: .*red .at test_others.py:",
    "exit": "pass 'odd' failed: SystemExit: 0 .at test_others.py:",
}


@pytest.mark.parametrize("what", ODD)
def test_whatever_a_pass_of_others_does_is_its_fault(what: str) -> None:
    pipeline = Pipeline((Same(), Odd(what)))
    with pytest.raises(PassError, match=ODD[what]):
        pipeline.run(PROGRAM)
    culprit = bisect(PROGRAM, pipeline, lambda program: True)
    assert culprit is not None and (culprit.index, culprit.after) == (1, None)
    _, found = outcomes(PROGRAM, pipeline)
    assert found.kind == "PassError" and re.search(ODD[what], found.text)


@pytest.mark.parametrize(
    ("instrument", "problem"),
    [
        (lambda step, proceed: None, "'.*lambda>' around pass 'same' gave None, not a PassResult of a Program"),
        (lambda step, proceed: [][0], "'.*lambda>' around pass 'same' failed: IndexError: list index out of range"),
    ],
)
def test_whatever_an_instrument_does_is_its_fault(instrument: Instrument, problem: str) -> None:
    with pytest.raises(PassError, match=problem):
        Pipeline((Same(),)).run(PROGRAM, (Timing(), instrument))


def test_an_instrument_is_not_to_blame_for_what_it_is_around(monkeypatch: pytest.MonkeyPatch) -> None:
    def result(self: Same, program: Program) -> PassResult:
        raise IndexError

    monkeypatch.setattr("galvatron.passes.pipeline.is_ours", lambda code: isinstance(code, Same))
    monkeypatch.setattr(Same, "result", result)
    with pytest.raises(IndexError):
        Pipeline((Same(),)).run(PROGRAM, (lambda step, proceed: proceed(),))


@dataclass(frozen=True)
class Counted(Pass):
    """Rewrites five times."""

    name = "counted"
    needs = leaves = Form.CAPTURED

    rewrites: int | None = None

    def result(self, program: Program) -> PassResult:
        times = min(5, 5 if self.rewrites is None else self.rewrites)
        return PassResult(replace(program, name=program.name + "x" * times), {}, (Remark("", rule="x"),) * times)


def test_a_check_that_gives_different_answers_is_told() -> None:
    culprit = Culprit(0, Counted(), PROGRAM, Counted().run(PROGRAM))
    found = first_rewrite(culprit, lambda program: "xxx" not in program.name)
    assert found is not None and found.number == 3
    with pytest.raises(PassError, match="the check gives different answers"):
        first_rewrite(culprit, lambda program: True)
    told = 0
    for seed in range(24):
        random = Random(seed)
        try:
            first_rewrite(culprit, lambda program, random=random: random.random() < 0.5)
        except PassError as error:
            told += "different answers" in str(error)
    assert told > 6
