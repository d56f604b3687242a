"""Bounds: a file that asks for too much is refused at its line, and real programs are far below every bound."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from galvatron.errors import ParseError, VerifyError, did_you_mean
from galvatron.ir import limits
from galvatron.ir.graph import Graph, Op, Ref, Source, Value
from galvatron.ir.plan import Plan
from galvatron.ir.program import State
from galvatron.ir.text import parse_graph, parse_program, print_program
from galvatron.ir.text.arguments import parse_expression
from galvatron.ir.types import TensorType
from galvatron.ir.verify import computed, verify
from galvatron.passes.frontend.fuse import Fuse, constants
from tests.ir.programs import around, captured, clustered, planned


def with_size(size: str) -> str:
    return print_program(clustered(), comments=False).replace("%ids    : i64[B, 6]", f"%ids    : i64[{size}]")


def with_name(name: str) -> str:
    return print_program(clustered(), comments=False).replace("program Net", f"program {name}")


def with_loop(body: str, times: int = limits.REPEATS - 1) -> str:
    loop = f"for i in 1..{times} {{ {body} }}\n"
    return print_program(clustered(), comments=False).replace("layer    head", f"{loop}layer head")


def with_run(times: int) -> str:
    return print_program(planned(), comments=False).replace("dp2-tp2 ×3", f"dp2-tp2 ×{times}")


def listed(items: list[str]) -> str:
    return "[" + ",\n".join(items) + "]"


MODS = [f"Mod(B + {i}, {i + 7})" for i in range(700)]

TOO_MUCH: dict[str, tuple[Callable[[], str], str]] = {
    "a file": (lambda: "/" * (limits.FILE_CHARACTERS + 1), "characters; at most"),
    "a line": (lambda: with_size("0," * limits.LINE_CHARACTERS), "line 5, column 1: a line of more than"),
    "words": (lambda: with_size("0,\n" * limits.LEXEMES), "more than 1048576 words and marks"),
    "single marks": (lambda: with_size("0," * 100_000), "line 5, column 166940: more than 166933 words"),
    "a name": (lambda: with_name("a" * (limits.STRING_CHARACTERS + 1)), "line 3, column 9: a name of more than"),
    "a string": (lambda: with_name('"' + "é" * (limits.STRING_CHARACTERS + 1) + '"'), "line 3, column 9: a string"),
    "an axis": (lambda: with_size("B").replace("class @block", f"class @block mesh ({'a' * 70_000}=2@1)"), "a name of"),
    "digits": (lambda: with_size("9" * 400), "line 5, column 21: a number of more than 320 digits"),
    "digits of a float": (lambda: with_size("9" * 1000 + ".5"), "line 5, column 21: a number of more than"),
    "digits of a degree": (lambda: with_run(3).replace("dp2-tp2 ×3", "dp" + "2" * 400), "a number of more than 320"),
    "digits of a stage": (lambda: with_run(3).replace("stage 0", "stage " + "0" * 400), "a number of more than 320"),
    "digits of a product": (lambda: with_size("*".join(["9" * 300] * 5)), "line 5, column 321: a number has more"),
    "a list": (lambda: with_size(listed(["0"] * (limits.LIST_ITEMS + 1))), "a list of more than 65536 items"),
    "depth of a list": (lambda: with_size("[" * 20 + "]" * 20), "line 5, column 37: a list nests deeper than 16"),
    "rank": (lambda: with_size(", ".join(["1"] * 65)), "line 5, column 17: a tensor of more than 64 dimensions"),
    "a size": (lambda: with_size(str(2**63)), "line 5, column 17: a size of more than"),
    "terms": (lambda: with_size(" + ".join(f"B**{i % 60} * b**{i // 60}" for i in range(300))), "more than "),
    "arguments": (lambda: with_size(f"Max({', '.join(MODS[:12])})"), "line 5, column 21: more than 32 parts"),
    "functions": (lambda: with_size(listed(MODS)), "column 1: the text has too many different expressions"),
    "operations": (lambda: with_size(listed([f"{i} * B" for i in range(8000)])), "too many different expressions"),
    "rounds": (lambda: with_loop("layer x{i} %x{i} = @mask()", limits.REPEATS + 1), "at most 100000 times"),
    "layers": (lambda: with_loop(f"layer x{{i}} _ = @mask({', '.join(['%x{i}'] * 60)})"), "for too much"),
    "long layers": (lambda: with_loop(f"layer {'x' * 1000}{{i}} %x{{i}} = @mask()"), "stand for too much"),
    "a long beginning": (
        lambda: with_loop(f"layer x %x = @mask() state {'a' * 60_000} ({', '.join(['b'] * 60_000)})", 1),
        "the loops and runs of the text stand for too much",
    ),
    "a run": (lambda: with_run(limits.REPEATS + 1), "more than 100000 strategies"),
    "runs": (lambda: with_run(3).replace("candidates {", "candidates {" + "pp2 @block: dp4 ×99999\n" * 20), "for too"),
    "brackets": (lambda: with_size("(" * 200 + "1" + ")" * 200), "line 5, column 122: more than 100 brackets"),
    "signs": (lambda: with_size("-" * 200 + "1"), "line 5, column 122: more than 100 brackets and signs"),
    "powers": (lambda: with_size("1**" * 200 + "1"), "more than 100 brackets and signs"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
def test_too_much_is_refused_where_it_stands(name: str) -> None:
    make, message = TOO_MUCH[name]
    with pytest.raises(ParseError) as caught:
        parse_program(make())
    assert message in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert caught.value.line or name == "a file"


@pytest.mark.parametrize("text", ["pi", "E*B", "oo", "zoo", "I", "GoldenRatio", "(-1)**(1/3)", "log(-B)"])
def test_no_word_is_a_constant_and_no_number_is_complex(text: str) -> None:
    with pytest.raises(ParseError):
        parse_expression(text)


@pytest.mark.parametrize("text", ["1e300*1e300*B", "B*1e308*1e308", "(B/7**64)**64*(B/11**64)**64", "((3**64)**64)*B"])
def test_numbers_that_grow_are_refused(text: str) -> None:
    with pytest.raises(ParseError):
        parse_expression(text)


def test_what_is_refused_does_not_depend_on_what_was_read() -> None:
    """Known results are free within one text alone."""
    half = listed(MODS[: limits.COMPUTE // 300])
    parse_expression(half)
    parse_expression(half)
    for _ in range(2):
        with pytest.raises(ParseError, match="too many different"):
            parse_expression(listed(MODS))


def test_real_programs_are_far_below() -> None:
    """126 unlike layers captured flat, with the source line of every op; five hundred layers of 20 weights as loops."""
    flat = captured(126)
    assert flat.graph is not None
    ops = tuple(
        replace(op, source=Source(f"/models/file_{i % 50}.py", i, f"x = self.layer_{i}(x)" * 5, f"model.layers.{i}"))
        for i, op in enumerate(flat.graph.ops)
    )
    flat = replace(flat, graph=replace(flat.graph, ops=ops))
    text = print_program(flat)
    assert parse_program(text) == flat
    assert len(text) < limits.FILE_CHARACTERS / 32
    names = [f"model.layers.{i}.mlp.experts.{j}.down_proj.weight" for i in range(500) for j in range(20)]
    wide = replace(clustered(0), state=tuple(State(name, TensorType("f32", (2,))) for name in names))
    assert parse_program(print_program(wide)) == wide


def test_stretches_that_are_longer_than_a_loop_may_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REPEATS", 10)
    made = replace(clustered(0), state=tuple(State(f"a.{i}", TensorType("f32", (2,))) for i in range(25)))
    text = print_program(made, comments=False)
    loops = re.findall(r"for i in (\d+)\.\.(\d+)", text)
    assert loops and all(int(last) - int(first) < 10 for first, last in loops)
    assert parse_program(text) == made


def test_unknown_names_among_many() -> None:
    """What a name may have meant is looked up without comparing it with each of many, and a few are listed."""
    known = [f"model.layers.{i}.weight" for i in range(20_000)]
    assert did_you_mean("model.layers.77.weigt", known) == "did you mean 'model.layers.77.weight'?"
    assert did_you_mean("weight", known).endswith(", … (20000 in all)")
    assert len(did_you_mean("x" * 10**6, ["y" * 10**6])) < 2 * 10**6
    program = parse_program(with_loop("layer x{i} %x{i} = @mask(%q{i})", 5_000))
    with pytest.raises(VerifyError, match="at least"):
        verify(program)


@pytest.mark.parametrize("made", ["aten.full.default([40000, 30000], true)", "aten.full.default([4, 4], 1)"])
def test_constants_are_what_they_are_declared_to_be(made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that is declared small and is large, or is of another type, is not computed: it stays as it is written."""
    from galvatron.ir import interpreter

    computed: list[Graph] = []
    run = interpreter.run_graph

    def recorded(graph: Graph, *args: object, device: object = None, **kwargs: object) -> object:
        if device != "meta":
            computed.append(graph)
        return run(graph, *args, device=device, **kwargs)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(interpreter, "run_graph", recorded)
    text = (Path(__file__).parent.parent / "filecheck" / "fuse" / "causal.gir").read_text(encoding="utf-8")
    line = "aten.full.default(size=[4, 4], fill_value=-inf, dtype=dtype.f64)"
    assert line in text
    constants._facts.cache_clear()
    Fuse().run(parse_program(text))
    assert any(op.target == "aten.full.default" for graph in computed for op in graph.ops)
    computed.clear()
    constants._facts.cache_clear()
    Fuse().run(parse_program(text.replace(line, made)))
    assert computed and not any(op.target == "aten.full.default" for graph in computed for op in graph.ops)


