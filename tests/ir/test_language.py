"""docs/ir.md: its examples are what is printed, parsed and valid, and it leaves out nothing that the parser reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from galvatron.errors import ParseError
from galvatron.ir.program import Form, Program
from galvatron.ir.text import parse_graph, parse_program, print_graph, print_program
from galvatron.ir.text.expressions import FUNCTIONS
from galvatron.ir.text.parser import SECTIONS
from galvatron.ir.types import DTYPE_BYTES
from galvatron.ir.verify import verify
from galvatron.passes.base import PassResult
from galvatron.passes.pipeline import Pipeline, Step

PAGE = (Path(__file__).parents[2] / "docs" / "ir.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(.*?)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
EXAMPLES = {title.removeprefix("gir "): block for title, block in BLOCKS if title.startswith("gir ")}
CAPTURED = EXAMPLES.pop("captured")


@cache
def forms() -> dict[str, Program]:
    """The program of the page in every form, by its own commands."""
    found = {str(Form.CAPTURED): parse_program(CAPTURED)}

    def keep(step: Step, proceed: Callable[[], PassResult]) -> PassResult:
        result = proceed()
        found[str(result.program.form)] = result.program
        return result

    for passes in re.findall(r'opt captured.gir --passes "(.*?)"', PAGE):
        Pipeline.parse(passes).run(found["captured"], [keep])
    return found


def test_the_program_of_the_page_is_valid_and_printed_as_it_stands() -> None:
    verify(parse_program(CAPTURED))
    assert print_program(parse_program(CAPTURED)) == CAPTURED


@pytest.mark.parametrize("form", EXAMPLES)
def test_the_examples_are_what_is_printed(form: str) -> None:
    program = forms()[form]
    verify(program)
    text = print_program(program)
    assert parse_program(text) == program and print_program(parse_program(text)) == text
    for excerpt in EXAMPLES[form].split("…\n"):
        assert excerpt in text


def test_every_form_has_an_example() -> None:
    assert list(EXAMPLES) == [str(form) for form in Form if form is not Form.CAPTURED]


def fragment(start: str) -> str:
    """A block of the page without its comments."""
    (found,) = (text for title, text in BLOCKS if not title and text.startswith(start))
    return re.sub(r" +//.*", "", found)


def test_what_a_program_has_besides() -> None:
    parts = fragment("update") + fragment("rule")
    text = print_program(parse_program(f"galvatron ir 2\nprogram Some captured batch 8\noutput %loss\n{parts}"))
    assert all(" ".join(line.split()) in " ".join(text.split()) for line in parts.splitlines())


def test_the_function_of_the_page() -> None:
    call = "graph {\n  input %x : f32[B, 4]\n  %y = function.Double(%x) : f32[B, 4]\n  return %y\n}\n"
    graph = parse_graph(fragment("function") + call)
    assert fragment("function") in print_graph(graph)


@pytest.mark.parametrize("call", re.findall(r"^\| `((?:aten|comm|spmd|random|step)\.\S.*?)` \|", PAGE, re.MULTILINE))
def test_the_calls_of_the_page(call: str) -> None:
    graph = parse_graph(f"graph {{ %r = {call} : f32[] return %r }}")
    assert f"%r = {call} : f32[]" in print_graph(graph)


def test_a_misspelled_argument() -> None:
    with pytest.raises(ParseError) as caught:
        parse_program(CAPTURED.replace("approximate=", "aproximate=", 1))
    assert str(caught.value) in PAGE


def test_the_page_leaves_out_no_word() -> None:
    grammar = fragment("file ")
    assert all(f'"{word}"' in grammar for word in SECTIONS)
    assert all(f"`{name}`" in PAGE for name in (*DTYPE_BYTES, *FUNCTIONS))
