"""What torch's kernels make of tensors without memory, where its own description of them says less than they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


@contextmanager
def described() -> Iterator[None]:
    """Inside the `with` block operators take fake tensors as they take others:

    - a product of groups of rows, which torch describes for bf16 alone, takes other types that its kernel takes,
    - the loss of an alignment has a shape that does not depend on values: what does is kept for its backward, and is
      as large here as it can be.
    """
    from torch._subclasses.fake_impls import op_implementations_dict

    from galvatron.ir.interpreter import torch_op

    with mock.patch.dict(op_implementations_dict, {torch_op(target): how for target, how in DESCRIBED.items()}):
        yield


def _product_of_groups(mode: Any, function: Any, x: Any, y: Any, *args: Any, **kwargs: Any) -> Any:
    import torch

    if x.dtype is not y.dtype or x.dtype not in (torch.float16, torch.float32):
        return NotImplemented
    with mode:
        return function(x.bfloat16(), y.bfloat16(), *args, **kwargs).to(kwargs.get("out_dtype") or x.dtype)


def _alignment(mode: Any, _: Any, log_probs: Any, targets: Any, *args: Any, **kwargs: Any) -> Any:
    steps, *samples, _ = log_probs.shape
    with mode:
        return log_probs.new_empty(samples), log_probs.new_empty((*samples, steps, 2 * targets.shape[-1] + 1))


DESCRIBED = {"aten._grouped_mm.default": _product_of_groups, "aten._ctc_loss.Tensor": _alignment}
"""The operators of which that is so."""
