"""Gradient synchronisation and the global norm, both derived from the placements of the parameters.

A parameter that is `Summed` on an axis needs its gradient added up over that axis once per step; one that lives on
several stages needs it added up over those stages. Gradients with the same groups and dtype live in flat buckets,
into which autograd accumulates directly, so a reduction copies nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from galvatron.runtime.stage import Stage

_BUCKET_BYTES = 32 << 20


@dataclass(frozen=True)
class _Bucket:
    """Gradients that are reduced together: `flat` holds them, `views` are the parameters' slices of it."""

    groups: tuple[dist.ProcessGroup, ...]
    parameters: tuple[nn.Parameter, ...]
    flat: Tensor
    views: tuple[Tensor, ...]


class GradientSync:
    """The gradients of one stage on one rank.

    Args:
        stage: with real parameters.
        ties: for every parameter that lives on several stages, the group of its copies of this rank's slice.
    """

    def __init__(self, stage: Stage, ties: Mapping[str, dist.ProcessGroup]) -> None:
        self._local: list[nn.Parameter] = []
        members: dict[tuple[tuple[dist.ProcessGroup, ...], torch.dtype], list[nn.Parameter]] = {}
        # The backward meets the last layers first, so their buckets come first.
        for name, parameter in reversed(list(stage.named_parameters())):
            if not parameter.requires_grad:
                continue
            groups = tuple(axis.group for axis in stage.state_specs[name].summed)
            groups += (ties[name],) if name in ties else ()
            if groups:
                members.setdefault((groups, parameter.dtype), []).append(parameter)
            else:
                self._local.append(parameter)
        tied = set(ties.values())
        # Groups inside the stage first: the order in which ranks of different stages meet in a tie must be one order.
        keys = sorted(members, key=lambda key: bool(tied & set(key[0])))
        self._buckets = [bucket for key in keys for bucket in _buckets(key[0], members[key])]

    def start(self) -> None:
        """Forget the last step's gradients."""
        for parameter in self._local:
            parameter.grad = None
        for bucket in self._buckets:
            bucket.flat.zero_()
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                parameter.grad = view

    def reduce(self) -> None:
        """Sum the accumulated gradients over their groups; all buckets are in flight together."""
        for hop in range(max((len(bucket.groups) for bucket in self._buckets), default=0)):
            works = [bucket.groups[hop].allreduce(bucket.flat) for bucket in self._buckets if hop < len(bucket.groups)]
            for work in works:
                work.wait()


def _buckets(groups: tuple[dist.ProcessGroup, ...], parameters: list[nn.Parameter]) -> list[_Bucket]:
    runs: list[list[nn.Parameter]] = [[]]
    used_bytes = 0
    for parameter in parameters:
        if runs[-1] and used_bytes + parameter.nbytes > _BUCKET_BYTES:
            runs.append([])
            used_bytes = 0
        runs[-1].append(parameter)
        used_bytes += parameter.nbytes
    buckets = []
    for run in runs:
        flat = torch.zeros(sum(p.numel() for p in run), dtype=run[0].dtype, device=run[0].device)
        views = tuple(part.view_as(p) for part, p in zip(flat.split([p.numel() for p in run]), run, strict=True))
        buckets.append(_Bucket(groups, tuple(run), flat, views))
    return buckets


def squared_norm(stage: Stage, copies: Mapping[str, int]) -> Tensor:
    """This rank's share of the squared norm of all gradients, as float64: summed over the world it counts every element
    once.

    An element of a parameter cut into `s` slices lies on `ranks / s` ranks of its stage, and on `copies` stages when
    tied; each of them counts that fraction of it.
    """
    by_weight: dict[float, list[Tensor]] = {}
    for name, parameter in stage.named_parameters():
        if parameter.grad is not None:
            weight = stage.state_specs[name].shards / (len(stage.mesh.ranks) * copies.get(name, 1))
            by_weight.setdefault(weight, []).append(parameter.grad)
    total = torch.zeros((), dtype=torch.float64, device=stage.mesh.world.device)
    for weight, gradients in by_weight.items():
        dtype = torch.promote_types(gradients[0].dtype, torch.float32)
        norms = torch._foreach_norm(gradients, 2, dtype=dtype)  # pyright: ignore[reportPrivateImportUsage]  # as torch.nn.utils does
        total += weight * torch.stack([norm.to(torch.float64) for norm in norms]).square().sum()
    return total


def clip(stage: Stage, norm: Tensor, max_norm: float) -> None:
    """Scale all gradients so that their global norm is at most `max_norm`, as `torch.nn.utils.clip_grad_norm_` does."""
    if math.isinf(max_norm):
        return
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    gradients = [parameter.grad for parameter in stage.parameters() if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]  # as torch.nn.utils does
