"""Calls of functions with a backward of their own: their dimensions in the samples of the caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sympy

from galvatron.ir.graph import Function
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.types import BATCH, TensorType, exact_quotient, simplify_dim


def samples_of(function: Function, operands: Sequence[TensorType]) -> sympy.Expr:
    """What the batch size of a function stands for where it is called with operands of these types."""
    for given, declared in zip(operands, function.forward.inputs, strict=False):
        for size, counted in zip(given.shape, declared.type.shape, strict=False):
            inner = exact_quotient(counted, BATCH) if isinstance(counted, sympy.Expr) else None
            if inner is not None and (found := exact_quotient(size, inner)) is not None:
                return sympy.sympify(found)
    return BATCH


def in_samples(type_: TensorType, samples: sympy.Expr) -> TensorType:
    """A type of a function in which the batch size stands for so many samples."""
    return type_.with_shape(tuple(d.subs(BATCH, samples) if isinstance(d, sympy.Expr) else d for d in type_.shape))


def function_dims(function: Function, operands: Sequence[TensorType]) -> OpDims | None:
    """The named dimensions of a function that is called with operands of these types; None where nothing is known."""
    if function.dims is None:
        return None
    samples = samples_of(function, operands)
    sizes = {
        name: simplify_dim(size.subs(BATCH, samples)) if isinstance(size, sympy.Expr) else size
        for name, size in function.dims.sizes.items()
    }
    return replace(function.dims, sizes=sizes)
