"""Dropout of compiled models: who sees which mask, that runs repeat, and that real models train with it.

`Reveal` makes masks visible. Its loss weighs element n of the batch (sample and position together) by 2ⁿ, and the mask
is behind a bias, so the gradient of the bias, divided by the scale of the mask, spells the mask in binary.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import galvatron
from galvatron import runtime as rt
from galvatron.errors import CaptureError
from tests import models
from tests.marks import some_slow
from tests.ranks import run_ranks

pytestmark = pytest.mark.usefixtures("shared_captures")

SAMPLES, LENGTH, WIDTH = 8, 4, 64
BITS = SAMPLES * LENGTH
GPT2: dict[str, Any] = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
BERT: dict[str, Any] = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


class Reveal(nn.Module):
    """Two branches with dropout 0.5 behind a linear layer, and the sum of what they let through, weighed by a code."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(nn.Linear(4, WIDTH).double() for _ in range(2))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        kept = [F.dropout(branch(x), 0.5, self.training) for branch in self.branches]
        return sum((branch * code.unsqueeze(-1)).sum() for branch in kept)  # type: ignore[return-value]  # not empty


def revealing_batch() -> dict[str, Tensor]:
    x = torch.randn(SAMPLES, LENGTH, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {"x": x, "code": (2.0 ** torch.arange(BITS, dtype=torch.float64)).view(SAMPLES, LENGTH)}


def masks(compiled: galvatron.CompiledModel) -> tuple[float, list[Tensor]]:
    """The loss of a step, and the masks that it drew: bool[samples, positions, width] per branch."""
    loss = float(compiled.forward_backward(revealing_batch()))
    gradients = compiled.full_gradients()
    numbers = [(gradients[f"branches.{i}.bias"] / 2).to(torch.int64) for i in range(2)]
    bits = [number.unsqueeze(0) >> torch.arange(BITS).unsqueeze(1) & 1 for number in numbers]
    return loss, [b.view(SAMPLES, LENGTH, WIDTH).bool() for b in bits]


def reveal(world: rt.World, plan: str, steps: int, seed: int) -> list[tuple[float, list[Tensor]]]:
    """On a rank: loss and masks of each step."""
    model = Reveal()
    torch.manual_seed(seed if world.rank == 0 else 1234)  # that of rank 0 counts
    compiled = galvatron.compile(model, revealing_batch(), plan=plan)
    return [masks(compiled) for _ in range(steps)]


@cache
def revealed(plan: str, ranks: int) -> list[tuple[float, list[Tensor]]]:
    """Loss and masks of two steps."""
    return run_ranks(reveal, ranks, plan, 2, 0)[0]


def independent(a: Tensor, b: Tensor) -> bool:
    """Whether two masks agree as often as chance has it, to five standard deviations."""
    return abs(float((a == b).double().mean()) - 0.5) < 5 * 0.5 / a.numel() ** 0.5


def loss_under(both: list[Tensor]) -> float:
    """The loss that the model has under given masks."""
    model, batch = Reveal(), revealing_batch()
    outputs = [branch(batch["x"]) * 2 * mask for branch, mask in zip(model.branches, both, strict=True)]
    return sum(float((out.detach() * batch["code"].unsqueeze(-1)).sum()) for out in outputs)


PLANS = [
    ("dp1", 1), ("m2/dp1", 1), ("dp2", 2), ("tp2", 2), ("tp2+sp", 2), ("ulysses2", 2), ("cp2", 2), ("m2/dp2-tp2", 4),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "ranks"), PLANS)
