"""Rows that an op treats one by one: whichever others a rank has, it does the same to each."""

from __future__ import annotations

from galvatron.ir.graph import Arg, Op
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.random import is_random


def acts_on_rows(op: Op, dims: OpDims, name: str) -> bool:
    """Whether an op, of whose dimensions one has a name, does to each element of that dimension the same, whichever
    others there are, and is not told how many.

    Each operand and result that has the dimension has it as one of its own, and each result has it.
    """
    tensors = (*dims.operands, *dims.results)
    alone = all(names == (name,) for tensor in tensors for names in tensor if name in names)
    made = all(any(name in names for names in tensor) for tensor in dims.results)
    seen_whole = name in dims.indivisible or name in dims.spmd or is_random(op)
    return alone and made and not seen_whole and not any(map(_is_told, (*op.args, *(arg for _, arg in op.kwargs))))


def _is_told(arg: Arg) -> bool:
    """Whether an argument counts samples."""
    if isinstance(arg, tuple):
        return any(map(_is_told, arg))
    return bool(getattr(arg, "free_symbols", ()))