@pytest.mark.parametrize(
    "text",
    [
        '"' + '\\"' * 20000,
        "galvatron ir 2\ngraph {\n  input %x : f32[(((B**64)**64)**64)**64]\n  return %x\n}\n",
        "galvatron ir 2\ngraph {\n  input %x : f32[sqrt(0 - B)]\n  return %x\n}\n",
    ],
)
def test_what_would_take_for_ever_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        Plan.from_json(text) if text.startswith('"') else parse_graph(text)


TOO_MANY: dict[str, tuple[str, str] | tuple[str, str, str | None]] = {
    "unbind": ("%y = aten.unbind.int(%x)", "1099511627776 pieces", "gives 0 results here, not 1"),
    "a copy of unbind": ("%y = aten.unbind_copy.int(%x)", "1099511627776 pieces", "0 pieces, not 1"),
    "chunk": ("%y = aten.chunk.default(%x, 1099511627776)", "1099511627776 pieces, not 1"),
    "sections": ("%y = aten.tensor_split.sections(%x, 1099511627776)", "1099511627776 pieces, not 1"),
    "sections of columns": ("%y = aten.hsplit.int(%x, 1099511627776)", "1099511627776 pieces, not 1"),
    "unsafe chunk": ("%y = aten.unsafe_chunk.default(%x, 1099511627776)", "1099511627776 pieces, not 1"),
    "parts": ("%y = aten.unsafe_split.Tensor(%x, 2)", "549755813888 pieces, not 1", None),
    "ends": (f"%y = aten.tensor_split.indices(%x, [{', '.join(['0'] * 5000)}])", "5001 pieces, not 1"),
    "ends of columns": (f"%y = aten.hsplit.array(%x, [{', '.join(['0'] * 5000)}])", "5001 pieces, not 1"),
    "sizes of unsafe parts": (
        f"%y = aten.unsafe_split_with_sizes.default(%x, [{', '.join(['0'] * 5000)}])", "5000 pieces, not 1",
    ),
    "repeats": (f"%y = aten.repeat.default(%x, [{', '.join(['1'] * 5000)}])", "5000 numbers; there may be 128"),
    "shifts": (f"%y = aten.roll.default(%x, [{', '.join(['1'] * 5000)}])", "5000 numbers; there may be 128"),
    "differences": ("%y = aten.diff.default(%x, 1099511627770)", "asks for 1099511627770 rounds; there may be 64"),
    "combinations": ("%y = aten.combinations.default(%x, 65)", "asks for 65 rounds"),
    "a chain": (f"%y = aten.linalg_multi_dot.default([{', '.join(['%x'] * 65)}])", "asks for 65 rounds"),
}  # fmt: skip
"""An op, why it is refused, and why where its operand is empty if that is not the same; None if it is run there."""


