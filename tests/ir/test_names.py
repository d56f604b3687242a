"""Names in the text form: whatever a model calls its attributes, its program reads back as it was printed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from galvatron.ir.graph import Source
from galvatron.ir.program import Program, State
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.types import TensorType
from tests.ir.names import ODD, program
from tests.ir.programs import clustered


def sources(program: Program) -> list[Source | None]:
    graphs = [program.graph] if program.graph else [c.graph for c in program.classes]
    return [op.source for graph in graphs for op in graph.ops]


def assert_reads_back(first: int, last: int) -> None:
    for seed in range(first, last):
        made = program(seed)
        text = print_program(made, comments=seed % 2 == 0)
        parsed = parse_program(text)
        assert parsed == made, f"program({seed})"
        assert sources(parsed) == sources(made), f"program({seed})"
        assert print_program(parsed, comments=seed % 2 == 0) == text, f"program({seed})"


def test_programs_of_any_names_read_back() -> None:
    assert_reads_back(0, 300)


@pytest.mark.slow
def test_many_programs_of_any_names_read_back() -> None:
    assert_reads_back(300, 10_000)


@pytest.mark.parametrize("name", ODD, ids=lambda name: ascii(name)[:20])
def test_an_odd_name_reads_back_everywhere(name: str) -> None:
    """As the only one, and as the head and the tail of names that count up."""
    for names in ([name], [f"{i}.{name}" for i in range(4)], [f"{name}.{i}" for i in range(4)]):
        state = tuple(State(n, TensorType("f32", (2,)), aliases=(n,)) for n in names)
        made = clustered(0)
        layers = tuple(
            replace(made.layers[0], name=n, cls=n, operands=(n,), state=(n, f"{n}.w"), results=(n,)) for n in names
        )
        classes = tuple(replace(made.classes[0], name=n) for n in names)
        made = replace(made, name=name, state=state, layers=layers, classes=classes, output=name)
        assert parse_program(print_program(made)) == made


def test_classes_that_count_up_are_a_loop() -> None:
    """Blocks of unequal shapes, as in a ResNet: `layer1`, `layer2`, each of a class of its own."""
    made = clustered(4)
    layers = tuple(
        replace(layer, cls=f"stage{layer.name[-1]}.0") if layer.cls == "block" else layer for layer in made.layers
    )
    classes = tuple(
        replace(cls, name=f"stage{i}.0") for cls in made.classes if cls.name == "block" for i in range(4)
    )  # fmt: skip
    made = replace(made, layers=layers, classes=(*(c for c in made.classes if c.name != "block"), *classes))
    text = print_program(made, comments=False)
    assert "  layer  block_{i} %h{i+1} = @stage{i}.0(%h{i}, %mask)\n" in text
    assert parse_program(text) == made
