"""Real models in every form that the default pipeline takes them through: valid, and the same after print and parse."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from galvatron.cli.opt import pipeline_of
from galvatron.ir.capture import capture_graph
from galvatron.ir.cluster import Cluster
from galvatron.ir.plan import Plan
from galvatron.ir.planned import with_plan
from galvatron.ir.program import Form, Program
from galvatron.ir.strategy import Strategy
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.verify import verify
from galvatron.passes import LOWERING
from galvatron.passes.base import PassResult
from galvatron.passes.pipeline import Pipeline, Step
from tests import models

CLUSTER = Cluster.parse("a100-80g:1x4")


def states(program: Program, passes: tuple[str, ...]) -> Iterator[Program]:
    """The program after each of the passes."""
    for name in passes:
        program = Pipeline.of([name]).run(program)
        yield program


def mixed_plan(program: Program, stages: int, seed: int, *, sequence: bool) -> Plan:
    """A plan with a strategy drawn for each layer, so that redistributions stand between them.

    `sequence` says whether the model's sequence length divides, so that it may be sharded.
    """
    texts = ["dp4", "tp4", "dp2-tp2", "tp2-dp2"] if stages == 1 else ["dp2", "tp2"]
    if sequence:
        texts += ["dp2-tp2+sp", "ulysses2-dp2"] if stages == 1 else ["tp2+sp"]
    choose = random.Random(seed).choice
    strategies = tuple(Strategy.parse(choose(texts)) for _ in program.planned_layers)
    cut = len(strategies) // 2
    parts = (strategies,) if stages == 1 else (strategies[:cut], strategies[cut:])
    return Plan(program.fingerprint, 8, CLUSTER.world_size, 2, "gpipe", parts)


def check(program: Program) -> None:
    verify(program)
    text = print_program(program)
    parsed = parse_program(text)
    assert parsed == program
    assert print_program(parsed) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", *models.FAMILIES])
def test_every_form_is_valid_and_survives_text(name: str) -> None:
    case = models.gpt() if name == "gpt" else models.hugging_face(name)
    program = capture_graph(case.model, case.batch(8, 0)).program
    check(program)
    made: list[Program] = []

    def checked(step: Step, proceed: Callable[[], PassResult]) -> PassResult:
        made.append((result := proceed()).program)
        check(result.program)
        return result

    staged = Pipeline.parse(str(pipeline_of(program, CLUSTER.name))).run(program, [checked])
    costed = next(one for one in made if one.form is Form.COSTED)
    again = Pipeline.parse(str(pipeline_of(costed, None))).run(parse_program(print_program(costed)))
    assert again == staged, "what --list-pipeline prints does the same again"
    for stages in (1, 2):
        plan = mixed_plan(costed, stages, seed=stages, sequence=name != "vit")  # 16 patches and a class token
        planned = with_plan(costed, plan)
        for program in states(planned, LOWERING):
            check(program)