@pytest.mark.parametrize("size", [1099511627776, 0])
@pytest.mark.parametrize("name", TOO_MANY)
def test_an_op_that_gives_or_goes_over_too_much_is_not_run(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, *messages = TOO_MANY[name]
    message = messages[0] if size else messages[-1]
    graph = parse_graph(f"galvatron ir 2\ngraph {{\n  input %x : f32[{size}]\n  {line} : f32[]\n  return %y\n}}\n")
    run: list[str] = []
    monkeypatch.setattr(computed, "computed_types", lambda op, *_: run.append(op.target))
    with nullcontext() if message is None else pytest.raises(VerifyError, match=message):
        verify(around(graph))
    assert bool(run) == (message is None)


def test_results_of_many_types_are_told_by_a_few() -> None:
    results = tuple(Value(f"y{i}", TensorType("f32", (2,))) for i in range(1000))
    op = Op("aten.tensor_split.sections", (Ref("x"), 1000), (), results)
    problem = computed.computed_problem(op, {"x": TensorType("f32", (1000,))})
    assert problem.count("f32[1]") == problem.count("f32[2]") == 5
    assert problem.count("… (1000 in all)") == 2


@pytest.mark.parametrize(
    "line",
    [
        "%y, %z = aten.chunk.default(%x, 2) : f32[4], f32[3]",
        "%y, %z = aten.chunk.default(%x, 2, 1) : f32[7, B/2], f32[7, B/2]",
        "%y, %z, %u, %v = aten.chunk.default(%x, 5) : f32[2], f32[2], f32[2], f32[1]",
        "%y, %z = aten.tensor_split.sections(%x, 2) : f32[4], f32[3]",
        "%y, %z = aten.unsafe_split.Tensor(%x, 4) : f32[4], f32[3]",
        "%y, %z = aten.tensor_split.indices(%x, [4]) : f32[4], f32[3]",
        "%y, %z = aten.unsafe_split_with_sizes.default(%x, [4, 3]) : f32[4], f32[3]",
        "%y, %z, %u = aten.chunk.default(%x, 3) : f32[0], f32[0], f32[0]",
        "%y = aten.unsafe_split.Tensor(%x, 4) : f32[0]",
        "%y = aten.diff.default(%x) : f32[6]",
    ],
)
def test_as_many_as_there_are(line: str) -> None:
    x = "f32[7, B]" if "B" in line else "f32[0]" if "f32[0]" in line else "f32[7]"
    lines = (f"input %x : {x}", line, "%l = aten.sum.default(%y) : f32[]", "return %l")
    verify(around(parse_graph("galvatron ir 2\ngraph {\n" + "".join(f"  {line}\n" for line in lines) + "}\n")))
