"""Tensors made of numbers."""

from __future__ import annotations

from functools import partial

from galvatron.ir.ops import shapes
from galvatron.ir.ops.call import Call, whole
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.operator import Operator, alike


def created(call: Call) -> OpDims:
    """A tensor of one repeated number: each rank makes its part of any dim. Operands only lend their dtype, but those
    of samples are made beside samples."""
    (shape,) = call.results
    result = tuple((f"d{i}",) if s != 1 else () for i, s in enumerate(shape))
    operands = tuple(
        tuple(result[i] if i < len(shape) and s == shape[i] and not isinstance(s, int) else () for i, s in enumerate(o))
        for o in call.operand_shapes()
    )
    return OpDims(operands, (result,), {f"d{i}": s for i, s in enumerate(shape) if s != 1})


_filled = partial(Operator, created, shapes=shapes.filled, dtype="named", size="size")
_like = partial(Operator, "b* -> b*", shapes=shapes.like_first, dtype="same")

OPERATORS: dict[str, Operator] = {
    "full": _filled(written="torch.full(size, fill_value, dtype=, device=)"),
    "zeros": _filled(written="torch.zeros(size, dtype=, device=)"),
    "ones": _filled(written="torch.ones(size, dtype=, device=)"),
    "empty": _filled(allocates=True),
    "new_zeros": Operator(created, written="self.new_zeros(size, dtype=)", size="size"),
    "new_ones": Operator(created, written="self.new_ones(size, dtype=)", size="size"),
    "new_full": Operator(created, written="self.new_full(size, fill_value, dtype=)", size="size"),
    "new_empty": Operator(created, allocates=True, size="size"),
    "empty_like": _like(allocates=True),
    "full_like": _like(written="torch.full_like(self, fill_value, dtype=, memory_format=)"),
    "zeros_like": _like(written="torch.zeros_like(self, dtype=, memory_format=)"),
    "ones_like": _like(written="torch.ones_like(self, dtype=, memory_format=)"),
    "arange": Operator(
        whole,
        shapes=shapes.counted_up,
        dtype="counted",
        written={
            "default": "torch.arange(end, dtype=, device=)",
            "start": "torch.arange(start, end, dtype=, device=)",
            "start_step": "torch.arange(start, end, step, dtype=, device=)",
        },
        counts=True,
    ),
    "scalar_tensor": Operator(whole, written="torch.scalar_tensor(s, dtype=, device=)"),
    "lift_fresh_copy": Operator(shapes=shapes.like_first),
    **alike("empty_permuted empty_strided new_empty_strided", Operator(allocates=True)),
    "range": Operator(counts=True),
}
