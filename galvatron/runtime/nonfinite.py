"""Finds the layer in which a step first computes a number that is not finite.

Watched is what each layer gives to others: its results in the forward; in the backward the gradients that it gives to
its inputs and to its parameters, one layer's share at a time. The verdict is on the device, read once per step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from galvatron.errors import NonFiniteError
from galvatron.runtime import comm
from galvatron.runtime.comm import Place
from galvatron.runtime.mesh import World
from galvatron.runtime.stage import Layer, Stage

_Order = tuple[int, int, int, int]
"""Micro-batch, forward (0) or backward (1), and the place of the stage and of the call in it in that direction."""

_BITS = (16, 1, 10, 16)
_RANK_BITS = 20
_NONE = (1 << 63) - 1


@dataclass(frozen=True)
class _Check:
    order: _Order
    words: str
    values: int
    not_finite: Tensor


class NonFiniteDetector:
    """Watches all layers of a rank from now on.

    Args:
        stages: of this rank.
        count: stages of the whole job.
        backward: whether gradients are watched; under loss scaling they may overflow.
    """

    def __init__(self, stages: Sequence[Stage], count: int, world: World, *, backward: bool = True) -> None:
        self._world = world
        self._count = count
        self._backward = backward
        self._checks: list[_Check] = []
        self._calls: dict[tuple[int, int], int] = defaultdict(int)
        for stage in stages:
            for layer in stage.layers.values():
                layer._call = self._watched(layer, layer._call)

    def start(self) -> None:
        """A step begins."""
        self._checks.clear()
        self._calls.clear()

    def finish(self) -> None:
        """The last backward has ended. Collective.

        Raises:
            NonFiniteError: some rank has found something; the same error on every rank.
        """
        found = self._first()
        key = _NONE if found is None else _key(found.order, self._world.rank)
        first = torch.tensor(key, device=self._world.device)
        if self._world.size > 1:
            comm.all_reduce(first, comm.all_ranks(), "min", phase="finite values").wait()
        if (least := int(first)) == _NONE:
            return
        rank = least & ((1 << _RANK_BITS) - 1)
        message = f"{found.words}, on rank {rank}; nothing was updated" if found is not None else ""
        if self._world.size > 1:
            message = comm.broadcast_object(message, comm.all_ranks(), rank, phase="finite values")
        raise NonFiniteError(message)

    def _first(self) -> _Check | None:
        """The first of this rank's checks that failed."""
        if not self._checks:
            return None
        counts = torch.stack([check.not_finite for check in self._checks]).tolist()
        failed = [(check, count) for check, count in zip(self._checks, counts, strict=True) if count]
        if not failed:
            return None
        check, count = min(failed, key=lambda one: one[0].order)
        words = check.words.replace("is not finite", f"is not finite in {count} of {check.values} values")
        return _Check(check.order, words, check.values, check.not_finite)

    def _watched(self, layer: Layer, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(place: Place, *args: Any, **kwargs: Any) -> Any:
            stage, _, microbatch = place
            number = self._calls[stage, microbatch]
            self._calls[stage, microbatch] += 1
            if self._backward and torch.is_grad_enabled():
                order = (microbatch, 1, self._count - 1 - stage, (1 << _BITS[3]) - 1 - number)
                inputs = len(args) - len(layer.names)
                names = [f"input {i - len(layer.axes)}" for i in range(inputs)] + list(layer.names)
                args = tuple(
                    self._with_gradient_watched(a, order, _words(f"the gradient of {name}", place, "backward"))
                    for a, name in zip(args, names, strict=True)
                )
            results = call(place, *args, **kwargs)
            order = (microbatch, 0, stage, number)
            for result in results if isinstance(results, tuple) else (results,):
                self._check(result, order, _words("the result", place, "forward"))
            return results

        return watched

    def _with_gradient_watched(self, value: Any, order: _Order, words: str) -> Any:
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        # An alias, since the gradient of the value itself has what other layers give to it too.
        alias = value.view_as(value)
        alias.register_hook(lambda gradient: self._check(gradient, order, words))
        return alias

    def _check(self, value: Any, order: _Order, words: str) -> None:
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            return
        with torch.no_grad():
            # Infinities among constants are meant: a mask has them.
            wrong = value.isnan() if not value.requires_grad and order[1] == 0 else value.isfinite().logical_not()
            self._checks.append(_Check(order, words, value.numel(), wrong.sum()))


def _words(what: str, place: Place, direction: str) -> str:
    stage, layer, microbatch = place
    return f"{what} of layer {layer} is not finite in the {direction} of micro-batch {microbatch} on stage {stage}"


def _key(order: _Order, rank: int) -> int:
    """A number that orders as (order, rank) does."""
    key = 0
    for part, bits in zip((*order, rank), (*_BITS, _RANK_BITS), strict=True):
        key = key << bits | min(part, (1 << bits) - 1)
    return key
