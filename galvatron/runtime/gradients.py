"""Gradient synchronisation and the global norm, both derived from the placements of the parameters.

A parameter that is `Summed` on an axis needs its gradient added up over that axis once per step; one that lives on
several stages needs it added up over those stages. Gradients with the same groups and dtype live in flat buckets,
into which autograd accumulates directly, so a reduction copies nothing. A bucket's reduction starts as soon as the last
micro-batch has added to all of it, while the backward goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter

import torch
import torch.distributed as dist
from torch import Tensor, nn

from galvatron.runtime.communication import phase
from galvatron.runtime.stage import Stage

_BUCKET_BYTES = 32 << 20


@dataclass
class _Bucket:
    """Gradients that are reduced together: `flat` holds them, `views` are the parameters' slices of it.

    `missing` counts the accumulations that the running step still has to make, `work` is its reduction in flight.
    """

    groups: tuple[dist.ProcessGroup, ...]
    parameters: tuple[nn.Parameter, ...]
    flat: Tensor
    views: tuple[Tensor, ...]
    missing: int = 0
    work: dist.Work | None = None


class GradientSync:
    """The gradients of one stage on one rank.

    Args:
        stage: with real parameters.
        ties: for every parameter that lives on several stages, the group of its copies of this rank's slice.
        microbatches: how often a step adds to each gradient.
    """

    def __init__(self, stage: Stage, ties: Mapping[str, dist.ProcessGroup], microbatches: int) -> None:
        self._microbatches = microbatches
        self._local: list[nn.Parameter] = []
        members: dict[tuple[tuple[dist.ProcessGroup, ...], torch.dtype], list[nn.Parameter]] = {}
        # The backward meets the last layers first, so their buckets come first; the stages of a tie have no order in
        # common but that of the names.
        named = list(stage.named_parameters())
        untied = [(name, parameter) for name, parameter in reversed(named) if name not in ties]
        for name, parameter in untied + [
            (name, parameter) for name, parameter in sorted(named, key=itemgetter(0)) if name in ties
        ]:
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
        self._started = 0
        for bucket in self._buckets:
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                parameter.register_post_accumulate_grad_hook(self._after_accumulation(bucket, view))

    def start(self) -> None:
        """Forget the last step's gradients."""
        for parameter in self._local:
            parameter.grad = None
        self._started = 0
        for bucket in self._buckets:
            bucket.missing = self._microbatches * len(bucket.parameters)
            for parameter in bucket.parameters:
                parameter.grad = None

    def reduce(self) -> None:
        """Sum the accumulated gradients over their groups: start what the backward has not, and wait for all."""
        for bucket in self._buckets[self._started :]:
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                if parameter.grad is None:  # nothing in the batch reached it
                    parameter.grad = view.zero_()
        self._start_up_to(len(self._buckets))
        for bucket in self._buckets:
            assert bucket.work is not None
            bucket.work.wait()
            bucket.work = None
        for hop in range(1, max((len(bucket.groups) for bucket in self._buckets), default=0)):
            with phase("gradients"):
                works = [b.groups[hop].allreduce(b.flat) for b in self._buckets if hop < len(b.groups)]
            for work in works:
                work.wait()

    def _after_accumulation(self, bucket: _Bucket, view: Tensor) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if parameter.grad is not view:
                # The step's first gradient is copied into the bucket: less traffic than adding it to zeros.
                assert parameter.grad is not None
                view.copy_(parameter.grad)
                parameter.grad = view
            bucket.missing -= 1
            if bucket.missing == 0:
                ready = self._started
                while ready < len(self._buckets) and self._buckets[ready].missing == 0:
                    ready += 1
                self._start_up_to(ready)

        return hook

    def _start_up_to(self, count: int) -> None:
        """Reductions start in the order of the buckets, so that all ranks of a group start the same ones."""
        with phase("gradients"):
            for bucket in self._buckets[self._started : count]:
                bucket.work = bucket.groups[0].allreduce(bucket.flat)
        self._started = max(self._started, count)


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
