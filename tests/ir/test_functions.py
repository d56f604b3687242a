"""Functions with a backward of their own: the dimensions that follow from their graphs, their text, what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from galvatron.errors import ParseError, VerifyError
from galvatron.ir.graph import Function
from galvatron.ir.layout import BROADCAST, Axis
from galvatron.ir.micro_batches import COUPLED, SAME, SUM, Spread, batch_state, flow
from galvatron.ir.text import parse_graph, parse_program, print_graph, print_program
from galvatron.ir.verify import verify
from galvatron.ir.verify.placed import Placed
from galvatron.ir.verify.placements import placement_problem

SCALED = """\
function Scaled results 1 gradients (0, 1) {
  input %x : f32[B, 4, 6]
  input %w : f32[6]
  %mul = aten.mul.Tensor(%x, %w) : f32[B, 4, 6]
  return %mul, %x, %w
} backward {
  input %x        : f32[B, 4, 6]
  input %w        : f32[6]
  input %gradient : f32[B, 4, 6]
  %of_x = aten.mul.Tensor(%gradient, %w) : f32[B, 4, 6]
  %part = aten.mul.Tensor(%gradient, %x) : f32[B, 4, 6]
  %of_w = aten.sum.dim_IntList(%part, [0, 1]) : f32[6]
  return %of_x, %of_w
}
"""
CALL = """\

graph {
  input %a : f32[B, 4, 6]
  state %b : f32[6]
  %y    = function.Scaled(%a, %b) : f32[B, 4, 6]
  %loss = aten.sum.default(%y) : f32[]
  return %loss
}
"""


def function(text: str) -> Function:
    """The function that the call in `text` calls."""
    (found,) = (op.function for op in parse_graph(text).ops if op.function is not None)
    return found


def with_lines(*changes: tuple[str, str]) -> str:
    text = SCALED + CALL
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def test_text_reads_back() -> None:
    graph = parse_graph(SCALED + CALL)
    again = parse_graph(print_graph(graph))
    assert again == graph
    assert [op.function for op in again.ops] == [op.function for op in graph.ops]


def shardable(text: str) -> set[tuple[str, ...]]:
    """The dimensions that may be sharded, each by the operands and results that have it."""
    dims = function(text).dims
    assert dims is not None
    places: dict[str, list[str]] = {name: [] for name in dims.sizes.keys() - dims.indivisible}
    for kind, tensors in (("operand", dims.operands), ("result", dims.results)):
        for i, tensor in enumerate(tensors):
            for d, names in enumerate(tensor):
                for name in names:
                    places.get(name, []).append(f"{kind} {i}.{d}")
    return {tuple(found) for found in places.values()}


DIM_0 = ("operand 0.0", "result 0.0")
DIM_1 = ("operand 0.1", "result 0.1")
DIM_2 = ("operand 0.2", "operand 1.0", "result 0.2")


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ((), {DIM_0, DIM_1, DIM_2}),
        # What mixes a dimension in either graph keeps it whole.
        ([("aten.mul.Tensor(%x, %w)", "aten.cumsum.default(%x, 2)")], {DIM_0, DIM_1}),
        ([("aten.mul.Tensor(%gradient, %w)", "aten.cumsum.default(%gradient, 1)")], {DIM_0, DIM_2}),
        # The gradient of what lacks a dimension adds up over it: what is the same everywhere would count too often.
        ([("aten.sum.dim_IntList(%part, [0, 1])", "aten.mul.Tensor(%w, 2.0)")], {DIM_2}),
        # So does what is not linear in a sum.
        ([("return %of_x, %of_w", "%root = aten.exp.default(%of_w) : f32[6]\n  return %of_x, %root")], {DIM_2}),
    ],
)
def test_dimensions_follow_from_both_graphs(changes: Sequence[tuple[str, str]], left: set[tuple[str, ...]]) -> None:
    assert shardable(with_lines(*changes)) == left


NOT_LINEAR = [
    ("return %of_x, %of_w", "%some = aten.clamp.default(%of_x, -1.0, 1.0) : f32[B, 4, 6]\n  return %some, %of_w"),
    ("return %of_x, %of_w", "%some = aten.add.Tensor(%of_x, 0.5) : f32[B, 4, 6]\n  return %some, %of_w"),
    ("return %of_x, %of_w", "%some = aten.add.Tensor(%of_x, %x) : f32[B, 4, 6]\n  return %some, %of_w"),
    ("aten.mul.Tensor(%gradient, %x)", "aten.mul.Tensor(%gradient, %gradient)"),
    ("aten.mul.Tensor(%gradient, %w)", "aten.mul.Tensor(%x, %w)"),
]


@pytest.mark.parametrize("change", [(CALL, CALL), *NOT_LINEAR])
def test_gradients_in_terms_are_for_a_backward_that_is_linear(change: tuple[str, str]) -> None:
    (op, _) = parse_graph(with_lines(change)).ops
    types = parse_graph(with_lines(change)).types
    operands, results = (
        tuple(Placed(name, types[name], (BROADCAST,), True) for name in names) for names in (op.operands, ("y",))
    )
    problem = placement_problem(op, operands, results, (Axis("dp", 2, 1),))
    if change in NOT_LINEAR:
        assert "since its backward is not known to be linear in the gradient" in problem
    else:
        assert not problem


@pytest.mark.parametrize(("change", "state"), [((CALL, CALL), SAME), (NOT_LINEAR[0], COUPLED)])
def test_a_function_of_weights_over_micro_batches(change: tuple[str, str], state: Spread) -> None:
    weights = with_lines(change).replace("B, ", "2, ")
    assert flow(parse_graph(weights), {}).states["y"] is state


PROGRAM = f"""\
galvatron ir 2

