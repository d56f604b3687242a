"""Vocabularies that do not divide by the tensor-parallel degree: padded on the ranks, and nowhere to be seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron.ir.planned import PlanShorthand
from tests.models import precise
from tests.parity.harness import BATCH_SIZE, Job, check, executor, job_of, planned, subject
from tests.parity.subjects import Batch, ignore_labels, make
from tests.ranks import run_ranks

PLANS = ["tp2", "tp3", "m2/dp2-tp2", "m2/tp2-dp2", "m2/tp2+sp", "pp2/m4/1f1b/tp2"]
MODELS = ["llama-97", "gpt2-101", "capped"]
VOCABULARY = {"llama-97": 97, "gpt2-101": 101, "capped": 101, "gpt2-tied-101": 101}


@pytest.mark.one_in(18)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("model", MODELS)
def test_equals_eager(model: str, plan: str) -> None:
    check(model, plan)


@pytest.mark.parametrize("samples", [slice(3, 4), slice(0, BATCH_SIZE // 2)])
@pytest.mark.parametrize("model", ["llama-97", "capped"])
def test_samples_without_labels(model: str, samples: slice) -> None:
    check(model, "m2/dp2-tp2", ignore_labels(subject(model).batch(BATCH_SIZE, 2), samples))


@pytest.mark.parametrize("model", VOCABULARY)
def test_embedding_and_head_are_padded(model: str) -> None:
    """Or the other tests would test nothing."""
    text = "".join(job_of(model, planned(model, "tp2", 2)).texts.values())
    padded = [line for line in text.splitlines() if "rt.Sharded(0, padded=True)" in line]
    assert len(padded) == {"capped": 3, "gpt2-tied-101": 1}.get(model, 2), text
    assert all(f"({VOCABULARY[model]}," in line for line in padded)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


def trained(world: rt.World, job: Job, batches: list[Batch], start: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole state after a step per batch, from a given state if any; filler must still be zero."""
    program = executor(world, job, optimizer=adamw, max_grad_norm=0.1)
    if start:
        program.load_full_state_dict(start)
    for batch in batches:
        program.train_step(batch)
    for name, spec in program.held.state_specs.items():
        local = program.held.get(name)
        for axis, place in spec.sharded:
            if place.padded and axis.index == axis.size - 1:
                own = spec.shape[place.dim] - axis.index * local.size(place.dim)
                assert not local.narrow(place.dim, own, local.size(place.dim) - own).any(), f"{name} has no zeros"
    return program.full_state_dict()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("model", ["llama-97", "capped", "gpt2-tied-101"])
@pytest.mark.parametrize("plans", [("tp2", "dp2"), ("m2/dp2-tp2", "pp2/m4/1f1b/tp2"), ("pp2/m2/1f1b/dp1", "tp3")])
def test_checkpoints_have_no_filler(model: str, plans: tuple[str, str]) -> None:
    """A step under one plan and, from its state, one under another are two steps on one device."""
    case = make(model)
    case.model.load_state_dict(subject(model).model.state_dict())
    state: dict[str, Tensor] = {}
    for seed, plan in enumerate(plans):
        batch, world_size = subject(model).batch(BATCH_SIZE, seed), PlanShorthand.parse(plan).world_size
        job = job_of(model, planned(model, plan, world_size))
        state = run_ranks(trained, world_size, job, [batch], state)[0]
        optimizer = adamw(case.model.parameters())
        optimizer.zero_grad()
        with precise(case.model):
            case.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(case.model.parameters(), 0.1)
        optimizer.step()
        expected = case.model.state_dict()
        assert list(state) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def initial_state(world: rt.World, job: Job) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = make(job.name).model
    return executor(world, job, model).full_state_dict(rank0_only=True)


def test_a_model_without_weights_gets_the_same_padded_or_not() -> None:
    first, *others = [
        run_ranks(initial_state, size, job_of("llama-97", planned("llama-97", plan, size)))[0]
        for plan, size in (("dp2", 2), ("tp2", 2), ("tp3", 3))
    ]
    for other in others:
        assert list(other) == list(first)
        assert [name for name, value in first.items() if not torch.equal(other[name], value)] == []
