"""What optimizers cost, as it is found on stand-ins: bytes and products of a step, for parameters of any shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

import galvatron
from galvatron.cli.optimizers import read_optimizer
from galvatron.errors import GalvatronError, VerifyError
from galvatron.ir.program import Program
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.update_rule import ADAMW, ROUND_BYTES, UpdateRule
from galvatron.ir.verify import verify
from galvatron.runtime import WholeParameters, owners
from galvatron.update_rules import with_rules
from tests.test_together import WIDTH, WORDS, new_batch, new_model


@cache
def program() -> Program:
    return galvatron.capture(new_model().float(), new_batch())


def rules(factory: Any, **options: Any) -> dict[str, UpdateRule]:
    """By the names of parameters."""
    found = with_rules(program(), factory, **options)
    return {state.name: found.rule_of(state) for state in found.state if state.trainable}


def fused(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)


@pytest.mark.parametrize(
    ("factory", "copies", "passes"),
    [
        (torch.optim.SGD, 0, 3),
        (partial(torch.optim.SGD, momentum=0.9), 1, 8),
        (fused, ADAMW.copies, ADAMW.passes),
        (lambda parameters: galvatron.ema(fused(parameters)), ADAMW.copies + 1, ADAMW.passes + 3),
        (partial(torch.optim.Adam, amsgrad=True), 3, 21),
        (torch.optim.AdamW, 2, 20),
    ],
    ids=["sgd", "momentum", "fused adamw", "averaged", "amsgrad", "adamw"],
)
def test_element_wise_rules_have_one_figure_for_all_parameters(factory: Any, copies: float, passes: float) -> None:
    assert {(rule.copies, rule.passes, rule.flop, rule.whole) for rule in rules(factory).values()} == {
        (copies, passes, 0, False)
    }


def test_rules_of_matrices_follow_their_shapes() -> None:
    embedding = rules(WholeParameters(torch.optim.Adafactor))["embedding.weight"]
    assert embedding.whole and embedding.copies == pytest.approx((WORDS + WIDTH) / (WORDS * WIDTH))
    long = rules(WholeParameters(partial(torch.optim.Muon, lr=0.02)))["head.weight"]
    # Five times (Newton, Schulz) two products with the longer dimension and one without, in bfloat16.
    flop = 5 * (2 * 2 * WIDTH**2 * WORDS + 2 * WIDTH**3)
    assert (long.copies, long.product_type, long.flop) == (1, "bf16", pytest.approx(flop / (WORDS * WIDTH)))


def test_temporaries_of_all_parameters_at_once_are_told_from_those_of_one() -> None:
    assert {rule.spare for rule in rules(torch.optim.AdamW).values()} == {0}
    assert {rule.spare for rule in rules(torch.optim.AdamW, at_once=True).values()} == {1}


def test_the_text_of_a_program_has_its_rules() -> None:
    found = with_rules(program(), WholeParameters(torch.optim.Adafactor))
    unsaid = replace(found, state=(*found.state[:-1], replace(found.state[-1], rule="")))
    for one in (found, unsaid):
        assert parse_program(print_program(one)) == one
    verify(found)
    first = found.rules[0]
    for wrong in (
        replace(found, rules=found.rules[1:]),
        replace(found, rules=(*found.rules, first)),
        replace(found, rules=(replace(first, copies=-1.0), *found.rules[1:])),
        replace(found, rules=(replace(first, flop=2.0, product_type=""), *found.rules[1:])),
    ):
        with pytest.raises(VerifyError, match="rule"):
            verify(wrong)


def test_estimates_are_those_of_the_optimizer() -> None:
    def stage(factory: Any) -> Any:
        return galvatron.estimate(program(), "dp2", "a100-80g:1x2", optimizer=factory).stages[0]

    usual, plain, matrices = stage(None), stage(torch.optim.SGD), stage(WholeParameters(torch.optim.Adafactor))
    assert usual.state.optimizer == 2 * usual.state.parameters and plain.state.optimizer == 0
    assert plain.update_s < usual.update_s and plain.update_bytes == 0
    assert 0 < matrices.state.optimizer < usual.state.optimizer / 2
    assert ROUND_BYTES == owners.ROUND_BYTES


def test_optimizers_by_name() -> None:
    def trained(text: str) -> Any:
        parameter = torch.nn.Parameter(torch.zeros(8, 8))
        factory: Any = read_optimizer(text)
        whole = isinstance(factory, WholeParameters)
        return (factory.build if whole else factory)([parameter]), whole

    optimizer, whole = trained("SGD(momentum=0.9)")
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"] == 0.9 and not whole
    assert trained("Adafactor")[1] and read_optimizer(None) is None
    for wrong, words in [
        ("adam", "has no optimizer 'adam'; did you mean 'Adam'"),
        ("SGD(0.9)", "a name with options"),
        ("SGD(lr=__import__('os'))", "a name with options"),
        ("SGD(speed=1)", "unexpected keyword"),
    ]:
        with pytest.raises(GalvatronError, match=words):
            read_optimizer(wrong)


class FailsOnStandIns(torch.optim.SGD):
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]  # torch's returns a loss
        raise RuntimeError("no")


def test_an_optimizer_that_takes_no_step_leaves_the_program_as_it_is() -> None:
    assert with_rules(program(), FailsOnStandIns) is program()
