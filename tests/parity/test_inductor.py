"""Compiled layers compute what the layers as written compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron.runtime.inductor import compile_layers
from tests.parity import harness
from tests.parity.subjects import Batch
from tests.ranks import run_ranks


def both_ways(world: rt.World, job: harness.Job, batch: Batch, backend: str) -> tuple[float, float, int]:
    """The loss as written, the largest error of a gradient when compiled, and how many functions were compiled."""
    steps: list[tuple[Tensor, dict[str, Tensor]]] = []
    functions = set()
    for compiled in (False, True):
        program = harness.executor(world, job)
        if compiled:
            functions = {layer.function for stage in program.stages for layer in stage.layers.values()}
            compile_layers(program.stages, partial(torch.compile, backend=backend))
        steps.append((program.forward_backward(batch), program.full_gradients()))
    (loss, gradients), (again, compiled_gradients) = steps
    errors = [abs(loss - again) / abs(loss)]
    errors += [(compiled_gradients[n] - g).norm() / g.norm().clamp_min(1e-12) for n, g in gradients.items()]
    return float(loss), float(max(errors)), len(functions)


def check(plan: str, backend: str, model: str = "llama") -> None:
    job = harness.job_of(model, harness.planned(model, plan, 2))
    results = run_ranks(both_ways, 2, job, harness.subject(model).batch(harness.BATCH_SIZE, 1), backend, timeout=280)
    for _, error, functions in results:
        assert error < 1e-9
        assert functions > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [
        "m2/tp2", "m2/dp2-zero3", "m2/dp2-zero3-recompute", "m2/tp2+sp-recompute=selective", "m2/cp2", "m2/ulysses2",
    ],
)  # fmt: skip
def test_layers_can_be_traced(plan: str) -> None:
    check(plan, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["m2/ep2", "m1/ep2-recompute"])
def test_layers_with_experts_can_be_traced(plan: str) -> None:
    """How many rows come is known at run time only: graphs are cut there."""
    check(plan, "aot_eager", "mixtral-batched_mm")


@pytest.mark.slow
def test_inductor() -> None:
    check("m2/dp2", "inductor")


def as_written(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def with_dropout(world: rt.World, job: harness.Job, batch: Batch, whole: bool) -> tuple[list[float], float]:
    """The losses of two steps whose draws are streams, and the largest error of a loss or a gradient when compiled,
    where each function must be one graph if it is a `whole` one."""
    steps: list[list[tuple[Tensor, dict[str, Tensor]]]] = []
    for compiler in (as_written, partial(torch.compile, backend="aot_eager", fullgraph=whole)):
        program = harness.executor(world, job)
        compile_layers(program.stages, compiler)
        steps.append([(program.forward_backward(batch), program.full_gradients()) for _ in range(2)])
    errors: list[Tensor] = []
    for (loss, gradients), (again, compiled) in zip(*steps, strict=True):
        errors.append(abs(loss - again) / abs(loss))
        errors += [(compiled[n] - g).norm() / g.norm().clamp_min(1e-12) for n, g in gradients.items()]
    return [float(loss) for loss, _ in steps[0]], float(max(errors))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "whole"),
    [
        ("m2/dp1", True),
        ("m2/dp1-recompute", True),
        ("m2/dp2", True),
        ("m2/tp2", False),
        ("dp1-recompute=selective", False),
    ],
)
def test_dropout_is_part_of_the_graph(plan: str, whole: bool) -> None:
    """Draws on the axes of most draws of a layer cut no graph; all are the same in the forward, in its replay, and on
    the ranks that have the same tensor, compiled or not."""
    ranks = 2 if "2" in plan.rpartition("/")[2] else 1
    job = harness.job_of("gpt2-dropout", harness.planned("gpt2-dropout", plan, ranks))
    batch = harness.subject("gpt2-dropout").batch(harness.BATCH_SIZE, 1)
    for (first, second), error in run_ranks(with_dropout, ranks, job, batch, whole, timeout=280):
        assert error < 1e-9 and first != second
