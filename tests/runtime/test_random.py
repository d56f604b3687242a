"""Draws follow from their key alone: step, micro-batch, layer, site and coordinates, not from the order of calls."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from galvatron import runtime as rt

SEED = rt.Seed(torch.device("cpu"), job=7, step=1, microbatch=0, layer="block_0")


def axes(*coordinates: int) -> tuple[rt.Axis, ...]:
    return tuple(cast(rt.Axis, SimpleNamespace(index=c)) for c in coordinates)


def draw(seed: rt.Seed = SEED, site: int = 0, coordinates: tuple[int, ...] = (), **options: Any) -> Tensor:
    with rt.seeded(seed, site=site, axes=axes(*coordinates), **options):
        return torch.rand(64)


def test_equal_keys_draw_equal_numbers_in_any_order() -> None:
    first = [draw(site=0), draw(site=1)]
    torch.rand(3)
    again = [draw(site=1), draw(site=0)]
    assert torch.equal(first[0], again[1]) and torch.equal(first[1], again[0])


def test_every_part_of_the_key_counts() -> None:
    changes: list[dict[str, Any]] = [{"job": 8}, {"step": 2}, {"microbatch": 1}, {"layer": "block_1"}]
    draws = [draw(), draw(site=1), draw(coordinates=(0,)), draw(coordinates=(1,)), draw(coordinates=(0, 1))]
    draws += [draw(coordinates=(1, 0)), *(draw(replace(SEED, **change)) for change in changes)]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert not torch.isclose(one, other).any()


def test_one_draw_per_step_is_the_same_for_all_micro_batches() -> None:
    later = replace(SEED, microbatch=3)
    assert torch.equal(draw(per_step=True), draw(later, per_step=True))
    assert not torch.equal(draw(), draw(later))


def test_the_users_generator_goes_on_as_if_nothing_was_drawn() -> None:
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    draw()
    with pytest.raises(ValueError), rt.seeded(SEED, site=0):
        raise ValueError
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_drops_its_share(p: float) -> None:
    x = torch.ones(400_000, dtype=torch.float64)
    with rt.seeded(SEED, site=0):
        y = F.dropout(x, p)
    assert set(y.unique().tolist()) == {0.0, 1 / (1 - p)}
    deviation = (p / (1 - p) / x.numel()) ** 0.5
    assert abs(y.mean() - 1) < 5 * deviation
    assert abs(y.var() - p / (1 - p)) < 0.02 * p / (1 - p)


def test_masks_of_neighbouring_keys_are_independent() -> None:
    """The correlation of masks of different sites, steps and coordinates is that of chance."""
    seeds = [SEED, replace(SEED, step=2), replace(SEED, microbatch=1)]
    masks: list[Tensor] = []
    for seed in seeds:
        for coordinate in range(3):
            with rt.seeded(seed, site=0, axes=axes(coordinate)):
                masks.append(torch.rand(40_000) < 0.5)
    correlations = torch.corrcoef(torch.stack(masks).double()) - torch.eye(len(masks))
    assert correlations.abs().max() < 5 / 40_000**0.5


def block(x: Tensor, weight: Tensor, *, seed: rt.Seed) -> Tensor:
    with rt.seeded(seed, site=0):
        y = F.scaled_dot_product_attention(x, x, x @ weight, dropout_p=0.3)
    with rt.seeded(seed, site=1):
        return F.dropout(y, 0.4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_replays_the_masks(reentrant: bool) -> None:
    """Without any help from the generator's state, and with another layer called in between."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    plain = block(x, weight, seed=SEED)
    expected = torch.autograd.grad(plain.square().sum(), [x, weight])
    later: Any = checkpoint(block, x, weight, seed=SEED, use_reentrant=False, preserve_rng_state=False)
    if reentrant:
        later = checkpoint(lambda x, w: block(x, w, seed=SEED), x, weight, use_reentrant=True, preserve_rng_state=False)
    block(x, weight, seed=replace(SEED, microbatch=1))
    assert torch.equal(later, plain)
    later.square().sum().backward()
    for tensor, gradient in zip([x, weight], expected, strict=True):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad, gradient)


def test_the_gradient_has_the_mask_of_the_forward() -> None:
    """With the key fixed dropout and attention are deterministic functions: finite differences agree."""
    torch.manual_seed(0)
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: block(x, w, seed=SEED), (x, weight))
