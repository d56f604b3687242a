"""The verifier: valid programs pass, and every rule refuses a program broken in just that way, at the right line."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

import galvatron.ir.verify as verifier
from galvatron.errors import VerifyError
from galvatron.ir.program import (
    Layer,
    LayerClass,
    Program,
)
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.verify import RULES, verify
from tests.ir import broken_graphs, broken_layers, broken_plans
from tests.ir.breaking import (
    SITE,
    closing,
    collecting,
    converted,
    telling,
    two_masks,
    with_draw,
    with_function,
    with_layer,
)
from tests.ir.programs import (
    FORMS,
    block_state,
    clustered,
    rounded,
    sharded,
    staged,
    updating,
)


@pytest.mark.parametrize("blocks", [2, 5])
@pytest.mark.parametrize("form", FORMS)
def test_valid_programs_pass(form: str, blocks: int) -> None:
    verify(FORMS[form](blocks))
    if FORMS[form](blocks).classes:
        verify(with_function(FORMS[form](blocks)))
    verify(rounded(FORMS[form](blocks)))
    if form != "captured":
        verify(updating(FORMS[form](blocks)))


BROKEN = broken_graphs.BROKEN | broken_layers.BROKEN | broken_plans.BROKEN


CASES = [pytest.param(rule, *case, id=f"{rule}-{i}") for rule, cases in BROKEN.items() for i, case in enumerate(cases)]


@pytest.mark.parametrize(("rule", "program", "message", "line"), CASES)
def test_a_broken_program_is_refused_at_its_line(rule: str, program: Program, message: str, line: str) -> None:
    """`message` tells what is wrong; the marked line of the excerpt holds `line`."""
    with pytest.raises(VerifyError, match=re.escape(message)) as caught:
        verify(program)
    assert caught.value.rule == rule
    text = str(caught.value)
    assert f"program Net ({program.form}) breaks the rule {rule}: " in text
    marked = [shown for shown in text.splitlines() if shown.startswith(">>>")]
    assert any(line in shown for shown in marked), text


def test_every_rule_has_a_broken_example_and_a_meaning() -> None:
    assert [rule.name for rule in RULES] == list(dict.fromkeys(rule.name for rule in RULES))
    assert set(BROKEN) == {rule.name for rule in RULES}
    assert all(BROKEN.values())
    assert all(rule.meaning.endswith(".") and rule.forms for rule in RULES)


def apart(program: Program) -> Program:
    """Every block calls a class of its own."""
    copies: list[LayerClass] = []
    for layer in program.all_layers:
        if layer.name.startswith("block_"):
            copies.append(replace(program.class_of[layer.cls], name=f"{layer.name}.alone"))
            program = with_layer(program, layer.name, cls=copies[-1].name)
    others = (cls for cls in program.classes if not cls.name.startswith("block"))
    return replace(program, classes=(*others, *copies))


@pytest.mark.parametrize("form", ["clustered", "sharded", "staged"])
def test_layers_are_not_looked_through_for_each_class(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often the classes of layers are asked for grows as the layers do, where each has its own."""
    read: Counter[str] = Counter()

    def counted(layer: Layer, name: str) -> Any:
        read[name] += 1
        return object.__getattribute__(layer, name)

    def times(blocks: int) -> int:
        program = apart(FORMS[form](blocks))
        with monkeypatch.context() as patch:
            patch.setattr(Layer, "__getattribute__", counted)
            read.clear()
            verify(program)
        return read["cls"]

    few, more, most = times(4), times(8), times(12)
    assert most - more == more - few > 0


def test_scopes_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Program] = []
    scopes = verifier._scopes
    monkeypatch.setattr(verifier, "_scopes", lambda program: made.append(program) or scopes(program))
    verify(staged())
    assert len(made) == 1


def test_a_draw_with_its_site_is_valid() -> None:
    drawn = with_draw(sharded(), "dropout", "random.", SITE)
    verify(drawn)
    assert parse_program(print_program(drawn)) == drawn


def test_two_classes_of_one_copy_are_valid() -> None:
    verify(two_masks())


def test_an_epilogue_of_micro_batches_is_valid() -> None:
    verify(collecting())


def test_new_values_when_a_step_ends_are_valid() -> None:
    program = closing("more", "n")
    verify(program)
    assert parse_program(print_program(program)) == program


def test_what_says_when_parameters_have_a_gradient_is_valid() -> None:
    program = telling(*block_state(0), *block_state(1))
    verify(program)
    assert parse_program(print_program(program)) == program


def test_a_message_tells_a_few_of_many_violations() -> None:
    program = clustered(20)
    broken = replace(program, layers=tuple(replace(layer, state=("x",) * len(layer.state)) for layer in program.layers))
    with pytest.raises(VerifyError, match=r"and at least \d+ more") as caught:
        verify(broken)
    assert str(caught.value).count("\n") < 60


def test_a_conversion_is_valid() -> None:
    program = converted()
    verify(program)
    assert parse_program(print_program(program)) == program
