"""Random calls of operators, right ones and wrong ones, and what torch does with them on tensors of zeros."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch

from galvatron.ir.graph import Arg, Const, Op, Ref
from galvatron.ir.interpreter import empty_like_type, evaluated, torch_op
from galvatron.ir.ops.schemas import REQUIRED, Parameter, operators, schema_of
from galvatron.ir.ops.table import of_target
from galvatron.ir.types import BATCH, TORCH_DTYPE_NAMES, Dim, TensorType
from tests.ir.programs import op, value

SAMPLES = 53
"""A size that the batch alone has, so that no other, nor a sum of some, equals it by chance."""

_SIZES: tuple[Dim, ...] = (1, 2, 4, 8, BATCH, 3, 0)
_DTYPES = ["f32"] * 6 + ["bf16", "i64", "bool", "f64", "i32", "u8"]
_NOT_DRAWN = ("MemoryFormat", "Layout", "Device", "Generator")
_WORDS = ("none", "tanh", "mean", "constant", "reflect", "floor", "trunc")
_IR_DTYPES = {getattr(torch, name): dtype for dtype, name in TORCH_DTYPE_NAMES.items()}

Types = dict[str, TensorType]


def said() -> list[str]:
    """The operators of whose results the table says something."""
    return [f"aten.{short}" for short in operators() if of_target(f"aten.{short}").shapes]


class _Caller:
    """A call that is being made: most of its tensors are like the first, and most of its numbers small."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.types: Types = {}

    def tensor(self) -> Ref:
        draw, name = self.draw, f"t{len(self.types)}"
        rank = draw.choice((0, 1, 2, 3, 3, 4, 4))
        dtype, shape = draw.choice(_DTYPES), tuple(draw.choices(_SIZES, (4, 4, 4, 4, 4, 1, 0.3), k=rank))
        first = next(iter(self.types.values()), None)
        if first and draw.random() < 0.7:
            dtype = first.dtype if draw.random() < 0.75 else dtype
            shape = first.shape if draw.random() < 0.7 else first.shape[draw.randint(0, len(first.shape)) :]
            shape = shape if draw.random() < 0.8 else tuple(1 if draw.random() < 0.4 else size for size in shape)
            shape = shape if draw.random() < 0.85 else shape[::-1]
        self.types[name] = TensorType(dtype, shape)
        return Ref(name)

    def size(self) -> Dim:
        first = next(iter(self.types.values()), None)
        if first and first.shape and self.draw.random() < 0.3:
            return self.draw.choice(first.shape)
        return self.draw.randint(-3, 4) if self.draw.random() < 0.8 else self.draw.choice((0, 1, 8, 16, BATCH))

    def sizes(self) -> tuple[Dim, ...]:
        first = next(iter(self.types.values()), None)
        if first and self.draw.random() < 0.4:
            return first.shape[self.draw.randint(0, len(first.shape)) :]
        return tuple(self.size() for _ in range(self.draw.randint(0, 4)))

    def argument(self, parameter: Parameter) -> Arg:
        listed, draw = parameter.length is not None, self.draw
        match parameter.kind:
            case "Tensor":
                if listed:
                    return tuple(self.tensor() for _ in range(draw.randint(1, 3)))
                return None if parameter.optional and draw.random() < 0.4 else self.tensor()
            case "int" | "SymInt":
                return self.sizes() if listed else self.size()
            case "Scalar" | "float":
                return draw.choice((2, 2.0, True, -1, 0) if parameter.kind == "Scalar" else (0.5, 1.5, -1.0, 1.0, 0.0))
            case "bool":
                return draw.random() < 0.5
            case "ScalarType":
                return Const("dtype", draw.choice(_DTYPES))
            case "str":
                return draw.choice(_WORDS)
        raise LookupError(f"no {parameter.kind} is drawn")


def called(target: str, draw: random.Random) -> tuple[Op, Types]:
    """A random call of an operator, and the types of its operands.

    Raises:
        LookupError: it needs an argument of a kind that is not drawn.
    """
    caller, args, named = _Caller(draw), [], {}
    in_order = True
    for parameter in schema_of(target).parameters:
        drawn = parameter.kind not in _NOT_DRAWN and parameter.name != "pin_memory"
        if parameter.default is not REQUIRED and (not drawn or draw.random() < 0.6):
            in_order = False
        elif in_order and not parameter.keyword_only:
            args.append(caller.argument(parameter))
        else:
            named[parameter.name] = caller.argument(parameter)
    return op(target, tuple(args), value("y", "f32"), **named), caller.types


def calls(target: str, draw: random.Random, count: int) -> Iterator[tuple[Op, Types]]:
    """Some calls of an operator, none if it cannot be called here."""
    for _ in range(count):
        try:
            yield called(target, draw)
        except LookupError:
            return


def given(made: Op, types: Types) -> tuple[TensorType, ...] | str | None:
    """The types of what torch gives for a call, or why it refuses it; None if just the CPU has no kernel for it."""
    values = {name: empty_like_type(type_, SAMPLES).zero_() for name, type_ in types.items()}
    try:
        args, named = evaluated(made, values, SAMPLES)
        out = torch_op(made.target)(*args, **named)
    except Exception as error:  # whatever torch raises
        return None if "not implemented for" in str(error) else str(error) or type(error).__name__
    return tuple(
        TensorType(_IR_DTYPES[t.dtype], tuple(t.shape)) for t in (out if isinstance(out, tuple | list) else (out,))
    )
