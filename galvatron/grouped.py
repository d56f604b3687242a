"""A linear map whose matrix each row chooses, which torch has no operator for: what mixtures of experts are made of.

Rows are sorted by what they choose, so that each matrix is multiplied once with all that chose it. On CUDA that is one
kernel where torch has it for the type, elsewhere a product for each matrix that was chosen at all. Each row of a result
is written once, and rows are summed in their order, so that equal calls give equal bits.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ALIGNED_BYTES = 16
"""What rows in memory are multiples of, for torch's kernel."""


@torch.library.custom_op("galvatron::grouped_linear", mutates_args=())
def grouped_linear(rows: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Row `i` is `rows[i] @ weight[ids[i]].T`; zero where there is no such matrix.

    Args:
        rows: [rows, in].
        weight: [matrices, out, in].
        ids: [rows], whole numbers. One that is none of the matrices chooses nothing.

    Returns:
        [rows, out].
    """
    order, ends = _sorted(ids, len(weight))
    if _has_kernel(rows, weight):
        result = F.grouped_mm(rows[order], weight.transpose(1, 2), offs=ends)
        chosen_none = torch.arange(len(rows), device=rows.device) >= ends[-1]
        result.masked_fill_(chosen_none.unsqueeze(1), 0)  # the kernel writes nothing there
        return torch.empty_like(result).index_copy_(0, order, result)
    result = rows.new_zeros(len(rows), weight.size(1))
    for matrix, chosen in _groups(order, ends):
        result.index_copy_(0, chosen, rows[chosen] @ weight[matrix].t())
    return result


@torch.library.custom_op("galvatron::grouped_outer", mutates_args=())
def grouped_outer(left: Tensor, right: Tensor, ids: Tensor, matrices: int) -> Tensor:
    """Matrix `j` is the sum of `outer(left[i], right[i])` over the rows with `ids[i] == j`: the gradient of the weight
    of a `grouped_linear`.

    Args:
        left: [rows, out].
        right: [rows, in].

    Returns:
        [matrices, out, in].
    """
    order, ends = _sorted(ids, matrices)
    if _has_kernel(left, right):
        result = F.grouped_mm(left[order].t(), right[order], offs=ends)
        empty = ends.diff(prepend=ends.new_zeros(1)) == 0
        return result.masked_fill_(empty[:, None, None], 0)
    result = right.new_zeros(matrices, left.size(1), right.size(1))
    for matrix, chosen in _groups(order, ends):
        torch.mm(left[chosen].t(), right[chosen], out=result[matrix])
    return result


@grouped_linear.register_fake
def _(rows: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    fits = rows.dim() == 2 and weight.dim() == 3 and ids.dim() == 1 and rows.size(0) == ids.size(0)
    torch._check(fits and rows.size(1) == weight.size(2), lambda: "grouped_linear takes rows, matrices and ids")
    torch._check(rows.dtype == weight.dtype, lambda: "grouped_linear takes rows and matrices of one type")
    torch._check(ids.dtype in (torch.int32, torch.int64), lambda: "grouped_linear takes ids of 32 or 64 bits")
    return rows.new_empty(rows.size(0), weight.size(1))


@grouped_outer.register_fake
def _(left: Tensor, right: Tensor, ids: Tensor, matrices: int) -> Tensor:
    return right.new_empty(matrices, left.size(1), right.size(1))


def product_of_groups(rows: Tensor, weight: Tensor, offs: Tensor, bias: None = None, out_dtype: None = None) -> Tensor:
    """`torch._grouped_mm` for types that it does not take.

    Args:
        rows: [rows, in], those of each matrix beside each other.
        weight: [matrices, in, out].
        offs: [matrices], where the rows of each end.
    """
    assert rows.dim() == 2 and weight.dim() == 3 and bias is None and out_dtype is None
    places = torch.arange(len(rows), device=offs.device, dtype=offs.dtype)
    return grouped_linear(rows, weight.transpose(1, 2), torch.searchsorted(offs, places, right=True))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    rows, weight, ids = ctx.saved_tensors
    of_rows, of_weight, _ = ctx.needs_input_grad
    return (
        grouped_linear(gradient, weight.transpose(1, 2), ids) if of_rows else None,
        grouped_outer(gradient, rows, ids, len(weight)) if of_weight else None,
        None,
    )


grouped_linear.register_autograd(_gradients, setup_context=_save)


def _sorted(ids: Tensor, matrices: int) -> tuple[Tensor, Tensor]:
    """The order of rows by matrix, those that choose none last, and where in it the rows of each matrix end."""
    chosen, order = ids.where((ids >= 0) & (ids < matrices), matrices).sort(stable=True)
    each = torch.arange(matrices, device=ids.device, dtype=chosen.dtype)
    return order, torch.searchsorted(chosen, each, right=True, out_int32=True)


def _groups(order: Tensor, ends: Tensor) -> list[tuple[int, Tensor]]:
    """The matrices that some row chooses, each with its rows in their order."""
    stretches = pairwise([0, *ends.tolist()])
    return [(matrix, order[start:end]) for matrix, (start, end) in enumerate(stretches) if start < end]


def _has_kernel(*operands: Tensor) -> bool:
    """Whether torch multiplies groups of rows of these in one kernel."""
    first = operands[0]
    if not first.is_cuda or first.dtype != torch.bfloat16 or not hasattr(F, "grouped_mm"):
        return False
    aligned = all(size * first.element_size() % _ALIGNED_BYTES == 0 for x in operands for size in x.shape[1:])
    return aligned and torch.cuda.get_device_capability(first.device) >= (8, 0)
