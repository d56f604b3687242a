"""In what programs differ: whatever makes them unequal makes a line, and names of values in graphs make none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from random import Random

import pytest

from galvatron.ir.graph import Graph, Op, Value
from galvatron.ir.inlined import inlined
from galvatron.ir.program import Form, Program
from galvatron.ir.results import Check, Result, Update
from galvatron.ir.strategy import Strategy
from galvatron.ir.text import differences, parse_graph, parse_program, print_program
from galvatron.ir.text.differences import program_differences
from galvatron.printing import print_differences
from tests.ir.edits import Impossible
from tests.ir.mutations import KINDS
from tests.ir.programs import FORMS, around, captured, clustered, planned, sharded, updating
from tests.ir.test_functions import CALL, SCALED
from tests.marks import some_slow

_CASES = [(form, seed) for form in FORMS for seed in range(6)]


@pytest.mark.parametrize(("form", "seed"), some_slow([("captured", 0), ("staged", 0)], _CASES))
def test_whatever_an_edit_changes_makes_a_line(form: str, seed: int) -> None:
    program = FORMS[form](2)
    edited = 0
    for own in (program, updating(program)) if program.classes else (program,):
        for name, kind in KINDS.items():
            if not kind.first <= own.form <= kind.last:
                continue
            try:
                other = kind.edit(own, Random(seed))
            except Impossible:
                continue
            edited += other != own
            assert bool(program_differences(own, other)) == (other != own), name
            assert bool(program_differences(other, own)) == (other != own), name
    assert edited >= 9


def edit(old: str, new: str) -> Callable[[Program], Program]:
    """The program whose text has something else in one place."""

    def edited(program: Program) -> Program:
        text = print_program(program, comments=False)
        assert text.count(old) == 1, text
        return parse_program(text.replace(old, new))

    return edited


def in_graph(**parts: object) -> Callable[[Program], Program]:
    return lambda program: replace(program, graph=replace(program.required_graph, **parts))  # type: ignore[arg-type]


def in_class(name: str, **parts: object) -> Callable[[Program], Program]:
    def edited(program: Program) -> Program:
        classes = (replace(c, **parts) if c.name == name else c for c in program.classes)  # type: ignore[arg-type]
        return replace(program, classes=tuple(classes))

    return edited


def function_text() -> Program:
    return around(parse_graph(SCALED + CALL))


BLOCK = "block.dp2_tp2"
NEG, ABS = "%neg = aten.neg.default(%x) : f32[B, 4]", "%abs = aten.abs.default(%x) : f32[B, 4]"
ORDERED = f"""
graph {{
  input %x : f32[B, 4]
  {NEG}
  {ABS}
  %sum = aten.add.Tensor(%neg, %abs) : f32[B, 4]
  return %sum
}}
"""
ONE_PLACE: dict[str, tuple[Callable[[], Program], Callable[[Program], Program], list[str]]] = {
    "what a graph returns": (
        captured, in_graph(outputs=("n",)), ["graph", "  - return %loss", "  + return %n"],
    ),
    "what a class returns": (
        clustered, edit("return %y", "return %add"), ["class @block", "  - return %y", "  + return %add"],
    ),
    "inputs of a class that change places": (
        clustered,
        lambda program: in_class(
            "block",
            graph=replace(
                program.class_of["block"].graph, inputs=program.class_of["block"].graph.inputs[::-1]
            ),
        )(program),
        ["class @block", "  + input %m : bool[B, 6, 1]", "  - input %m : bool[B, 6, 1]"],
    ),
    "the backward of a function": (
        function_text, edit("%of_x = aten.mul.Tensor(%gradient, %w)", "%of_x = aten.mul.Tensor(%gradient, %gradient)"),
        [
            "backward of function Scaled",
            "  in forward",
            "    - %of_x = aten.mul.Tensor(%gradient, %w) : f32[B, 4, 6]",
            "    + %of_x = aten.mul.Tensor(%gradient, %gradient) : f32[B, 4, 6]",
        ],
    ),
    "which operands of a function have a gradient": (
        function_text,
        edit("gradients (0, 1)", "gradients (1, 0)"),
        ["- function Scaled results 1 gradients (0, 1)", "+ function Scaled results 1 gradients (1, 0)"],
    ),
    "a mesh": (
        sharded, in_class(BLOCK, mesh=tuple(replace(a, stride=3 - a.stride) for a in Strategy.parse("dp2-tp2").mesh)),
        [
            f"- class @{BLOCK} of @block strategy dp2-tp2 mesh (dp=2@2, tp=2@1)",
            f"+ class @{BLOCK} of @block strategy dp2-tp2 mesh (dp=2@1, tp=2@2)",
        ],
    ),
    "a strategy": (
        sharded, in_class(BLOCK, strategy=Strategy.parse("dp2-tp2-zero3")),
        [
            f"- class @{BLOCK} of @block strategy dp2-tp2 mesh (dp=2@2, tp=2@1)",
            f"+ class @{BLOCK} of @block strategy dp2-tp2-zero3 mesh (dp=2@2, tp=2@1)",
        ],
    ),
    "what a class is made of": (
        sharded, in_class(BLOCK, base="head"),
        [
            f"- class @{BLOCK} of @block strategy dp2-tp2 mesh (dp=2@2, tp=2@1)",
            f"+ class @{BLOCK} of @head strategy dp2-tp2 mesh (dp=2@2, tp=2@1)",
        ],
    ),
    "the layout of state": (
        sharded, edit("state %down.bias   : f32[8] (dp:R', tp:R)", "state %down.bias   : f32[8] (dp:R, tp:R)"),
        [
            f"class @{BLOCK}",
            "  - state %down.bias : f32[8] (dp:R', tp:R)",
            "  + state %down.bias : f32[8] (dp:R, tp:R)",
        ],
    ),
    "the layout of a result": (
        sharded,
        edit('"identity") : f32[b, 6, 8] (dp:S(0), tp:R)', '"identity") : f32[b, 6, 8] (dp:R, tp:R)'),
        [
            f"class @{BLOCK}",
            "  in forward",
            '    - %sum = comm.all_reduce(%down, axis="tp", grad="identity") : f32[b, 6, 8] (dp:S(0), tp:R)',
            '    + %sum = comm.all_reduce(%down, axis="tp", grad="identity") : f32[b, 6, 8] (dp:R, tp:R)',
        ],
    ),
    "what stands in another order": (
        lambda: around(parse_graph(ORDERED)),
        lambda program: in_graph(ops=tuple(program.required_graph.ops[i] for i in (1, 0, 2)))(program),
        ["graph", "in forward", f"+ {ABS}", f"- {ABS}"],
    ),
    "how an update is made": (
        lambda: replace(captured(), updates=(Update("embed.weight", "h0"),)),
        lambda program: replace(program, updates=(Update("embed.weight", "h0", adds=True),)),
        ["- update embed.weight = %h0", "+ update embed.weight += %h0"],
    ),
    "which result is which": (
        lambda: replace(captured(), outputs=(Result("a", "h0"), Result("b", "h1"))),
        lambda program: replace(program, outputs=(Result("a", "h1"), Result("b", "h0"))),
        ["- result a = %h0", "- result b = %h1", "+ result a = %h1", "+ result b = %h0"],
    ),
    "spaces in what a check says": (
        lambda: replace(captured(), checks=(Check("a  b", "h0"),)),
        lambda program: replace(program, checks=(Check("a b", "h0"),)),
        ['- check "a  b" never %h0', '+ check "a b" never %h0'],
    ),
    "an operand of a layer": (
        clustered, edit("%h{i+1} = @block(%h{i}, %mask)", "%h{i+1} = @block(%h{i}, %h{i})"),
        ["- layer block_{i} %h{i+1} = @block(%h{i}, %mask)", "+ layer block_{i} %h{i+1} = @block(%h{i}, %h{i})"],
    ),
    "a number of the plan": (
        planned, lambda program: replace(program, plan=replace(program.required_plan, micro_batches=2)),
        ["- micro_batches = 4", "+ micro_batches = 2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_PLACE)
def test_what_differs_is_said(name: str) -> None:
    make, edited, expected = ONE_PLACE[name]
    program = make()
    other = edited(program)
    assert other != program
    said = [" ".join(line.partition("  // ")[0].split()) for line in program_differences(program, other)]
    assert said == [" ".join(line.split()) for line in expected]


def renamed(graph: Graph) -> Graph:
    def name(old: str) -> str:
        return f"{old}_again"

    def put(values: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(replace(value, name=name(value.name)) for value in values)

    ops: list[Op] = [replace(op.map_refs(name), results=put(op.results)) for op in graph.ops]
    return Graph(put(graph.inputs), put(graph.state), tuple(ops), tuple(map(name, graph.outputs)))


def test_names_of_values_and_lines_of_the_model_count_for_nothing() -> None:
    program = sharded()
    again = replace(program, classes=tuple(replace(cls, graph=renamed(cls.graph)) for cls in program.classes))
    assert again != program and program_differences(program, again) == []
    program = captured()
    graph = program.required_graph
    ops = tuple(replace(op, source=op.source and replace(op.source, line=7)) for op in graph.ops)
    assert program_differences(program, replace(program, graph=replace(graph, ops=ops))) == []
    given = {value.name for value in (*graph.inputs, *graph.state)}

    def name(old: str) -> str:
        return old if old in given else f"{old}_again"

    ops = tuple(replace(op.map_refs(name), results=(Value(name(op.result.name), op.result.type),)) for op in graph.ops)
    again = replace(program, output="loss_again", graph=replace(graph, ops=ops, outputs=("loss_again",)))
    assert again != program and program_differences(program, again) == []


def test_an_input_of_a_captured_program_is_known_by_its_name() -> None:
    program = captured()
    graph = program.required_graph
    ops = (replace(op.map_refs(lambda old: "tokens" if old == "ids" else old)) for op in graph.ops)
    inputs = (replace(graph.inputs[0], name="tokens"), *graph.inputs[1:])
    other = replace(program, graph=replace(graph, inputs=inputs, ops=tuple(ops)))
    lines = program_differences(program, other)
    assert "  - input %ids : i64[B, 6]" in lines and "  + input %tokens : i64[B, 6]" in lines


def test_an_op_in_another_order_is_said_to_be_moved() -> None:
    make, moved, _ = ONE_PLACE["what stands in another order"]
    lines = program_differences(make(), moved(make()))
    assert [line.partition("  // ")[2] for line in lines] == ["", "", "moved here", "moved"]


def with_block(target: str) -> Program:
    """A program of layers whose blocks have an operator in a module of their own."""
    program = clustered(3)
    block = program.class_of["block"]
    ops = tuple(
        replace(
            op,
            target=target if op.name == "silu" else op.target,
            source=op.source and replace(op.source, scope="blocks.0.mlp"),
        )
        for op in block.graph.ops
    )
    return in_class("block", graph=replace(block.graph, ops=ops))(program)


def test_ops_of_layers_are_told_in_their_own_modules_with_names_of_a_captured_program() -> None:
    whole = with_block("aten.silu.default")
    flat = replace(whole, form=Form.CAPTURED, graph=inlined(whole, numbered=True), classes=(), layers=())
    lines = [
        " ".join(line.replace('"', "").split()) for line in program_differences(flat, with_block("aten.relu.default"))
    ]
    assert lines[1:6] == [
        "in blocks.0.mlp",
        "/home/user/net.py:13 line 13",
        "- %silu = aten.silu.default(%up) : f32[B, 6, 16] // now %silu'",
        "+ %silu' = aten.relu.default(%up) : f32[B, 6, 16] // for %silu",
        "and the same in blocks.1.mlp, blocks.2.mlp (2 times)",
    ]
    assert {op.source.scope for op in inlined(whole).ops if op.source and op.name == "silu"} == {
        f"blocks.{i}.mlp" for i in range(3)
    }


def test_lines_are_in_colour_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    lines = ["graph", "  - %a = [red]", "  + %b"]
    shown = []
    for file in (StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stdout", file)
        print_differences(lines)
        shown.append(file.getvalue().splitlines())
    assert shown[0] == lines
    assert [line.count("\x1b[") for line in shown[1]] == [0, 2, 2] and "[red]" in shown[1][1]


def test_what_no_line_says_is_still_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    program = captured()
    other = replace(program, graph=replace(program.required_graph, outputs=("n",)))
    monkeypatch.setattr(differences, "graph_differences", lambda *sides, **options: iter(()))
    assert program_differences(program, other) == ["the programs are not equal, but no line says in what: graph"]
