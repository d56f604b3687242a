"""A step on the samples that a rank has loaded is the step on the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from galvatron import runtime as rt
from tests.data.small import Ragged, compiled, new_model, sgd, whole
from tests.marks import some_slow
from tests.ranks import run_ranks

pytestmark = pytest.mark.usefixtures("shared_captures")

COUNT, SAMPLES = 19, 8
"""The last batch has three samples, which divide over nothing."""

PLANS = {
    "m2/dp2-zero3": (4, 4),
    "pp2/m2/1f1b/dp1": (8, 8),
    "m2/tp2+sp": (8, 8),
    "m2/cp2": (8, 8),
    "m2/dp4": (2, 2, 2, 2),
    "m2/cp2-dp2": (4, 4, 4, 4),
    "m2/dp2-tp2+sp-zero1": (4, 4, 4, 4),
    "pp2/m4/1f1b/dp2-zero2": (4, 4, 4, 4),
    "pp2/m2/zbv/dp2": (4, 4, 1, 1),
}
"""Plan → how many of eight samples each rank has. Of a V the middle reads none, and has one for its sizes."""


def close(found: Tensor, wanted: Tensor) -> None:
    error = (found - wanted).norm() / wanted.norm().clamp_min(1e-12)
    assert error < 1e-9, error


def steps(world: rt.World, plan: str, kind: str = "") -> list[tuple[int, int]]:
    """Trains an epoch beside one device; gives, by step, the samples of the batch and how many this rank has had."""
    program, dataset, model = compiled(plan, kind), Ragged(COUNT), new_model(kind)
    steps_of = [text for text in program.sources.values() if "def step(" in text]
    assert steps_of and all(("step_adds" in text) != (kind == "clamped") for text in steps_of)
    loader = program.dataloader(dataset, batch_size=SAMPLES)
    optimizer = sgd(model.parameters())
    found: list[tuple[int, int]] = []
    for begin, part in zip(range(0, COUNT, SAMPLES), loader, strict=True):
        batch = whole(dataset, list(range(begin, min(begin + SAMPLES, COUNT))))
        optimizer.zero_grad()
        loss = model(**batch)
        loss.backward()
        close(program.eval_step(part), loss.detach())
        close(program.forward_backward(part), loss.detach())
        for name, gradient in program.full_gradients().items():
            wanted = model.get_parameter(name).grad
            assert wanted is not None
            close(gradient, wanted)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        close(program.train_step(part), loss.detach())
        assert program.metrics.gradient_norm == pytest.approx(float(norm), rel=1e-9)
        assert (program.metrics.samples, program.metrics.tokens) == (len(batch["ids"]), batch["ids"].numel())
        found.append((part.samples, len(part["ids"])))
    for name, value in program.full_state_dict().items():
        close(value, model.state_dict()[name])
    return found


@pytest.mark.parametrize("plan", some_slow(["m2/dp2-zero3", "pp2/m2/1f1b/dp1"], PLANS))
def test_steps_on_loaded_samples_equal_one_device(plan: str) -> None:
    answers = run_ranks(steps, len(PLANS[plan]), plan)
    for found, own in zip(answers, PLANS[plan], strict=True):
        assert found == [(8, own), (8, own), (3, 1 if own == 1 else 3)]


@pytest.mark.parametrize("plan", some_slow(["m2/dp2-zero3"], ["pp2/m4/1f1b/dp2-zero2"]))
def test_what_is_no_sum_is_computed_of_gathered_inputs(plan: str) -> None:
    run_ranks(steps, len(PLANS[plan]), plan, "clamped")
