"""Losses that couple samples: their ends run once per step on all micro-batches, and equal eager PyTorch."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron.costs.estimate import estimate_plan, setting_of
from galvatron.costs.objective import peak_bytes
from galvatron.errors import PlanError
from galvatron.passes.pipeline import Pipeline
from tests.marks import some_slow
from tests.parity.harness import BATCH_SIZE, check, job_of, layer_count, planned, subject
from tests.parity.test_memory import followed
from tests.ranks import run_ranks

PLANS = ["m4/dp1", "m4/dp2-tp2", "m2/tp4+sp", "m2/ulysses4", "m2/cp4", "pp2/m4/gpipe/dp2", "pp4/m4/gpipe/dp1"]
PLANS += ["m4/dp4-zero3-recompute", "m4/dp2-zero2", "m1/dp4", "pp2/m1/1f1b/tp2", "pp2/m2/gpipe/tp2+sp-zero1"]
FAST = [
    ("towers", "m4/dp2-tp2"), ("towers", "pp2/m4/gpipe/dp2"), ("towers", "m4/dp4-zero3-recompute"),
    ("balanced", "m4/dp2-tp2"), ("balanced", "pp2/m4/gpipe/dp2"), ("views", "m4/dp2-tp2"),
]  # fmt: skip
CASES = [
    (model, plan)
    for model in ("towers", "views", "balanced")
    for plan in PLANS
    if model != "views" or not any(role in plan for role in ("+sp", "ulysses", "cp"))  # two views are no sequence
]


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("model", "plan"), some_slow(FAST, CASES))
def test_equals_eager(model: str, plan: str) -> None:
    check(model, plan)


@pytest.mark.parametrize("model", some_slow(["towers"], ["balanced"]))
def test_layers_of_different_strategies(model: str) -> None:
    """The samples of a micro-batch are in the same order whatever the degrees of data parallelism around them."""
    count = layer_count(model)
    cycle = ["dp4", "dp2-tp2", "tp2-dp2", "dp1-tp4+sp"]
    strategies = [cycle[i % len(cycle)] for i in range(count - 1)]
    check(model, [[*strategies, "dp2-tp2"]], schedule="gpipe")
    check(model, [[*strategies, "dp4-zero3"]], schedule="gpipe", micro_batches=2)


class Rooted(nn.Module):
    """A root of a sum over samples and a penalty, times that sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6).double()

    def forward(self, x: Tensor) -> Tensor:
        total = self.first(x).pow(2).mean()
        return (total + 0.3 * self.first.weight.pow(2).sum() + 1).sqrt() * total


def test_a_penalty_inside_of_what_couples_counts_once() -> None:
    torch.manual_seed(0)
    model, batch = Rooted(), {"x": torch.randn(8, 6, dtype=torch.float64)}
    loss = model(**batch)
    loss.backward()
    compiled = galvatron.compile(model, batch, plan="m4/gpipe/dp1")
    torch.testing.assert_close(compiled.forward_backward(batch), loss.detach(), rtol=1e-12, atol=0)
    gradients = compiled.full_gradients()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-10, atol=1e-14)


def test_terms_without_samples_count_once() -> None:
    for plan in ("m4/dp2-tp2", "pp2/m4/1f1b/dp2-zero2"):
        check("penalised", plan)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["m1/dp4", "m2/tp4+sp", "pp2/m4/interleaved2/dp2", "pp2/m4/zbv/tp2", "m4/dp4-zero3"])
def test_terms_without_samples_under_every_schedule(plan: str) -> None:
    check("penalised", plan)


def test_a_schedule_that_cannot_wait_is_refused_at_the_line() -> None:
    with pytest.raises(PlanError, match=r"needs the results of all micro-batches; use schedule gpipe.*coupled\.py:\d+"):
        planned("towers", "pp2/m4/1f1b/dp2")


def test_a_search_for_such_a_schedule_is_refused_at_the_line_or_takes_one_micro_batch() -> None:
    program = galvatron.capture(Rooted(), {"x": torch.randn(8, 6, dtype=torch.float64)})
    search = "search{schedule=1f1b,micro_batches=4}"
    planning = f"annotate-costs{{cluster=a100-80g:1x2}},enumerate-strategies{{roles=[dp]}},prune,{search}"
    with pytest.raises(PlanError, match=r"needs the results of all micro-batches; .*test_epilogue\.py:\d+"):
        Pipeline.parse(planning).run(program)
    plan = galvatron.search(program, "a100-80g:1x2", schedule="1f1b")
    assert (plan.schedule, plan.micro_batches) == ("1f1b", 1)
    assert galvatron.search(program, "a100-80g:1x2", schedule="gpipe").schedule == "gpipe"


@cache
def peaks(plan: str) -> tuple[int, int]:
    """The most bytes that a rank holds during a step, measured and as the program states."""
    program = planned("towers", plan)
    assert program.plan is not None
    batch = subject("towers").batch(BATCH_SIZE, 1)
    _, peak = run_ranks(followed, 4, job_of("towers", program), batch, timeout=120)[0]
    reports = estimate_plan(program, program.plan)[1]
    return peak, peak_bytes(setting_of(program, program.plan), reports)[0]


@pytest.mark.slow
def test_micro_batches_of_a_contrastive_loss_lower_memory() -> None:
    """Gradient caching: all forwards first, of which each keeps its results alone."""
    whole, stated_whole = peaks("m1/dp2-tp2")
    again, stated_again = peaks("m1/dp2-tp2-recompute")
    parts, stated_parts = peaks("m4/gpipe/dp2-tp2-recompute")
    assert parts < again < whole
    assert stated_parts < stated_again < stated_whole
    for measured, stated in ((whole, stated_whole), (again, stated_again), (parts, stated_parts)):
        assert measured == pytest.approx(stated, rel=0.1)
