"""Products with weights whose gradients can wait: what the generated code of a zero-bubble schedule calls.

A backward under `put_off` computes the gradients of inputs, which the stage before waits for. Those of weights, for
which nobody waits, come back as tasks that are run later. Each then enters autograd at its weight, as it would have
anyway: it is accumulated, and the hooks that count and reduce gradients run. `torch.distributed.pipelining` splits a
backward by walking the graph and running part of it twice; its gradients reach no hook, collectives and recomputation in
the graph run twice, and the activations of the whole stage are kept until the second part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tasks = deque[Callable[[], None]]
"""Gradients that are still to be computed, in the order in which the backward met them."""

_tasks: Tasks | None = None
_at_once: Collection[Tensor] = ()


@contextmanager
def put_off(at_once: Collection[Tensor] = ()) -> Iterator[Tasks]:
    """Let the backward inside leave gradients of weights for later.

    Args:
        at_once: weights whose gradients do not wait: a stage that reads one in several places adds to it once.
    """
    # Not one per thread: on an accelerator autograd runs the backward in threads of its own.
    global _tasks, _at_once
    tasks: Tasks = deque()
    _tasks, _at_once = tasks, at_once
    try:
        yield tasks
    finally:
        _tasks, _at_once = None, ()


def run(tasks: Tasks) -> None:
    """Compute what was put off; what a task needs is dropped when it is done."""
    while tasks:
        tasks.popleft()()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, weight [out, in]."""
    return _product(x, weight, bias, F.linear)


def addmm(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`torch.addmm`: `bias + x @ weight`, x [rows, in], weight [in, out], bias [out]."""
    return _product(x, weight, bias, _times)


Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _times(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    assert bias is not None
    return torch.addmm(bias, x, weight)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, product: Product) -> Tensor:
    # Only leaves can be entered later: the graph behind another tensor has run by then.
    can_wait = torch.is_grad_enabled() and all(t.is_leaf and t.requires_grad for t in (weight, bias) if t is not None)
    return _Product.apply(x, weight, bias, product) if can_wait else product(x, weight, bias)  # type: ignore[return-value]  # apply is untyped in torch


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, product: Product) -> Tensor:
        ctx.save_for_backward(x, weight)
        # What a recomputed layer saves comes back detached.
        ctx.leaves = (weight,) if bias is None else (weight, bias)
        ctx.transposed = product is F.linear
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x = gradient @ (weight if ctx.transposed else weight.t()) if ctx.needs_input_grad[0] else None
        leaves, transposed = ctx.leaves, ctx.transposed
        if _tasks is None or any(leaf is other for leaf in leaves for other in _at_once):
            of_weight, *of_bias = _of_leaves(leaves, transposed, x, gradient)
            return of_x, of_weight, of_bias[0] if of_bias else None, None
        _tasks.append(lambda: torch.autograd.backward(leaves, _of_leaves(leaves, transposed, x, gradient)))
        return of_x, None, None, None


def _of_leaves(leaves: tuple[Tensor, ...], transposed: bool, x: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """The gradients of weight and bias."""
    rows, of_rows = x.reshape(-1, x.size(-1)), gradient.reshape(-1, gradient.size(-1))
    of_weight = of_rows.t() @ rows if transposed else rows.t() @ of_rows
    return (of_weight,) if len(leaves) == 1 else (of_weight, of_rows.sum(0))
