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
from galvatron.passes import FRONT_END, PASSES
from galvatron.passes.bisecting import Culprit, first_rewrite
from galvatron.passes.frontend.fuse import FUSIONS
from galvatron.passes.frontend.normalize import RULES
from galvatron.passes.pipeline import Pipeline
from galvatron.rewriting import Formula
from tests.cli.test_cli import run
from tests.debugging import planted

SHARDING = Pipeline.parse(
    f"{','.join(FRONT_END)},annotate-costs{{cluster=a100-80g:1x4}},use-plan{{plan=pp1/m1/1f1b/dp2-tp2}},shard,"
    "redistribute,split-stages"
)


@pytest.fixture(scope="module")
def program() -> Program:
    return galvatron.capture(*planted.net(), form="captured")


WRONG_RULES = {
    "a pattern of fuse": ("fuse", "silu", Formula("x * sigmoid(x)", "gelu(x)"), "h * torch.sigmoid(h)"),
    "an epsilon": (
        "fuse",
        "rms-norm",
        Formula("x * rsqrt(mean.dim(x ** 2, dims, True) + eps)", "rms_norm(x, [8], None, 1e-5)"),
        "torch.rsqrt",
    ),
    "a slice": (
        "normalize",
        "planted-slice",
        Formula("slice.Tensor(x, dim, 4, 8)", "slice.Tensor(x, dim, 3, 7)"),
        "turned.narrow(2, 4, 4)",
    ),
    "a dim of a view": (
        "normalize",
        "planted-view",
        Formula("transpose.int(x, 1, 2)", "permute(x, [0, 1, 2])"),
        "torch.swapaxes(h, 1, 2)",
    ),
}


@pytest.fixture
def wrong_rule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pass_, name, rule, _ = WRONG_RULES[request.param]
    monkeypatch.setitem(RULES if pass_ == "normalize" else FUSIONS, name, rule)
    yield request.param


def test_there_is_nothing_to_find_in_passes_that_are_right(program: Program) -> None:
    assert failure(program, SHARDING) is None


@pytest.mark.parametrize("wrong_rule", WRONG_RULES, indirect=True)
def test_a_wrong_rewrite_is_found(program: Program, wrong_rule: str) -> None:
    name, rule, _, code = WRONG_RULES[wrong_rule]
    pipeline = Pipeline.of(FRONT_END)
    found = failure(program, pipeline)
    assert found is not None and (found.pass_, found.kind) == (name, "departs"), found
    assert code in found.text and "in blocks.0" in found.text
    before = found.before
    culprit = Culprit(found.index, pipeline.passes[found.index], before, found.after)
    first = first_rewrite(culprit, lambda one: pass_departure(before, one) is None)
    assert first is not None and first.remark.rule == rule
    source = first.remark.op and first.remark.op.source
    assert source is not None and code in source.code and source.scope == "blocks.0"
    smaller = reduced(program, lambda one: found.is_like(failure(one, pipeline)))
    assert len(smaller.required_graph.ops) < 10, print_program(smaller)


@pytest.mark.parametrize(
    ("wrong", "rule", "what"),
    [("WithoutReduction", "collectives", "value"), ("SmallGroup", "ops-on-slices", "gradient")],
    ids=["a collective", "a group"],
)
def test_a_wrongly_sharded_class_is_found(
    program: Program, monkeypatch: pytest.MonkeyPatch, wrong: str, rule: str, what: str
) -> None:
    """The verifier sees it; and so do the numbers, where it is not asked."""
    monkeypatch.setitem(PASSES, "shard", f"tests.debugging.planted:{wrong}")
    pipeline = Pipeline.parse(str(SHARDING))
    found = failure(program, pipeline)
    assert found is not None and (found.pass_, found.kind) == ("shard", "VerifyError"), found
    assert f"breaks the rule {rule}" in found.text and ">>>" in found.text
    by_numbers = pass_departure(found.before, pipeline.passes[found.index].run(found.before))
    assert isinstance(by_numbers, Departure) and (by_numbers.what, by_numbers.within) == (what, "embedding@dp2-tp2"), (
        by_numbers
    )
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
def test_the_command_line_finds_it(program: Program, wrong_rule: str, tmp_path: Path) -> None:
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
