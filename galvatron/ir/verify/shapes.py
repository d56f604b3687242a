"""What the results of an op must look like, where the table of operators says it. Other ops are not checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import sympy

from galvatron.ir.graph import Const, Op, Ref
from galvatron.ir.ops.call import Call
from galvatron.ir.ops.notation import Shape
from galvatron.ir.ops.operator import DtypeRule
from galvatron.ir.ops.schemas import is_operator
from galvatron.ir.ops.sizes import ShapeError
from galvatron.ir.ops.table import operator_of
from galvatron.ir.random import without_site
from galvatron.ir.types import TensorType

_REAL = ("f64", "f32", "f16", "bf16")  # the widest first
_WHOLE = ("i64", "i32", "i16", "i8", "u8")


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
    """The element type that every result of an op must have; None where the table does not say, or says nothing of the
    shapes of such a call.

    Raises:
        ShapeError: the operands do not fit together.
    """
    op = without_site(op)
    if not is_operator(op.target):
        return None
    rule = operator_of(op).dtype
    if not rule or (operator_of(op).shapes is not None and expected_shapes(op, types) is None):
        return None
    named = {name: arg.name for name, arg in op.arguments.items() if isinstance(arg, Const) and arg.kind == "dtype"}
    if named:
        return None if rule == "shared" and named.get("dtype") not in _REAL else named.get("dtype")
    return _RULES[rule](op, {types[name].dtype for name in op.operands}, types)


def expected_types(op: Op, types: Mapping[str, TensorType]) -> tuple[TensorType, ...] | None:
    """The types of an op's results, where the table says all of them: then torch takes its operands.

    Raises:
        ShapeError: torch does not.
    """
    shapes, dtype = expected_shapes(op, types), expected_dtype(op, types)
    return None if shapes is None or dtype is None else tuple(TensorType(dtype, shape) for shape in shapes)


def _of_first(op: Op, _dtypes: set[str], types: Mapping[str, TensorType]) -> str | None:
    return types[op.args[0].name].dtype if op.args and isinstance(op.args[0], Ref) else None


def _the_one(dtypes: Collection[str], of: Collection[str]) -> str | None:
    """The element type that there is, if it is one of some."""
    (one,) = dtypes if len(dtypes) == 1 else ("",)
    return one if one in of else None


def _summed(_op: Op, dtypes: set[str], _types: object) -> str | None:
    return "i64" if _the_one(dtypes, ("bool", *_WHOLE)) else _the_one(dtypes, _REAL)


def _promoted(op: Op, dtypes: set[str], types: Mapping[str, TensorType]) -> str | None:
    """The real type among others that are smaller in kind, the widest one of several, of which those without dimensions
    count where no other is real; or the whole one where no number of Python is real."""
    if not dtypes <= {"bool", *_WHOLE, *_REAL}:
        return None
    if real := [types[name] for name in op.operands if types[name].dtype in _REAL]:
        wide = {type_.dtype for type_ in [type_ for type_ in real if type_.shape] or real}
        return "f32" if wide == {"f16", "bf16"} else min(wide, key=_REAL.index)
    return None if _has_reals(op) else _the_one(dtypes - {"bool"}, _WHOLE)


def _has_reals(op: Op) -> bool:
    """Whether a number of Python among the arguments is real."""
    return any(isinstance(a, float) or (isinstance(a, sympy.Expr) and not a.is_integer) for a in op.arguments.values())


_RULES: Mapping[DtypeRule, Callable[[Op, set[str], Mapping[str, TensorType]], str | None]] = {
    "named": lambda _op, _dtypes, _types: None,
    "bool": lambda _op, _dtypes, _types: "bool",
    "same": _of_first,
    "shared": lambda _op, dtypes, _types: _the_one(dtypes, _REAL),
    "bits": lambda op, dtypes, _types: (
        _the_one(dtypes, ("bool", *_WHOLE)) if len(op.operands) == len(op.args) else None
    ),
    "counted": lambda op, _dtypes, _types: None if _has_reals(op) else "i64",
    "summed": _summed,
    "promoted": _promoted,
}
