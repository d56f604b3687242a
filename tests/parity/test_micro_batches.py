"""Losses of any kind: several micro-batches compute what eager computes on the whole batch, or a line is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, event, given, settings
from hypothesis import strategies as st

from galvatron.errors import BudgetError, CaptureError, PlanError
from galvatron.ir.cluster import Cluster
from galvatron.ir.plan import Plan
from galvatron.offline import search
from tests.marks import some_slow
from tests.parity.harness import BATCH_SIZE, Expected, check, check_program, costed, eager, planned, subject
from tests.parity.reductions import VALUES, WORDS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch advises against some of the words
COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
}
ONE_RANK = ("m2/dp1", "m4/dp1", "m1/dp1")
TWO_RANKS = ("m2/dp2", "pp2/m2/dp1", "pp2/m4/dp1", "m2/tp2", "m1/dp2")
PARAMETERS = 4
SMALL = 1e-4
"""A loss or gradient below this is not compared: it may be nothing but rounding."""


@st.composite
def chains(draw: st.DrawFn) -> str:
    """One to three terms, each a value, what is done with it, and how it meets the one before."""
    words: list[str] = []
    for index in range(draw(st.integers(1, 3))):
        words.append(draw(st.sampled_from(VALUES)))
        words += draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5))
        if index:
            words.append(draw(st.sampled_from("+-*/")))
    return "reduced: " + " ".join(words)


def one_example(name: str, plans: tuple[str, ...]) -> None:
    """Each plan is equal to eager or refused, with one micro-batch never refused."""
    name = f"reduced: {' '.join(subject(name).model.words)}"  # type: ignore[arg-type]  # of `Reductions`
    batch = subject(name).batch(BATCH_SIZE, 1)
    assume(comparable(eager(name, batch)))
    try:
        costed(name)
    except CaptureError as error:
        event("refused at capture")
        assert ".py:" in str(error)
        return
    for plan in plans:
        try:
            program = planned(name, plan, 2 if plan in TWO_RANKS else 1)
        except PlanError as error:
            if "more stages" in str(error):
                continue
            assert "/m1/" not in f"/{plan}/" and ".py:" in str(error), error
            event(f"refused, {'though its parts add up' if adds_up(name) else 'and its parts do not add up'}")
        else:
            check_program(name, program, batch)
            event("equal")


def comparable(expected: Expected) -> bool:
    tensors = [expected.loss, *expected.gradients.values()]
    return (
        len(expected.gradients) == PARAMETERS
        and all(bool(t.isfinite().all()) for t in tensors)
        and min(float(t.norm()) for t in tensors) > SMALL
    )


def adds_up(name: str) -> bool:
    """Whether the loss is the sum or the mean of the losses of two halves of a batch."""
    case = subject(name)
    batch = case.batch(BATCH_SIZE, 1)
    halves = [{k: v[i * BATCH_SIZE // 2 : (i + 1) * BATCH_SIZE // 2] for k, v in batch.items()} for i in range(2)]
    whole, total = case.loss(batch), case.loss(halves[0]) + case.loss(halves[1])
    return any(torch.allclose(whole, t, rtol=1e-10, atol=0) for t in (total, total / 2))


@settings(max_examples=3, derandomize=True, phases=(Phase.generate,), **COMMON)
@given(chains())
def test_random_loss(name: str) -> None:
    one_example(name, ONE_RANK[:2])


@pytest.mark.parametrize("chain", ["h copies root sum", "h norm1 pairs sum1 root mean"])
def test_sizes_that_are_not_of_samples(chain: str) -> None:
    check(f"reduced: {chain}", "m2/gpipe/dp1")


@pytest.mark.slow
@pytest.mark.timeout(7200)
@settings(max_examples=500, phases=(Phase.reuse, Phase.generate, Phase.shrink), **COMMON)
@given(chains(), st.sampled_from(range(8)))
def test_many_random_losses(name: str, chance: int) -> None:
    one_example(name, ONE_RANK if chance else TWO_RANKS)


SEARCHED = (
    "h mean root",
    "likelihood matrix norm +",
    "h std0 sum",
    "first second @ softmax1 mean",
    "h norm1 mean",
    "h sum1 sigmoid sum h square sum /",
)


def searched(name: str, budget: int, devices: int) -> Plan | None:
    """The plan that the search proposes under a memory budget in bytes, beside what libraries take."""
    cluster = Cluster.parse(f"a100-80g:1x{devices}")
    memory = budget + cluster.device.workspace_bytes
    try:
        return search(costed(name)[0], cluster, memory=memory, global_batch_size=BATCH_SIZE)
    except BudgetError:
        return None


@pytest.mark.parametrize(
    ("chain", "devices"),
    some_slow([(chain, 1) for chain in SEARCHED[:2]], itertools.product(SEARCHED, (1, 2))),
)
def test_the_search_proposes_nothing_wrong(chain: str, devices: int) -> None:
    """Whatever the memory: with little of it the search would like many micro-batches."""
    name = f"reduced: {chain}"
    plans = {searched(name, budget, devices) for budget in range(4096, 4096 * 11, 4096)} - {None}
    assert plans
    batch = subject(name).batch(BATCH_SIZE, 1)
    for plan in plans:
        assert plan is not None
        check_program(name, planned(name, plan, devices), batch)
