"""Batch norm in training mode, with the statistics of the whole batch wherever its samples are.

A layer that is recomputed selectively does not send the messages of the forward again: what they return is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from galvatron.recompute import keep
from galvatron.runtime import comm
from galvatron.runtime.mesh import Axis
from galvatron.runtime.spmd import wide

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    *,
    axis: Axis | None = None,
    size: int = 0,
) -> Results:
    """What the ATen op `_native_batch_norm_legit_functional` gives: the normalised tensor, the statistics of the batch,
    and the new running statistics. In a step that does not train it is normalised by the running statistics, which
    stay as they are.

    Args:
        x: [samples, channels, ...]; where an axis is given, samples are sharded on it.
        size: samples on all ranks of the axis.
    """
    # Kernels take affine parameters in the type of the input or of the statistics, which they all must have.
    weight = None if weight is None else weight.to(running_mean.dtype)
    bias = None if bias is None else bias.to(running_mean.dtype)
    if not training:
        y = F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        return y, running_mean, running_var, running_mean, running_var
    if axis is None:
        return torch.ops.aten._native_batch_norm_legit_functional.default(
            x, weight, bias, running_mean, running_var, True, momentum, eps
        )
    count = size * (x.numel() // (x.size(0) * x.size(1)))
    y, mean, rstd, variance = _BatchNorm.apply(x, weight, bias, count, eps, axis)  # type: ignore[misc]  # apply is untyped in torch
    unbiased = variance * (count / max(count - 1, 1))
    new_mean = running_mean.lerp(mean.to(running_mean.dtype), momentum)
    new_var = running_var.lerp(unbiased.to(running_var.dtype), momentum)
    return y, mean, rstd, new_mean, new_var


class _BatchNorm(torch.autograd.Function):
    """One all-gather of means and variances in the forward, one all-reduce of two sums in the backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, count: int, eps: float, axis: Axis
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance = keep(_statistics, x, axis)
        rstd = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.count, ctx.axis, ctx.biased = count, axis, bias is not None
        y = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps) if _fits(x, weight) else None
        if y is None:
            y = (wide(x) - _along(mean, x)) * _along(rstd if weight is None else rstd * weight, x)
            y = (y if bias is None else y + _along(bias, x)).to(x.dtype)
        ctx.mark_non_differentiable(mean, rstd, variance)
        return y, mean, rstd, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        gradient, normal = wide(gradients[0]), (wide(x) - _along(mean, x)) * _along(rstd, x)
        dims = [dim for dim in range(x.dim()) if dim != 1]
        own = torch.stack([gradient.sum(dims), (gradient * normal).sum(dims)])
        whole = own.clone()
        comm.all_reduce(whole, ctx.axis.group).wait()
        by_mean, by_normal = (whole / ctx.count).unbind()
        scale = rstd if weight is None else rstd * weight
        passed = (gradient - _along(by_mean, x) - normal * _along(by_normal, x)) * _along(scale, x)
        of_weight = None if weight is None else own[1].to(weight.dtype)
        of_bias = own[0].to(mean.dtype) if ctx.biased else None
        return passed.to(x.dtype), of_weight, of_bias, None, None, None


def _fits(x: Tensor, weight: Tensor | None) -> bool:
    return x.dtype in (torch.float32, torch.float64) and (weight is None or weight.dtype == x.dtype)


def _along(channels: Tensor, x: Tensor) -> Tensor:
    """A number per channel, shaped to stand beside `x`."""
    return channels.view(1, -1, *[1] * (x.dim() - 2))


def _statistics(x: Tensor, axis: Axis) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over all ranks, which hold equally many samples."""
    dims = [dim for dim in range(x.dim()) if dim != 1]
    variance, mean = torch.var_mean(wide(x), dims, correction=0)
    own = torch.stack([mean, variance])
    found = own.new_empty((axis.size, *own.shape))
    comm.all_gather(found, own, axis.group).wait()
    means, variances = found.unbind(1)
    mean = means.mean(0)
    return mean, variances.mean(0) + (means - mean).square().mean(0)
