"""A program beside the one that it was made from: what is compared of both, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from galvatron.debugging.passes import pass_departure
from galvatron.errors import GalvatronError
from galvatron.ir.program import Layer, Program
from galvatron.ir.text import print_program
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