program Small captured batch 4

input %a : f32[B, 4, 6]
output %loss

{SCALED}
graph of program {{
{CALL.partition("state %b : f32[6]")[2]}
parameter b : f32[6]
"""


def test_a_program_with_a_function_is_valid() -> None:
    program = parse_program(PROGRAM)
    verify(program)
    assert parse_program(print_program(program)) == program
    assert [f.name for f in program.functions] == ["Scaled"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "(%part, [0, 1]) : f32[6]",
            "(%part, [0]) : f32[4, 6]",
            "%of_w is f32[4, 6], but the gradient of %w is f32[6]",
        ),
        ("gradients (0, 1)", "gradients (0)", "its backward makes 2 gradients, not 1"),
        ("gradients (0, 1)", "gradients (0, 2)", "there are no operands 0, 2"),
        ("gradients (0, 1)", "gradients (1, 0)", "there are no operands 1, 0, in this order"),
        ("results 1", "results 2", "its backward must first read what its forward saves"),
        ("results 1", "results 0", "it cannot have 0 results"),
        ("%of_x", "%mul", "%mul is a value of its forward and another one of its backward"),
        ("return %mul, %x, %w", "return %mul, %w, %x", "its backward must first read what its forward saves"),
        (
            "  input %gradient : f32[B, 4, 6]",
            "  input %gradient : f32[B, 4, 6]\n  input %more : f32[6]",
            "the gradient of each floating result",
        ),
        ("aten.mul.Tensor(%gradient, %w)", "aten.dropout.default(%gradient, 0.1, true)", "aten.dropout.default in a"),
        ("aten.mul.Tensor(%gradient, %w)", "aten.mul.Tensor(%gradient, B)", "a number in B, which a function does not"),
        (
            "function.Scaled(%a, %b)",
            "function.Scaled(%a, %a)",
            "its operands are f32[B, 4, 6], f32[B, 4, 6], but those",
        ),
        ("function.Scaled(%a, %b)", "function.Scaled(%a)", "its operands are f32[B, 4, 6], but those of @Scaled"),
        ("function.Scaled(%a, %b)", "function.Scaled(%a, 2.0)", "the operands of a function are tensors"),
        ("%b) : f32[B, 4, 6]", "%b) : f32[B, 6, 4]", "its results are f32[B, 6, 4], but those of @Scaled f32[B, 4, 6]"),
        ("%mul = aten.mul.Tensor(%x, %w)", "%mul = aten.mul.Tensor(%y, %w)", "%y is not defined"),
        (
            "%mul = aten.mul.Tensor(%x, %w) : f32[B, 4, 6]",
            "%mul = aten.mul.Tensor(%x, %w) : f32[B, 4]",
            "gives [B, 4, 6]",
        ),
    ],
)
def test_a_function_that_is_none_is_refused(old: str, new: str, told: str) -> None:
    assert old in PROGRAM
    with pytest.raises(VerifyError) as error:
        verify(parse_program(PROGRAM.replace(old, new)))
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("function.Scaled(", "function.Other(", "unknown op 'function.Other'"),
        ("aten.mul.Tensor(%gradient, %w)", "function.Scaled(%gradient, %w)", "unknown op 'function.Scaled'"),
        ("graph of", f"{SCALED}graph of", "a second function 'Scaled'"),
    ],
)
def test_text_of_a_function_that_is_none_is_refused(old: str, new: str, told: str) -> None:
    with pytest.raises(ParseError) as error:
        parse_program(PROGRAM.replace(old, new))
    assert told in str(error.value)


def test_a_function_over_micro_batches() -> None:
    """Its samples stay apart where its graphs keep them apart, and only there."""
    program = parse_program(PROGRAM)
    graph = program.required_graph
    given = {value.name: batch_state(value.type) for value in graph.inputs}
    assert flow(graph, given).states["loss"] is SUM
    mixing = PROGRAM.replace("aten.mul.Tensor(%gradient, %w)", "aten.cumsum.default(%gradient, 0)")
    assert flow(parse_program(mixing).required_graph, given).states["loss"] is COUPLED
