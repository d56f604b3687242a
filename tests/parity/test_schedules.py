"""Schedules with several stages per rank, batches that a plan does not divide, and what is in flight meanwhile."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import pytest
import torch

from galvatron import runtime as rt
from galvatron.errors import PlanError
from galvatron.passes import LOWERING
from galvatron.passes.pipeline import Pipeline
from galvatron.schedules import Schedule
from tests.parity.harness import Job, check, executor, job_of, planned, subject
from tests.parity.subjects import Batch
from tests.ranks import run_ranks

PLANS = [
    "pp2/m4/interleaved2/dp2",
    "pp2/m4/interleaved3/tp2",
    "pp2/m3/zbv/dp2",
    "pp2/m4/zbv/tp2",
    "pp4/m6/interleaved2/dp1",
    "pp4/m3/zbv/dp1",
]
MORE_PLANS = [
    "pp2/m3/interleaved2/tp2",
    "pp2/m6/interleaved3/dp2-zero2",
    "pp2/m4/interleaved2/dp2-zero3",
    "pp2/m4/interleaved2/tp2+sp-recompute",
    "pp2/m1/zbv/dp2-zero1",
    "pp2/m4/zbv/dp2-zero3",
    "pp2/m6/zbv/dp2-zero2-recompute",
    "pp2/m4/zbv/tp2+sp-recompute=selective",
    "pp4/m4/interleaved3/dp1",
    "pp4/m12/interleaved3/dp1",
    "pp4/m12/zbv/dp1",
]


@pytest.mark.parametrize("plan", PLANS)
def test_several_stages_on_a_rank(plan: str) -> None:
    """Under zbv the embedding and the head that it is tied to are on one rank, otherwise on two."""
    check("gpt-8", plan, global_batch_size=24)


@pytest.mark.parametrize("stages", [(1, 6), (1, 1, 3, 2)])
def test_what_has_no_gradient_is_not_sent_back(stages: tuple[int, ...]) -> None:
    """The front does not train: within it nothing goes back, and of its early result, read at the end, nowhere."""
    plan = [["dp1"] * layers for layers in stages]
    program = planned("fine-tuned", plan, len(stages))
    first, *_, last = Pipeline.of(LOWERING).run(program).stages
    assert [transfer.differentiable for transfer in first.sends] == [False]
    assert [transfer.differentiable for transfer in last.receives] == [False, True][: len(stages) - 1]
    check("fine-tuned", plan)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [*PLANS, *MORE_PLANS])
@pytest.mark.parametrize("model", ["gpt-12", "gpt-12-untied"])
def test_every_schedule(model: str, plan: str) -> None:
    check(model, plan, global_batch_size=24)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("plan", "samples"),
    [
        ("pp2/m4/1f1b/dp2", 6),
        ("pp2/m4/gpipe/tp2", 7),
        ("pp2/m6/interleaved2/dp2", 20),
        ("pp2/m4/zbv/dp2", 2),
        ("m4/dp4", 12),
    ],
)
def test_a_smaller_last_batch(plan: str, samples: int) -> None:
    check("llama-tied", plan, subject("llama-tied").batch(samples, 1), global_batch_size=48)


class Call:
    """One forward of a stage, alive as long as autograd keeps something for its backward."""


def count_in_flight(world: rt.World, job: Job, batch: Batch) -> dict[int, int]:
    """On a rank: for each of its stages, the most forwards that were waiting for their backward at one time."""
    program = executor(world, job)
    most: dict[int, int] = {}
    for stage in program.stages:
        stage.forward = partial(_counted, stage.forward, weakref.WeakSet(), stage.index, most)
    program.forward_backward(batch)
    return most


def _counted(forward: Any, alive: weakref.WeakSet[Call], index: int, most: dict[int, int], *args: Any, **kwargs: Any):
    call = Call()
    alive.add(call)
    most[index] = max(most.get(index, 0), len(alive))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (call, tensor), lambda packed: packed[1]):
        return forward(*args, **kwargs)


@pytest.mark.parametrize(
    "plan",
    ["pp4/m6/gpipe/dp1", "pp4/m6/1f1b/dp1", "pp4/m2/1f1b/dp1", "pp4/m12/interleaved2/dp1", "pp4/m12/zbv/dp1", "m4/dp4"],
)
def test_no_more_is_in_flight_than_the_schedule_says(plan: str) -> None:
    """The activations of so many micro-batches are what the cost model counts."""
    program = planned("gpt-8", plan, global_batch_size=48)
    assert program.plan is not None
    name, degree = program.plan.schedule, program.plan.pipeline_degree
    expected = Schedule.parse(name).in_flight(degree, program.plan.micro_batches)
    batch = subject("gpt-8").batch(48, 0)
    for found in run_ranks(count_in_flight, 4, job_of("gpt-8", program), batch):
        assert found == {stage: expected[stage] for stage in found}


def refused(world: rt.World, job: Job, batch: Batch) -> str:
    program = executor(world, job)
    with pytest.raises(PlanError) as error:
        program.forward_backward(batch)
    return str(error.value)


def test_a_batch_that_the_shards_do_not_divide_is_refused() -> None:
    job = job_of("gpt", planned("gpt", "pp2/m2/zbv/dp2"))
    for message in run_ranks(refused, 4, job, subject("gpt").batch(7, 0)):
        assert "7 samples does not divide into 2 data-parallel shards: pass a multiple of 2" in message