def test_masks_are_independent_wherever_values_are(plan: str, ranks: int) -> None:
    """Samples, positions, hidden units, branches and steps: no part of a mask repeats another part."""
    steps = revealed(plan, ranks)
    (_, (mask, other)), (_, (later, _)) = steps
    assert abs(float(mask.double().mean()) - 0.5) < 5 * 0.5 / mask.numel() ** 0.5
    assert independent(mask, other) and independent(mask, later)
    for dim, size in enumerate(mask.shape):
        assert independent(mask.narrow(dim, 0, size // 2), mask.narrow(dim, size // 2, size // 2))
    quarters = mask.chunk(4)
    assert all(independent(a, b) for i, a in enumerate(quarters) for b in quarters[:i])


@pytest.mark.parametrize(("plan", "ranks"), PLANS)
def test_forward_and_backward_have_one_mask(plan: str, ranks: int) -> None:
    """The loss is that of the masks which the gradient reveals."""
    for loss, both in revealed(plan, ranks):
        assert abs(loss - loss_under(both)) < 1e-12 * abs(loss)


def pair_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {n: torch.randn(4, 6, 8, generator=generator) for n in ("x", "target")}


def replicas(world: rt.World) -> tuple[dict[str, Tensor], str]:
    """On a rank: its own gradients of the parameters that every rank has whole, and the source."""
    case = models.hugging_face("gpt2", **GPT2)
    compiled = galvatron.compile(case.model, case.batch(4, 0), plan="tp2")
    compiled.forward_backward(case.batch(4, 0))
    held = compiled._executor.held
    whole = {name: held.get(name).grad for name, spec in held.state_specs.items() if not spec.placements}
    return {name: grad for name, grad in whole.items() if grad is not None}, compiled.sources[0]


def test_replicas_draw_the_same_and_shards_do_not() -> None:
    """Under tensor parallelism the residual stream is dropped alike on all ranks, attention head by head."""
    (first, source), (second, _) = run_ranks(replicas, 2)
    draws = re.findall(r"with rt\.seeded\(seed, site=(\d)(, axes=\(tp,\))?\):\n +\w+ = F\.(\w+)", source)
    assert ("0", ", axes=(tp,)", "scaled_dot_product_attention") in draws
    assert ("1", "", "dropout") in draws and ("2", "", "dropout") in draws
    assert {"transformer.h.0.ln_1.weight", "transformer.h.1.ln_2.bias", "transformer.ln_f.bias"} <= first.keys()
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, rtol=1e-12, atol=1e-14)


def test_the_seed_decides() -> None:
    """Rank 0's seed before `compile`: the same one repeats masks and losses bit by bit, another one does not."""
    one, again, other = (run_ranks(reveal, 2, "dp2", 2, seed)[0] for seed in (5, 5, 6))
    for (loss, both), (loss_again, both_again) in zip(one, again, strict=True):
        assert loss == loss_again
        assert all(torch.equal(a, b) for a, b in zip(both, both_again, strict=True))
    assert independent(one[0][1][0], other[0][1][0])


def test_a_model_in_eval_mode_has_no_dropout() -> None:
    compiled = galvatron.compile(Reveal().eval(), revealing_batch(), plan="dp1")
    assert "seed" not in compiled.sources[0]
    compiled.forward_backward(revealing_batch())
    assert all((compiled.full_gradients()[f"branches.{i}.bias"] == 2.0**BITS - 1).all() for i in range(2))


# Real models.


def trained(
    world: rt.World, name: str, options: dict[str, Any], plan: str, steps: int, rate: float, seed: int = 0
) -> list[float]:
    """On a rank: the losses of some steps on one batch."""
    case = models.hugging_face(name, **options)
    batch = case.batch(8, 0)
    torch.manual_seed(seed)
    compiled = galvatron.compile(
        case.model, batch, plan=plan, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate)
    )
    return [float(compiled.train_step(batch)) for _ in range(steps)]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("plan", some_slow(["tp2", "pp2/m2/1f1b/dp1"], ["dp2", "ulysses2", "cp2"]))
@pytest.mark.parametrize(("name", "options"), some_slow([("gpt2", GPT2)], [("bert", BERT)]), ids=["gpt2", "bert"])
def test_models_train(name: str, options: dict[str, Any], plan: str) -> None:
    losses, others = run_ranks(trained, 2, name, options, plan, 3, 1e-2)
    assert losses == others
    assert all(torch.isfinite(torch.tensor(losses))) and losses[2] < losses[1] < losses[0]


def test_the_pipeline_does_not_change_masks() -> None:
    """Keys do not say on which stage a layer is: the same micro-batches give the same losses."""
    (whole,) = run_ranks(trained, 1, "gpt2", GPT2, "m2/dp1", 2, 1e-2)
    cut, _ = run_ranks(trained, 2, "gpt2", GPT2, "pp2/m2/1f1b/dp1", 2, 1e-2)
    assert cut == pytest.approx(whole, rel=1e-9)


