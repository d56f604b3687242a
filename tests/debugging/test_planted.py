"""Bugs planted in passes: the pass, the rewrite and the op are named, and the program is made small."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import galvatron
from galvatron.debugging.comparison import Departure
from galvatron.debugging.passes import failure, pass_departure
from galvatron.debugging.reducing import reduced
from galvatron.ir.program import Program
from galvatron.ir.text import print_program
from galvatron.passes.bisecting import Culprit, first_rewrite
from galvatron.passes.pipeline import Pipeline
from tests.cli.test_cli import run
from tests.debugging import planted
from tests.debugging.planted import SHARDING, WRONG_RULES, WRONG_SHARDINGS, WrongRule, WrongSharding


@pytest.fixture(scope="module")
def program() -> Program:
    return galvatron.capture(*planted.net(), form="captured")


@pytest.fixture
def wrong_rule(request: pytest.FixtureRequest) -> Iterator[WrongRule]:
    bug = WRONG_RULES[request.param]
    with bug.planted():
        yield bug


def test_there_is_nothing_to_find_in_passes_that_are_right(program: Program) -> None:
    assert failure(program, SHARDING) is None


@pytest.mark.one_in(2)
@pytest.mark.parametrize("wrong_rule", WRONG_RULES, indirect=True)
def test_a_wrong_rewrite_is_found(program: Program, wrong_rule: WrongRule) -> None:
    code, pipeline = wrong_rule.code, wrong_rule.pipeline
    found = failure(program, pipeline)
    assert found is not None and (found.pass_, found.kind) == (wrong_rule.pass_, "departs"), found
    assert code in found.text and "in blocks.0" in found.text
    before = found.before
    culprit = Culprit(found.index, pipeline.passes[found.index], before, found.after)
    first = first_rewrite(culprit, lambda one: pass_departure(before, one) is None)
    assert first is not None and first.remark.rule == wrong_rule.name
    source = first.remark.op and first.remark.op.source
    assert source is not None and code in source.code and source.scope == "blocks.0"
    smaller = reduced(program, lambda one: found.is_like(failure(one, pipeline)))
    assert len(smaller.required_graph.ops) < 10, print_program(smaller)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("bug", WRONG_SHARDINGS.values(), ids=WRONG_SHARDINGS)
def test_a_wrongly_sharded_class_is_found(program: Program, bug: WrongSharding) -> None:
    """The verifier sees it; and so do the numbers, where it is not asked."""
    with bug.planted():
        pipeline = Pipeline.parse(str(bug.pipeline))
        found = failure(program, pipeline)
        assert found is not None and (found.pass_, found.kind) == ("shard", "VerifyError"), found
        assert f"breaks the rule {bug.breaks}" in found.text and ">>>" in found.text
        by_numbers = pass_departure(found.before, pipeline.passes[found.index].run(found.before))
        assert isinstance(by_numbers, Departure), by_numbers
        assert (by_numbers.what, by_numbers.within) == (bug.what, "embedding@dp2-tp2"), by_numbers
        assert all(op.name in ("copy", "embedding") for op in by_numbers.ops)
        smaller = reduced(program, lambda one: found.is_like(failure(one, pipeline)))
    assert len(smaller.required_graph.ops) < 10, print_program(smaller)


def test_a_wrong_rule_of_an_operator_is_found() -> None:
    """Which the verifier believes, as the partitioner does: a mean over what is cut."""
    with planted.centred() as model:
        program = galvatron.capture(*model, form="captured")
        found = failure(program, SHARDING)
        assert found is not None and (found.pass_, found.kind) == ("shard", "departs"), found
        assert "galvatron_planted.centred" in found.text and "planted.py:" in found.text
        smaller = reduced(program, lambda one: found.is_like(failure(one, SHARDING)))
        assert len(smaller.required_graph.ops) < 10, print_program(smaller)


@pytest.mark.parametrize("wrong_rule", ["a pattern of fuse"], indirect=True)
@pytest.mark.usefixtures("wrong_rule")
def test_the_command_line_finds_it(program: Program, tmp_path: Path) -> None:
    path, small = tmp_path / "p.gir", tmp_path / "small.gir"
    path.write_text(print_program(program))
    out, _ = run("run", path, "--compare", code=1)
    assert "normalize: same\nfuse: departs: the value of " in out and "h * torch.sigmoid(h)" in out
    _, err = run("opt", path, "--passes", "normalize,fuse", "--diff", "--check", code=2)
    assert "// normalize: computes the same\n" in err, "what is refused is shown before"
    assert -1 < err.find("+ %gelu = ") < err.index("'fuse' changes what is computed")
    out, _ = run("bisect", path, code=1)
    assert "pass 2, fuse: departs" in out and "rewritten by 'silu'" in out and "- %sigmoid" in out
    told = json.loads(run("bisect", path, "--json", code=1)[0])
    assert (told["pass"], told["rewrite"]["rule"]) == ("fuse", "silu")
    _, err = run("reduce", path, "-o", small)
    assert " ops are left" in err
    assert "gelu" in run("opt", small, "--passes", "normalize,fuse")[0]
    _, err = run("opt", small, "--passes", "normalize,fuse", "--check", code=2)
    assert "pass 'fuse' changes what is computed" in err
    check = "sh -c '! grep -q gelu {}'"
    told = json.loads(run("bisect", path, "--check", check, "--json", code=1)[0])
    assert (told["pass"], told["rewrite"]["rule"], told["rewrite"]["module"]) == ("fuse", "silu", "blocks.0")
