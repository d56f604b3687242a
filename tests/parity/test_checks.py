"""What a model asks of its own values: under any plan a step in which it does not hold is refused on every rank, before
anything is updated, and all others are those of the model."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron.codegen import emit, load_module, stage_axes
from galvatron.errors import CheckError
from galvatron.ir import planned as plans
from galvatron.ir.capture import capture_graph
from galvatron.ir.planned import PlanShorthand
from galvatron.ir.program import Program
from galvatron.ir.text import parse_program, print_program
from galvatron.passes import FRONT_END, LOWERING
from galvatron.passes.instrument import VerifyEach
from galvatron.passes.pipeline import Pipeline
from tests.marks import some_slow
from tests.parity.checked import Batch, batch, model, without_tokens
from tests.parity.harness import with_plan
from tests.ranks import run_ranks

SIZE = 8
PLANS = some_slow(
    ["m2/dp2", "m1/tp2", "pp2/m2/1f1b/dp1"],
    ["m1/tp2+sp", "m2/ulysses2", "m1/cp2", "m2/dp2-zero3-recompute", "m4/dp1", "pp2/m2/zbv/dp1", "m2/dp2-tp2"],
)


@cache
def costed() -> Program:
    found = capture_graph(model(), batch(SIZE, 0)).program
    with pytest.warns(UserWarning, match=r"abs\(\).max\(\).*left out, since it depends on more"):
        return Pipeline.of((*FRONT_END, "annotate-costs")).run(found, [VerifyEach()])


def steps(
    world: rt.World, texts: dict[str, str], axes: Any, holders: Any, settings: Any, good: Batch, bad: Batch
) -> tuple[str, bool, Tensor, dict[str, Tensor]]:
    """On a rank: what a bad batch is refused with, whether that changed nothing, and a step on a good one after it."""
    mesh = rt.build_mesh(world, axes, holders)
    stages = [load_module(f"stage_{i}.py", texts[f"stage_{i}.py"], None).Stage(mesh) for i in mesh.stages]
    program = rt.Executor(
        stages, model=rt.ModelState(model()), optimizer=lambda found: torch.optim.SGD(found, lr=1.0), **settings
    )
    before = program.full_state_dict()
    said = []
    for step in (program.train_step, program.eval_step):
        with pytest.raises(CheckError) as caught:
            step(bad)
        said.append(str(caught.value))
    is_as_before = all(torch.equal(before[name], value) for name, value in program.full_state_dict().items())
    assert said[0] == said[1]
    return said[0], is_as_before, program.forward_backward(good), program.full_gradients()


@pytest.mark.parametrize("plan", PLANS)
def test_a_check_that_fails_refuses_the_step_and_no_other(plan: str) -> None:
    program = costed()
    world_size = PlanShorthand.parse(plan).world_size
    found = plans.resolve(program, plan, SIZE, world_size)
    staged = Pipeline.of(LOWERING).run(with_plan(program, found), [VerifyEach()])
    assert parse_program(print_program(staged)) == staged
    settings = {"microbatches": found.micro_batches, "schedule": found.schedule, "shards": found.shards}
    good, bad = batch(SIZE, 1), without_tokens(SIZE, 2)
    eager = model()
    loss = eager(**good)
    loss.backward()
    with pytest.raises(AssertionError, match="a sample without tokens"):
        eager(**bad)
    results = run_ranks(steps, world_size, emit(staged), stage_axes(staged), found.holders, settings, good, bad)
    for said, is_as_before, own, gradients in results:
        assert "checked.py:" in said and "AssertionError: a sample without tokens (in layer" in said
        assert said.endswith("nothing was updated") and is_as_before
        assert abs(own - loss.detach()) <= 1e-9 * abs(loss.detach())
        for name, parameter in eager.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12)
