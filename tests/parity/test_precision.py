"""Training under a precision against plain PyTorch on one device: float32 masters, a copy of them that computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron import runtime as rt
from tests.parity.harness import BATCH_SIZE, Job, executor, job_of, planned, subject
from tests.parity.subjects import Batch, make
from tests.ranks import run_ranks

pytestmark = pytest.mark.usefixtures("shared_captures")

MODEL = "llama-float32"
CLIP = 1.0
PLANS = ["dp2", "m2/tp2", "pp2/m4/1f1b/dp1", "m2/dp2-zero1", "m2/dp2-zero2", "m2/dp2-zero3", "m2/tp2+sp", "m2/cp2"]
OTHERS = [
    "m2/dp2-recompute",
    "m2/tp2-recompute=attention",
    "pp2/m4/interleaved2/dp1",
    "pp2/m4/zbv/dp1-recompute=selective",
]


def adamw(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def job(plan: str, precision: str | None = "bf16", world_size: int = 2, model: str = MODEL) -> Job:
    return job_of(model, planned(model, plan, world_size, precision))


def batches(steps: int, model: str = MODEL) -> list[Batch]:
    """Four batches, again and again."""
    return [subject(model).batch(BATCH_SIZE, step % 4) for step in range(steps)]


class Reference:
    """The model on one device in plain PyTorch: gradients of copies in `dtype`, added up and applied in float32."""

    def __init__(self, dtype: torch.dtype, microbatches: int = 1, model: str = MODEL) -> None:
        torch.manual_seed(0)
        self.model, self.dtype, self.microbatches = make(model).model, dtype, microbatches
        self.scale = 2.0**16 if dtype is torch.float16 else 1.0
        self.masters = dict(self.model.named_parameters())
        self.optimizer = adamw(self.masters.values())

    def loss_and_gradients(self, batch: Batch) -> float:
        """The mean loss over the whole batch; gradients are left with the masters."""
        copies = {name: p.detach().to(self.dtype).requires_grad_() for name, p in self.masters.items()}
        self.optimizer.zero_grad()
        total = 0.0
        for part in _parts(batch, self.microbatches):
            share = _terms(part) / _terms(batch)
            loss = torch.func.functional_call(self.model, copies, (), part).loss * share
            gradients = torch.autograd.grad(loss * self.scale, list(copies.values()))
            for master, gradient in zip(self.masters.values(), gradients, strict=True):
                own = gradient.float() / self.scale
                master.grad = own if master.grad is None else master.grad + own
            total += float(loss.detach())
        return total

    def step(self, batch: Batch) -> float:
        loss = self.loss_and_gradients(batch)
        nn.utils.clip_grad_norm_(self.masters.values(), CLIP)
        self.optimizer.step()
        return loss


def _parts(batch: Batch, count: int) -> Iterator[Batch]:
    for parts in zip(*(value.chunk(count) for value in batch.values()), strict=True):
        yield dict(zip(batch, parts, strict=True))


def _terms(batch: Batch) -> Tensor:
    """The number of labels that count; a causal model reads all but the first."""
    return (batch["labels"][:, 1:] != -100).sum()


def gradients(world: rt.World, job: Job, batch: Batch, scaled: bool) -> tuple[float, dict[str, Tensor], float]:
    program = executor(world, job, scaler=rt.LossScaler() if scaled else None)
    loss = program.forward_backward(batch)
    return float(loss), program.full_gradients(rank0_only=True), float(program.gradient_norm())


TIED = "llama-tied-float32"
EXPERTS = "mixtral-batched_mm-float32"


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    ("model", "plan"),
    [
        *((MODEL, plan) for plan in PLANS),
        (TIED, "pp2/m4/1f1b/dp1"),
        *(pytest.param(EXPERTS, f"m2/{plan}", marks=pytest.mark.slow) for plan in ("dp2", "ep2")),
    ],
)
def test_gradients_are_single_and_those_of_one_device_to_rounding(model: str, plan: str) -> None:
    (batch,) = batches(1, model)
    reference = Reference(torch.bfloat16, model=model)
    expected_loss = reference.loss_and_gradients(batch)
    results = run_ranks(gradients, 2, job(plan, model=model), batch, False)
    loss, found, norm = results[0]
    assert loss == pytest.approx(expected_loss, rel=2**-9)
    assert found.keys() == dict(reference.model.named_parameters(remove_duplicate=False)).keys()
    expected = {name: _gradient(p) for name, p in reference.masters.items()}
    total = torch.stack([g.norm() for g in expected.values()]).norm()
    assert norm == pytest.approx(float(total), rel=2**-7)
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - gradient).norm() <= 2**-6 * gradient.norm() + 2**-9 * total, name


@pytest.mark.one_in(2)
@pytest.mark.parametrize("plan", OTHERS)
def test_gradients_of_scaled_losses_are_divided_again(plan: str) -> None:
    (batch,) = batches(1)
    reference = Reference(torch.float32)
    expected_loss = reference.loss_and_gradients(batch)
    loss, found, _ = run_ranks(gradients, 2, job(plan, "f16"), batch, True)[0]
    assert loss == pytest.approx(expected_loss, rel=2**-10)
    expected = {name: _gradient(p) for name, p in reference.masters.items()}
    total = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 2**-7 * gradient.norm() + 2**-11 * total, name


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_gradients_of_micro_batches_add_up_in_single(precision: str, dtype: torch.dtype) -> None:
    """Adding sixteen times in 16 bits would lose far more than this. (The model rounds what it gives to the weight of a
    norm; here both are one op.)"""
    (batch,) = batches(1)
    reference = Reference(dtype, microbatches=16)
    reference.loss_and_gradients(batch)
    ((_, found, _),) = run_ranks(gradients, 1, job("m16/dp1", precision, 1), batch, precision == "f16")
    for name, parameter in reference.masters.items():
        expected = _gradient(parameter)
        bound = 2**-7 if "norm" in name else 2**-8
        assert (found[name] - expected).norm() <= bound * expected.norm(), name


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def train(world: rt.World, job: Job, batches: list[Batch]) -> list[float]:
    program = executor(world, job, optimizer=adamw, max_grad_norm=CLIP)
    return [float(program.train_step(batch)) for batch in batches]


@pytest.mark.slow
def test_fifty_steps_are_those_of_one_device_to_noise() -> None:
    """Noise is what rounding does to one device: other micro-batches, or float32."""
    data = batches(50)
    references = [Reference(torch.bfloat16), Reference(torch.bfloat16, 4), Reference(torch.float32)]
    curves = torch.tensor([[reference.step(batch) for batch in data] for reference in references])
    noise = (curves - curves[0]).abs().amax()
    assert curves[0, 0] - curves[0, -1] > 0.5, "it has not learned"
    for plan in ("dp2", "tp2", "pp2/m4/1f1b/dp1", "m2/dp2-zero3"):
        (losses, same) = run_ranks(train, 2, job(plan), data)
        assert losses == same
        error = (torch.tensor(losses) - curves[0]).abs().amax()
        print(f"{plan}: {error:.1e}, noise {noise:.1e}, loss {curves[0, 0]:.3f} to {curves[0, -1]:.3f}")
        assert error <= 2 * noise, plan


def update(world: rt.World, job: Job, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor], bool]:
    """States before and after a step, and whether the layers read what the second one rounds to."""
    program = executor(world, job, optimizer=adamw)
    before = program.full_state_dict()
    program.train_step(batch)
    after = program.full_state_dict()
    again = executor(world, job, optimizer=adamw)
    again.load_full_state_dict(after)
    fresh = again.full_state_dict()
    assert all(torch.equal(fresh[name], value) for name, value in after.items())
    # What the layers read shows in the loss alone where values are gathered for each layer.
    return before, after, torch.equal(program.forward_backward(batch), again.forward_backward(batch))


@pytest.mark.parametrize("plan", PLANS[2:6])
def test_states_hold_the_masters_and_layers_read_their_rounded_values(plan: str) -> None:
    (batch,) = batches(1)
    for before, after, reads_masters in run_ranks(update, 2, job(plan), batch):
        assert reads_masters
        for name, parameter in subject(MODEL).model.named_parameters():
            assert torch.equal(before[name], parameter)
            assert after[name].dtype == torch.float32 and not torch.equal(after[name], parameter)
            # A step too small for bfloat16 is not lost.
            assert not torch.equal(after[name], after[name].bfloat16().float())


# float16


def perceptron() -> nn.Module:
    """Its first layer has one column so small that an input as large as float16 allows does no harm forward."""
    torch.manual_seed(0)
    model = nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(8, 8), nn.Tanh())))
    with torch.no_grad():
        model.get_parameter("0.weight")[:, 0] = 1e-6
    return model


def vectors(*, overflows: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 8, generator=generator)
    # Only the last sample, and only the gradient of the first layer.
    x[-1, 0] = 60000.0 if overflows else 0.5
    return {"input": x}


def squares(output: Tensor, batch: Any) -> Tensor:
    return (output - 0.5).square().mean()


def overflow(world: rt.World, plan: str) -> dict[str, Any]:
    """A step that overflows, then three that do not."""
    good, bad = vectors(overflows=False), vectors(overflows=True)
    compiled = galvatron.compile(
        perceptron(), good, loss_fn=squares, plan=plan, optimizer=adamw, precision="fp16", max_grad_norm=CLIP
    )
    before, scale = compiled.full_state_dict(), compiled.loss_scale
    compiled.train_step(bad)
    trained = compiled._executor._parameters.trained.values()
    return {
        "finite": all(bool(p.grad.isfinite().all()) for p in trained if p.grad is not None),
        "skipped": all(torch.equal(value, before[name]) for name, value in compiled.full_state_dict().items()),
        "scales": (scale, compiled.loss_scale),
        "losses": [float(compiled.train_step(good)) for _ in range(3)],
        "trained": all(not torch.equal(value, before[name]) for name, value in compiled.full_state_dict().items()),
    }


@pytest.mark.parametrize("plan", ["dp2", "tp2", "pp2/m2/1f1b/dp1", "pp2/m4/zbv/dp1", "m2/dp2-zero2"])
def test_a_step_that_overflows_is_skipped_on_all_ranks(plan: str) -> None:
    first, second = run_ranks(overflow, 2, plan)
    for found in (first, second):
        assert found["skipped"] and found["trained"] and found["scales"] == (2.0**16, 2.0**15)
        assert found["losses"] == first["losses"] == sorted(found["losses"], reverse=True)
    if "1f1b" in plan:
        assert not first["finite"] and second["finite"], "the second stage must skip for the sake of the first"


# Weights made from nothing


def made(world: rt.World, job: Job) -> dict[str, Tensor]:
    with torch.device("meta"):
        model = make(MODEL).model
    return executor(world, job, model=model).full_state_dict()


@pytest.mark.slow
def test_a_model_on_meta_is_initialised_in_single() -> None:
    (plain,) = run_ranks(made, 1, job("dp1", None, 1))
    rounded, _ = run_ranks(made, 2, job("tp2"))
    assert all(torch.equal(rounded[name], value) and value.dtype == torch.float32 for name, value in plain.items())
