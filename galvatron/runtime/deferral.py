"""Products with weights whose gradients can wait: what the generated code of a zero-bubble schedule calls.

A backward under `put_off` computes the gradients of inputs, which the stage before waits for. Those of weights, for
which nobody waits, come back as tasks that are run later. Each then enters autograd at its weight, as it would have
anyway: it is accumulated, and the hooks that count and reduce gradients run. `torch.distributed.pipelining` splits a
backward by walking the graph and running part of it twice; its gradients reach no hook, collectives and recomputation
in the graph run twice, and the activations of the whole stage are kept until the second part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tasks = deque[Callable[[], None]]
"""Gradients that are still to be computed, in the order in which the backward met them."""

_tasks: Tasks | None = None


@contextmanager
def put_off() -> Iterator[Tasks]:
    """Let the backward inside leave gradients of weights for later."""
    # Not one per thread: on an accelerator autograd runs the backward in threads of its own.
    global _tasks
    before, _tasks = _tasks, deque()
    try:
        yield _tasks
    finally:
        _tasks = before


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
    leaves = (weight,) if bias is None else (weight, bias)
    # Only leaves can be entered later: the graph behind another tensor has run by then.
    if not (x.requires_grad and torch.is_grad_enabled() and all(t.is_leaf and t.requires_grad for t in leaves)):
        return product(x, weight, bias)
    return _Product.apply(x, leaves, product)  # type: ignore[return-value]  # apply is untyped in torch


class _Product(torch.autograd.Function):
    """Autograd sees no weights here: it would tell the hooks of a weight that waits that it has its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, leaves: tuple[Tensor, ...], product: Product) -> Tensor:
        ctx.save_for_backward(x, leaves[0].detach())
        ctx.leaves = leaves  # what a recomputed layer saves comes back as other tensors
        ctx.transposed = product is F.linear
        return product(x, leaves[0], leaves[1] if len(leaves) > 1 else None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        leaves, transposed = ctx.leaves, ctx.transposed

        def finish() -> None:
            torch.autograd.backward(leaves, _of_leaves(len(leaves) > 1, transposed, x, gradient))

        if _tasks is None:
            finish()
        else:
            _tasks.append(finish)
        return gradient @ (weight if transposed else weight.t()), None, None


def _of_leaves(biased: bool, transposed: bool, x: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """The gradients of weight and bias."""
    rows, of_rows = x.reshape(-1, x.size(-1)), gradient.reshape(-1, gradient.size(-1))
    of_weight = of_rows.t() @ rows if transposed else rows.t() @ of_rows
    return (of_weight, of_rows.sum(0)) if biased else (of_weight,)
