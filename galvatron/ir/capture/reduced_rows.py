"""Losses and means of the rows of a selection: what is not selected is ignored, or counts as zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from galvatron.ir.capture.all_rows import AllRows
from galvatron.ir.capture.rows import Selected, of_selection, unlike_rows
from galvatron.ir.graph import Op, Ref
from galvatron.ir.types import TensorType

_NONE, _MEAN = 0, 1
"""ATen's values of `reduction`."""

_OF_PAIRS = frozenset(
    ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "binary_cross_entropy",
     "binary_cross_entropy_with_logits", "kl_div")
)  # fmt: skip
"""Losses with a term for each element of two operands of one shape."""

_OF_CLASSES = frozenset(("cross_entropy_loss", "nll_loss_nd", "nll_loss"))


def _alike(rows: AllRows, op: Op) -> bool:
    """`broadcast_tensors` of tensors of one shape."""
    types = {rows.types[rows.current(name)].shape for name in op.operands}
    if len(types) != 1:
        raise of_selection(op.source, "size")
    for name, value in zip(op.operands, op.results, strict=True):
        rows.alias(value.name, rows.current(name))
    return True


def _loss_of_classes(rows: AllRows, op: Op) -> bool:
    """Class labels of rows that are not selected are ignored."""
    target = rows.now(op["target"])
    if rows.types[target.name].is_floating:
        return False
    selected = rows.selected(target.name)
    if list(selected) != [0] or rows.selected(rows.now(op["self"]).name) != selected:
        raise unlike_rows(op)
    target = rows.filled(target, selected, op["ignore_index"])
    type_ = op.result.type
    each = op["reduction"] == _NONE
    made = replace(op.result, type=replace(type_, shape=rows.types[target.name].shape)) if each else op.result
    op = replace(rows.renewed(op).changed(target=target), results=(made,))
    rows.put_op(op, selected if each else {})
    return True


def _loss_of_pairs(rows: AllRows, op: Op) -> bool:
    """A loss of each element first, then the sum or the mean of those that are selected."""
    one, other = rows.now(op["self"]), rows.now(op["target"])
    selected = rows.selected(one.name)
    if rows.types[one.name].shape != rows.types[other.name].shape or selected != rows.selected(other.name):
        raise unlike_rows(op)
    each = TensorType(op.result.type.dtype, rows.types[one.name].shape)
    terms = rows.applied(_with_reduction(op, _NONE), each)
    if op["reduction"] == _NONE:
        rows.become(op, terms, selected)
        return True
    _reduce(rows, op, terms, selected, tuple(range(len(each.shape))), op["reduction"] == _MEAN)
    return True


def _mean(rows: AllRows, op: Op) -> bool:
    value = rows.now(op["self"])
    rank = len(rows.types[value.name].shape)
    listed = op.get("dim")
    listed = listed if isinstance(listed, tuple) else () if listed is None else (listed,)
    dims = tuple(int(d) % rank for d in listed) or tuple(range(rank))  # type: ignore[arg-type]  # ints by schema
    selected = rows.selected(value.name)
    if not selected.keys() & set(dims):
        return False
    _reduce(rows, op, value, selected, dims, True)
    return True


def _reduce(rows: AllRows, op: Op, value: Ref, selected: Selected, dims: tuple[int, ...], mean: bool) -> None:
    """The sum, or the mean, of selected rows along some dims as the result of an op."""
    shape, wanted = rows.types[value.name].shape, op.result.type
    inside = {dim: selection for dim, selection in selected.items() if dim in dims}
    keep = len(wanted.shape) == len(shape)
    kept = [dim for dim in range(len(shape)) if dim not in dims]
    left = {(dim if keep else kept.index(dim)): s for dim, s in selected.items() if dim not in dims}
    total = rows.sum(rows.zeroed(value, inside), dims, keep, wanted.dtype)
    if not mean:
        rows.become(op, total, left)
        return
    count = TensorType("i64", tuple(shape[dim] for dim in dims if dim not in inside)).numel
    divisor: Ref | None = None
    for selection in inside.values():
        number = rows.count(selection)
        divisor = number if divisor is None else rows.times(divisor, number)
    assert divisor is not None
    rows.become(op, rows.quotient(total, rows.times(divisor, count), wanted.dtype), left)


def _some(rows: AllRows, op: Op) -> bool:
    return _of_truths(rows, op, False)


def _every(rows: AllRows, op: Op) -> bool:
    return _of_truths(rows, op, True)


def _of_truths(rows: AllRows, op: Op, otherwise: bool) -> bool:
    """`any` or `all` of everything: what is not selected counts as what does not matter."""
    value = rows.now(op["self"])
    if op.overload != "default" or rows.types[value.name].dtype != "bool":
        return False
    rows.put_op(op.changed(self=rows.filled(value, rows.selected(value.name), otherwise)), {})
    return True


def _with_reduction(op: Op, reduction: int) -> Op:
    """A loss with another reduction, which is the default where it is not given."""
    if "reduction" in dict(op.kwargs) or len(op.args) > list(op.arguments).index("reduction"):
        return op.changed(reduction=reduction)
    return replace(op, kwargs=(*op.kwargs, ("reduction", reduction))).by_position()


REDUCED: dict[str, Callable[[AllRows, Op], bool]] = {
    "broadcast_tensors": _alike,
    "mean": _mean,
    "any": _some,
    "all": _every,
    **dict.fromkeys(_OF_CLASSES, _loss_of_classes),
    **dict.fromkeys(_OF_PAIRS, _loss_of_pairs),
}
"""What becomes of an op that reads what is selected and is no function of each row; False where it is one all the
same."""
