"""A program beside the one that it was made from: what is compared of both, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from galvatron.debugging.comparison import Departure, departure
from galvatron.debugging.passes import pass_departure, unlike_ops
from galvatron.debugging.simulation import combine, mesh_of
from galvatron.errors import GalvatronError
from galvatron.ir.layout import Shard
from galvatron.ir.program import Layer, Program
from galvatron.ir.text import parse_graph, print_program
from galvatron.ir.types import BatchSizes
from tests.cli.test_cli import run
from tests.debugging.silent import with_ops
from tests.ir.programs import captured, planned, sharded, staged


def with_layer(name: str, **fields: object) -> Program:
    """The staged program with another layer of a name."""

    def edited(layer: Layer) -> Layer:
        return replace(layer, **fields) if layer.name == name else layer  # type: ignore[arg-type]

    program = staged()
    return replace(program, stages=tuple(replace(s, layers=tuple(map(edited, s.layers))) for s in program.stages))


def state_of(name: str) -> tuple[str, ...]:
    return next(layer.state for layer in staged().all_layers if layer.name == name)


REWIRED = {
    "block_1, which makes %h2, has the state blocks.0.up.weight; before, blocks.1.up.weight": lambda: with_layer(
        "block_1", state=state_of("block_0")
    ),
    "block_3, which makes %h4, reads %h2; before, %h3": lambda: with_layer("block_3", operands=("h2", "mask@1")),
    "block_0, which makes %h1, is of @other; before, @block": lambda: with_base("other"),
    "the loss is %h4; before, %loss": lambda: replace(staged(), output="h4"),
}


def with_base(base: str) -> Program:
    program = staged()
    named = (replace(cls, base=base) if cls.base == "block" else cls for cls in program.classes)
    return replace(program, classes=tuple(named))


@pytest.mark.parametrize("told", REWIRED)
def test_layers_read_and_have_what_they_did(told: str) -> None:
    found = pass_departure(planned(), REWIRED[told]())
    assert found is not None and (found.what, str(found)) == ("wiring", told)


def test_what_was_sharded_is_the_same() -> None:
    assert pass_departure(planned(), staged()) is None


def other_model() -> Program:
    program = planned()
    kept = tuple(state for state in program.state if state.name != "unused")
    return replace(program, state=(*kept, replace(program.state_of["unused"], name="new")))


def frozen() -> Program:
    program = planned()
    return replace(program, state=tuple(replace(state, trainable=False) for state in program.state))


def changed_later() -> Program:
    return with_ops(
        staged(), lambda op: op.name == "silu", lambda op, graph: (replace(op, target="aten.relu.default"),)
    )


def renamed() -> Program:
    program = planned()
    block = program.class_of["block"]
    graph = replace(block.graph, inputs=tuple(replace(v, name=f"its_{v.name}") for v in block.graph.inputs))
    return replace(
        program, classes=tuple(replace(block, graph=graph) if cls is block else cls for cls in program.classes)
    )


REFUSED: dict[str, tuple[Callable[[], Program], Callable[[], Program]]] = {
    "has no layers to compare": (captured, staged),
    "only one of the programs has the state 'unused'": (other_model, staged),
    "is another state in each of the programs": (frozen, staged),
    "which the program before does not have": (sharded, changed_later),
    "has the inputs %x, %m, and @block %its_x, %its_m": (renamed, staged),
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_cannot_be_compared_is_refused(told: str) -> None:
    before, after = REFUSED[told]
    with pytest.raises(GalvatronError, match=told):
        pass_departure(before(), after())


def test_passes_are_no_question_beside_another_program(tmp_path: Path) -> None:
    path = tmp_path / "p.gir"
    path.write_text(print_program(planned()))
    for option in (("--compare",), ("--passes", "fuse")):
        assert "leave one out" in run("run", path, "--against", path, *option, code=2)[1]


CANCELS = """
graph {{
  input %x : f32[B, 4]
  %scaled = aten.mul.Tensor(%x, {factor}) : f32[B, 4]
  %less = aten.neg.default(%scaled) : f32[B, 4]
  %rest = aten.add.Tensor(%less, %x) : f32[B, 4]
  %loss = aten.sum.default(%rest) : f32[]
  return %loss
}}
"""


def test_what_differs_in_the_programs_is_named_before_what_shows_it() -> None:
    """The factors differ by rounding, what is left of them after a subtraction does not."""
    graphs = [parse_graph(CANCELS.format(factor=factor)) for factor in (1.00000000001, 1.00000000002)]
    found = departure(graphs[0], graphs[1], BatchSizes(), (), [("loss", "loss")])
    assert isinstance(found, Departure) and found.name == "rest" and [op.name for op in found.unlike] == ["mul"]
    assert str(found).index("%scaled = ") < str(found).index("it shows at") < str(found).index("%rest = ")
    assert not replace(found, unlike=()).unlike and "it shows at" not in str(replace(found, unlike=()))


def test_numbers_that_do_not_show_are_told() -> None:
    graphs = [parse_graph(CANCELS.format(factor=factor)) for factor in (1.00000000001, 1.00000000002)]
    told = unlike_ops(graphs[0], graphs[1], ())
    assert [line.partition(" = ")[0] for line in told] == ["- %scaled", "+ %scaled"]
    assert unlike_ops(graphs[0], graphs[0], ()) == []


NUMBERS = {
    "label smoothing of classes": (
        "%loss = aten.cross_entropy_loss.default(%x, %labels, label_smoothing={})", "0.1", "0.2",
    ),
    "label smoothing of probabilities": (
        "%loss = aten.cross_entropy_loss.default(%x, %y, label_smoothing={})", "0.1", "0.2",
    ),
    "label smoothing of probabilities, or none": (
        "%loss = aten.cross_entropy_loss.default(%x, %y, reduction=2, label_smoothing={})", "0.0", "0.1",
    ),
    "an epsilon": ("%loss = aten.layer_norm.default(%x, [5], eps={})", "1e-5", "1e-6"),
    "a slope": ("%loss = aten.leaky_relu.default(%x, {})", "0.01", "0.02"),
    "where a loss becomes linear": ("%loss = aten.huber_loss.default(%x, %y, 2, {})", "1.0", "1.1"),
    "what is filled in": ("%loss = aten.masked_fill.Scalar(%x, %mask, {})", "0.0", "1e-3"),
    "a bound": ("%loss = aten.clamp.default(%x, max={})", "1.0", "1.1"),
    "a rate": ("%loss = aten.dropout.default(%x, {}, true)", "0.1", "0.11"),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_another_number_among_arguments_shows(name: str) -> None:
    line, *numbers = NUMBERS[name]
    kind = "f32[]" if "_loss" in line else "f32[B, 5]"
    given = "  input %x : f32[B, 5]\n  input %y : f32[B, 5]\n  input %mask : bool[B, 5]\n"
    given += "  input %labels : i64[B]\n"
    first, second = (
        parse_graph(f"graph {{\n{given}  {line.format(number)} : {kind}\n  return %loss\n}}\n") for number in numbers
    )
    assert departure(first, first, BatchSizes(), (), [("loss", "loss")]) is None
    assert isinstance(departure(first, second, BatchSizes(), (), [("loss", "loss")]), Departure)


def test_a_part_of_another_shape_is_one() -> None:
    parts = [torch.zeros(2, 2, 4)] * 2
    for shape in ((2, 2, 8), (2, 2, 4, 1)):
        with pytest.raises(GalvatronError, match="rank 0 has a part of shape"):
            combine(parts, (Shard(1),), mesh_of(2), shape)
