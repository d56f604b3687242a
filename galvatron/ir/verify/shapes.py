"""What the results of an op must look like, where the table of operators says it. Other ops are not checked."""

from __future__ import annotations

from collections.abc import Mapping

from galvatron.ir.graph import Const, Op, Ref
from galvatron.ir.ops.call import Call
from galvatron.ir.ops.notation import Shape
from galvatron.ir.ops.schemas import is_operator
from galvatron.ir.ops.shapes import ShapeError
from galvatron.ir.ops.table import operator_of
from galvatron.ir.random import without_site
from galvatron.ir.types import TensorType

_REAL = ("f64", "f32", "f16", "bf16")


def expected_shapes(op: Op, types: Mapping[str, TensorType]) -> tuple[Shape, ...] | None:
    """The result shapes that an op must have, one per result; None where the table does not say.

    Raises:
        ShapeError: the operands do not fit together.
    """
    op = without_site(op)
    shapes = operator_of(op).shapes
    if shapes is None or not is_operator(op.target):
        return None
    try:
        return shapes(Call(op, types))
    except ShapeError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError):
        return None  # not written the way the table expects: an unusual overload


def expected_dtype(op: Op, types: Mapping[str, TensorType]) -> str | None:
    """The element type that every result of an op must have; None where the table does not say."""
    op = without_site(op)
    if not is_operator(op.target):
        return None
    if isinstance(dtype := op.get("dtype"), Const):
        return dtype.name
    rule = operator_of(op).dtype
    if rule == "same" and op.args and isinstance(op.args[0], Ref):
        return types[op.args[0].name].dtype
    if rule == "shared":
        first, *others = {types[name].dtype for name in op.operands}
        return None if others or first not in _REAL else first
    return "bool" if rule == "bool" else None
