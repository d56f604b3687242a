"""Collectives that are started where they stand, and waited for later: what is launched in between runs beside them.

    rows = rt.dispatch(x, ep, dim=0, by=ids, size=8, started=True)
    shared = F.linear(x, weight)
    rows = rt.wait(rows, ep)

Autograd runs backwards in the reverse order of their forwards. So the backward of the wait starts the collective of the
gradient, what ran between the two runs backward beside it, and the backward of the start waits for it. All ranks of a
group run one program and so start their collectives in one order, in both directions. What is sent, and what it comes
to, is held here until the wait is over.

A replay of a layer ends with the last tensor that is missing, which may stand between a start and its wait. What is
under way then is waited for all the same (`ending`): a message is not left behind while its tensors are given back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from galvatron.recompute import Complete
from galvatron.runtime.comm import Handle, now


@dataclass(frozen=True)
class UnderWay:
    """A collective that was started, and what its result is made of once it is over."""

    handle: Handle
    result: Callable[[], Tensor]

    def wait(self) -> Tensor:
        """The result."""
        self.handle.wait()
        return self.result()


Map = Callable[[Tensor], Tensor | UnderWay]


def ended(made: Tensor | UnderWay) -> Tensor:
    """What a map makes, waited for if it is under way."""
    return made.wait() if isinstance(made, UnderWay) else made


_BEGUN: set[Started] = set()
"""What forwards and replays have started and not waited for."""


def ending(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which leaves nothing under way where a replay of it ends early."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Complete:
            for started in tuple(_BEGUN):
                started.taken()
            raise

    return call


class Started:
    """What a collective that was started gives instead of a tensor.

    Autograd sees two functions, which are given this object besides: what is under way is no tensor to it yet, so that
    an empty one (`token`) stands between the two, in both directions.
    """

    __slots__ = ("_adjoint", "_place", "_token", "_under_way")

    def __init__(self, adjoint: Map) -> None:
        self._adjoint, self._place = adjoint, now.place
        self._under_way: Tensor | UnderWay | None = None
        self._token: Tensor | None = None

    @staticmethod
    def of(x: Tensor, forward: Map, adjoint: Map) -> Started:
        """Starts a linear map of a tensor."""
        started = Started(adjoint)
        _BEGUN.add(started)
        if x.requires_grad and torch.is_grad_enabled():
            started._token = _Start.apply(x, forward, started)  # type: ignore[assignment]  # untyped in torch
        else:
            started._under_way = forward(x)
        return started

    def wait(self) -> Tensor:
        """The result; to be asked for once."""
        token, self._token = self._token, None
        if token is None:
            return self.taken()
        return _Wait.apply(token, self)  # type: ignore[return-value]  # apply is untyped in torch

    def taken(self) -> Tensor:
        """What is under way, waited for; it is held no longer."""
        under_way, self._under_way = self._under_way, None
        _BEGUN.discard(self)
        assert under_way is not None
        return ended(under_way)

    def begin(self, x: Tensor, forward: Map) -> Tensor:
        """The token for a tensor whose collective is started."""
        self._under_way = forward(x)
        return x.new_empty(0)

    def begin_backward(self, gradient: Tensor) -> Tensor:
        """The same for a gradient."""
        now.place = self._place
        self._under_way = self._adjoint(gradient)
        now.place = None
        return gradient.new_empty(0)

    def taken_backward(self) -> Tensor:
        """The gradient, waited for."""
        now.place = self._place
        gradient = self.taken()
        now.place = None
        return gradient


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Map, started: Started) -> Tensor:
        ctx.started = started
        return started.begin(x, forward)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None, None]:
        return ctx.started.taken_backward(), None, None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, started: Started) -> Tensor:
        ctx.started = started
        return started.taken()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.started.begin_backward(gradients[0]), None
