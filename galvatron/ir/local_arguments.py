"""Arguments of an op on slices: sizes that follow from its operands and results are those of the slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import sympy

from galvatron.ir.graph import Arg, Op, Value
from galvatron.ir.ops.table import operator_of, takes_size
from galvatron.ir.types import Dim, exact_quotient


def with_local_arguments(op: Op, operands: Sequence[Value], size: Callable[[Dim], Dim]) -> Op:
    """An op with local operands and results, whose size arguments are made local too.

    Args:
        size: what a size that depends on the batch is of a micro-batch.
    """
    return localized_arguments(_with_local_times(op, operands), size)


def localized_arguments(op: Op, size: Callable[[Dim], Dim]) -> Op:
    """An op with local results whose size arguments are made local too."""
    operator = operator_of(op)
    if operator.size:
        op = op.changed(**{operator.size: op.result.type.shape})
    elif operator.parts:
        op = op.changed(**{operator.parts: _local_parts(op, operator.parts)})
    elif operator.factors:
        op = op.changed(**{operator.factors: _local_factors(op, operator.factors)})
    elif any(map(_is_symbolic, op.args)):
        op = replace(op, args=tuple(_sizes(a, size) if takes_size(op, i) else a for i, a in enumerate(op.args)))
    if any(_is_symbolic(a) for _, a in op.kwargs):
        op = replace(op, kwargs=tuple((k, _sizes(a, size) if takes_size(op, k) else a) for k, a in op.kwargs))
    return op


def _with_local_times(op: Op, operands: Sequence[Value]) -> Op:
    """An op with local operands and results; one that repeats does so as often as these say, where that depends on the
    batch."""
    parameter = operator_of(op).times
    if not parameter or len(operands) != 1 or not _is_symbolic(op[parameter]):
        return op
    before, after = operands[0].type, op.result.type
    if isinstance(op[parameter], tuple):
        missing = len(after.shape) - len(before.shape)
        sizes = (1,) * missing + before.shape
        times: Arg = tuple(exact_quotient(a, b) for a, b in zip(after.shape, sizes, strict=True))
    else:
        times = exact_quotient(after.numel, before.numel)
    return op.changed(**{parameter: times})


def _is_symbolic(arg: Arg) -> bool:
    return any(map(_is_symbolic, arg)) if isinstance(arg, tuple) else isinstance(arg, sympy.Expr)


def _local_parts(op: Op, parameter: str) -> Arg:
    """The sizes along `dim` of the parts of the operand, one where all are alike."""
    dim = op["dim"]
    assert isinstance(dim, int)
    sizes = tuple(v.type.shape[dim] for v in op.results)
    return sizes if isinstance(op[parameter], tuple) else sizes[0]


def _local_factors(op: Op, parameter: str) -> Arg:
    """The sizes of the dimensions of the result that `dim` of the operand becomes."""
    dim, factors = op["dim"], op[parameter]
    assert isinstance(dim, int) and isinstance(factors, tuple)
    return op.result.type.shape[dim : dim + len(factors)]


def _sizes(arg: Arg, size: Callable[[Dim], Dim]) -> Arg:
    if isinstance(arg, sympy.Expr):
        return size(arg)
    return tuple(_sizes(a, size) for a in arg) if isinstance(arg, tuple) else arg
