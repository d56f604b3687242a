"""What the model returns besides its loss: under any plan it is, on every rank, what the model gives on one device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron.codegen import emit, load_module, stage_axes
from galvatron.ir import planned as plans
from galvatron.ir.capture import Captured, capture_graph
from galvatron.ir.planned import PlanShorthand
from galvatron.ir.program import Program
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.verify import verify
from galvatron.passes import FRONT_END, LOWERING
from galvatron.passes.instrument import VerifyEach
from galvatron.passes.pipeline import Pipeline
from tests.parity.harness import TOLERANCES, lengths_of, with_plan
from tests.parity.outputs import Batch, case, expected
from tests.ranks import run_ranks

PLANS = (
    "m1/dp2",
    "m1/tp2",
    "m1/tp2+sp",
    "m1/cp2",
    "m2/ulysses2",
    "m2/dp2-zero3",
    "m4/dp1",
    "pp2/m2/1f1b/dp1",
    "pp2/m2/gpipe/dp1",
)
MORE = (
    "m2/tp2-recompute",
    "m2/cp2-recompute=selective",
    "pp2/interleaved2/dp1",
    "pp2/m2/zbv/dp1",
    "m2/dp2-tp2",
    "pp2/m2/1f1b/dp2",
)
SIZE = 8


@dataclass(frozen=True)
class Job:
    """What ranks need: the code of each stage and how it runs."""

    name: str
    texts: dict[str, str]
    axes: tuple[tuple[tuple[int, int], ...], ...]
    holders: tuple[int, ...]
    settings: dict[str, Any]
    batched: frozenset[str]


@cache
def captured(name: str) -> Captured:
    subject = case(name)
    options = {"loss_fn": subject.loss_fn, "outputs": subject.outputs, "dynamic": subject.dynamic}
    return capture_graph(subject.model, subject.batch(SIZE, 0), **options)


@cache
def costed(name: str) -> Program:
    return Pipeline.of((*FRONT_END, "annotate-costs")).run(captured(name).program, [VerifyEach()])


def job_of(name: str, plan: str) -> Job:
    """The generated code of a plan, which the text of the program leads to as well."""
    program = costed(name)
    found = plans.resolve(program, plan, SIZE, PlanShorthand.parse(plan).world_size)
    staged = Pipeline.of(LOWERING).run(with_plan(program, found), [VerifyEach()])
    again = parse_program(print_program(staged))
    verify(again)
    assert again == staged
    settings = {"microbatches": found.micro_batches, "schedule": found.schedule, "shards": found.shards}
    return Job(name, emit(again), stage_axes(staged), found.holders, settings, program.batched)


def evaluate(world: rt.World, job: Job, batches: list[Batch]) -> list[dict[str, Tensor]]:
    """On a rank: the outputs of each batch, after a training step, which keeps none."""
    mesh = rt.build_mesh(world, job.axes, job.holders)
    names = [f"stage_{index}.py" for index in mesh.stages]
    stages = [load_module(name, job.texts[name], None).Stage(mesh) for name in names]
    state = rt.ModelState(case(job.name).model, constants=captured(job.name).constants)
    program = rt.Executor(stages, model=state, batched=job.batched, **job.settings)
    program.forward_backward(batches[0])
    assert all(output.parts is None for stage in stages for output in stage.outputs)
    return [program.outputs(batch)[1] for batch in batches]


def holds(name: str, plan: str) -> None:
    job, make = job_of(name, plan), case(name).batch
    batches = [make(SIZE, 1), make(SIZE // 2, 2)]
    given = [batch | lengths_of(captured(name).program, batch) for batch in batches]
    for found in run_ranks(evaluate, PlanShorthand.parse(plan).world_size, job, given):
        for batch, outputs in zip(batches, found, strict=True):
            wanted = expected(name, batch)
            assert sorted(outputs) == sorted(wanted)
            for output, value in wanted.items():
                assert outputs[output].shape == value.shape, output
                assert outputs[output].dtype == value.dtype, output
                error = (outputs[output].double() - value.double()).norm() / value.double().norm().clamp_min(1e-12)
                assert error <= TOLERANCES[torch.float64], f"{plan}: {output} {error:.1e}"


@pytest.mark.one_in(3)
@pytest.mark.parametrize("plan", ["m2/dp2", "m1/tp2+sp", "pp2/m2/1f1b/dp1"])
def test_logits(plan: str) -> None:
    holds("logits", plan)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("plan", ["m2/dp2", "m1/tp2", "pp2/m2/1f1b/dp1"])
def test_batches_of_several_lengths(plan: str) -> None:
    holds("lengths", plan)


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS + MORE)
@pytest.mark.parametrize("name", ["decoder", "lengths", "logits", "classifier"])
def test_every_output(name: str, plan: str) -> None:
    holds(name, plan)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["m1/dp2", "m2/dp1", "m2/dp2", "pp2/m2/gpipe/dp1"])
def test_what_couples_samples(plan: str) -> None:
    holds("pairs", plan)