@pytest.mark.slow
def test_plans_agree_in_distribution() -> None:
    """Mean losses over many draws differ by no more than chance; the noise is real, and the weights stay fixed."""
    options = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}
    runs = [
        run_ranks(trained, ranks, "gpt2", options, plan, 40, 0.0)[0] for plan, ranks in (("dp1", 1), ("dp2-tp2", 4))
    ]
    first, second = (torch.tensor(run, dtype=torch.float64) for run in runs)
    error = ((first.var() + second.var()) / len(first)).sqrt()
    assert error > 0 and abs(first.mean() - second.mean()) < 5 * error
    assert 0.4 < first.std() / second.std() < 2.5


# What else draws.


class Noisy(nn.Module):
    """Stochastic depth per sample, noise shared by all samples, dropout of whole features and a mask of one's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        keep = x.new_empty((x.shape[0], 1, 1)).bernoulli_(0.8) / 0.8
        h = F.alpha_dropout(F.dropout1d(self.first(x), 0.2), 0.1)
        h = h * torch.bernoulli(torch.sigmoid(h)) + 0.1 * torch.randn(16) + 0.1 * torch.randn_like(h)
        h = F.rrelu(h, training=True) + 0.1 * torch.rand(x.shape[0], 1, 16)
        return (x + keep * self.second(h) - target).square().mean()


def noise(world: rt.World, plan: str) -> list[float]:
    torch.manual_seed(3)
    batch = pair_batch()
    compiled = galvatron.compile(Noisy(), batch, plan=plan)
    return [float(compiled.forward_backward(batch)) for _ in range(3)]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("plan", ["dp2", "tp2", "m2/dp1"])
def test_other_draws_work(plan: str) -> None:
    ranks = 1 if plan.endswith("dp1") else 2
    runs = [run_ranks(noise, ranks, plan) for _ in range(2)]
    assert runs[0] == runs[1]
    assert all(r == runs[0][0] for r in runs[0]) and len(set(runs[0][0])) == 3


class Shared(nn.Module):
    """Its draw has no samples in it: every sample gets the same one, whatever micro-batch it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight * torch.rand(64, dtype=torch.float64)).sum()


def shared(world: rt.World, plan: str) -> Tensor:
    torch.manual_seed(3)
    batch = {"x": torch.ones(8, 64, dtype=torch.float64)}
    compiled = galvatron.compile(Shared(), batch, plan=plan)
    compiled.forward_backward(batch)
    return compiled.full_gradients()["weight"]


def test_what_all_samples_share_is_drawn_once_per_step() -> None:
    (alone,) = run_ranks(shared, 1, "dp1")
    for plan in ("m4/dp1", "m2/dp2"):
        assert torch.allclose(run_ranks(shared, 2 if "dp2" in plan else 1, plan)[0], alone)


def permuted(x: Tensor) -> Tensor:
    return x[torch.randperm(x.shape[0])]


def sampled(x: Tensor) -> Tensor:
    return x * torch.multinomial(torch.sigmoid(x.flatten(1)), 1).unsqueeze(-1)


@pytest.mark.parametrize(("draw", "op"), [(permuted, "randperm"), (sampled, "multinomial")])
def test_what_cannot_be_split_is_refused_at_its_line(draw: Callable[[Tensor], Tensor], op: str) -> None:
    class Refused(Noisy):
        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return super().forward(draw(x), target)

    batch = pair_batch()
    with pytest.raises(CaptureError, match=rf"test_dropout\.py:\d+: `return x.*{op}"):
        galvatron.capture(Refused(), batch)


@pytest.mark.parametrize("dropout", some_slow([0.2], [0.0]))
def test_recurrent_networks_are_refused_only_with_dropout(dropout: float) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 8, num_layers=2, dropout=dropout, batch_first=True)

        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return (self.lstm(x)[0] - target).square().mean()

    batch = pair_batch()
    if dropout:
        with pytest.raises(CaptureError, match="lstm"):
            galvatron.capture(Recurrent(), batch)
    else:
        galvatron.capture(Recurrent(), batch)
