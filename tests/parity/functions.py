"""Functions with a backward of their own that people write, each in the middle of two residual layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

import galvatron

WIDTH, LENGTH = 8, 4
Batch = dict[str, Tensor]


class Around(nn.Module):
    """Two residual layers whose hidden units go through a function, given a scale for each."""

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        loss: Callable[[Tensor], Tensor] = lambda errors: errors.pow(2).mean(),
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(depth))
        self.scales = nn.ParameterList(nn.Parameter(torch.rand(2 * WIDTH) + 0.5) for _ in range(depth))
        self.function = function

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        for up, down, scale in zip(self.up, self.down, self.scales, strict=True):
            x = x + down(self.function(up(x), scale))
        return self.loss(x - target)


def batch_of(size: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x, target = torch.randn(2, size, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    return {"x": x, "target": target}


class Rounded(Function):
    """Passes gradients straight through, where its operand is small."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.steps = steps
        return (x * steps).round() / steps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] * (x.abs() < 1), None


class Reversed(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -0.5 * gradients[0]


class Clamped(Function):
    """Its backward is not linear in the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clamp(-1e-3, 1e-3)


class Scaled(Function):
    """In the style of `setup_context`; the scale has a gradient that sums over samples."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return x * scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, scale = ctx.saved_tensors
        of_scale = (gradients[0] * x).sum((0, 1)) if ctx.needs_input_grad[1] else None
        return gradients[0] * scale * 0.9, of_scale


class Cubed(Function):
    """Saves what it has computed, and gives a gradient of another shape and none for the first operand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        square = x * x
        ctx.save_for_backward(square, scale)
        return square * x * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        square, scale = ctx.saved_tensors
        return 3 * square * scale * gradients[0], gradients[0] * square


class Halves(Function):
    """Two results, by halves of the last dimension, and the places of the larger elements, which have no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, second = x.view(*x.shape[:-1], 2, -1).unbind(-2)
        larger = (first > second).long()
        ctx.save_for_backward(larger)
        ctx.mark_non_differentiable(larger)
        return first * 2, second * second, larger

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (larger,) = ctx.saved_tensors
        return torch.cat([gradients[0] * larger, gradients[1] * (1 - larger)], -1)


class Mean(Function):
    """Sums over the last dimension, which a shard of it knows only a part of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.width = x.shape[-1]
        return x.sum(-1, keepdim=True) / ctx.width

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return (gradients[0] * 2 / ctx.width).expand(*gradients[0].shape[:-1], ctx.width)


class Total(Function):
    """A loss with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, errors: Tensor) -> Tensor:
        ctx.save_for_backward(errors)
        return errors.abs().sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (errors,) = ctx.saved_tensors
        return gradients[0] * errors.clamp(-1, 1)


class Converted(Function):
    """Its backward converts what it has kept, which changes nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return x.tanh() * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, scale = (tensor.to(gradients[0].dtype) for tensor in ctx.saved_tensors)
        return gradients[0] * scale * (1 - x.tanh().square()), (gradients[0] * x.tanh()).sum((0, 1))


class Centred(Function):
    """Looks across the samples of the batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x - x.mean(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] - gradients[0].mean(0)


@torch.library.custom_op("galvatron_parity::damped", mutates_args=())
def damped(x: Tensor, scale: Tensor, power: int) -> Tensor:
    """An operator of another library, of which nobody says how it splits."""
    return x * torch.exp(-(scale**power))


@torch.library.custom_op("galvatron_parity::weighed", mutates_args=())
def weighed(x: Tensor, scale: Tensor, power: int) -> Tensor:
    """The same with a rule."""
    return x * torch.exp(-(scale**power))


def _like_first(x: Tensor, scale: Tensor, power: int) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output)
    ctx.power = inputs[2]


def _derivative(ctx: Any, gradient: Tensor) -> Any:
    _, scale, output = ctx.saved_tensors
    of_scale = (gradient * output).sum((0, 1)) * -ctx.power * scale ** (ctx.power - 1)
    return gradient * torch.exp(-(scale**ctx.power)), of_scale, None


@torch.library.custom_op("galvatron_parity::limited", mutates_args=())
def limited(x: Tensor) -> Tensor:
    """An operator of another library whose derivative is not linear in the gradient."""
    return x * 1.0


limited.register_fake(torch.empty_like)
limited.register_autograd(lambda ctx, gradient: gradient.clamp(-1e-3, 1e-3))
for operator in (damped, weighed):
    operator.register_fake(_like_first)
    operator.register_autograd(_derivative, setup_context=_keep)
galvatron.register_rule("galvatron_parity::weighed", "b* k, k -> b* k")


def halves(x: Tensor, scale: Tensor) -> Tensor:
    first, second, larger = Halves.apply(x)  # type: ignore[misc]  # apply says nothing of what it returns
    return torch.cat([first * larger, second], -1) * scale


class Penalised(Around):
    """Its loss has a term without samples, of which the gradient is clamped."""

    def __init__(self) -> None:
        super().__init__(lambda x, scale: x * scale)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return super().forward(x, target) + Clamped.apply(self.scales[0]).pow(2).sum()  # type: ignore[attr-defined]  # as above


FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "rounded": partial(Around, lambda x, scale: Rounded.apply(x, 4.0) * scale),
    "reversed": partial(Around, lambda x, scale: Reversed.apply(x * scale)),
    "clamped": partial(Around, lambda x, scale: Clamped.apply(x).tanh() * scale),
    "clamped-weight": partial(Around, lambda x, scale: x * Clamped.apply(scale)),
    "rounded-weight": partial(Around, lambda x, scale: x * Rounded.apply(scale, 4.0)),
    "clamped-penalty": Penalised,
    "scaled": partial(Around, lambda x, scale: Scaled.apply(x, scale).tanh()),
    "cubed": partial(Around, lambda x, scale: Cubed.apply(x, scale)),
    "halves": partial(Around, halves),
    "total": partial(Around, lambda x, scale: x.tanh() * scale, lambda errors: Total.apply(errors) / errors.numel()),
    "converted": partial(Around, lambda x, scale: Converted.apply(x, scale)),
    "centred": partial(Around, lambda x, scale: Centred.apply(x) * scale),
    "ending": partial(
        Around, lambda x, scale: x.tanh() * scale, lambda errors: Clamped.apply(errors.pow(2).mean().sqrt())
    ),
    "damped": partial(Around, lambda x, scale: damped(x, scale, 2)),
    "weighed": partial(Around, lambda x, scale: weighed(x, scale, 2)),
    "limited-weight": partial(Around, lambda x, scale: x * limited(scale)),
    "mean": partial(Around, lambda x, scale: (x - Mean.apply(x)) * scale),
}
"""A model by the name of its function."""
