"""What an op gives, found by running it on tensors without memory, for all that the table of shapes does not say."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import sympy

from galvatron.errors import GalvatronError
from galvatron.ir.fakes import DESCRIBED, described
from galvatron.ir.graph import Arg, Op
from galvatron.ir.ops.schemas import schema_of
from galvatron.ir.ops.sizes import ShapeError
from galvatron.ir.types import TensorType, evaluate, lengths_in, simplify_dim
from galvatron.ir.verify.shapes import expected_types

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

BATCHES = (720720, 1441440)
"""Batch sizes at which ops are run: divisible by every number up to 16, so that shares of the batch are whole."""

_SHOWN = 5
"""Types that a message shows of those that an op gives."""

_TOO_LARGE = ("overflow", "too big to convert")
"""What torch says of sizes beyond its own numbers, at batch sizes that are larger than any that is meant."""


def computed_problem(op: Op, types: Mapping[str, TensorType], batches: tuple[int, int] = BATCHES) -> str:
    """What is wrong with the results of an ATen op, where the table of shapes does not say what they must be: torch
    gives others, or does not take the operands and arguments. Empty if nothing is, or only a real run would tell.

    Args:
        batches: at which the op is run; sizes that are not whole at others than `BATCHES` say nothing.
    """
    try:
        if expected_types(op, types) is not None:
            return ""
    except ShapeError as error:
        return str(error)
    return _problem(op, types, batches)


def computed_types(op: Op, types: Mapping[str, TensorType], batch: int) -> tuple[TensorType, ...] | str | None:
    """The types of an ATen op's results at a batch size, or why torch refuses; None where it cannot tell."""
    return _computed(_anonymous(op), tuple(types[name] for name in op.operands), batch)


def _problem(op: Op, types: Mapping[str, TensorType], batches: tuple[int, int]) -> str:
    """What is wrong with the types that the op declares."""
    written, known = op, types
    for extreme, batch in enumerate(batches):
        op, types = _at_lengths(written, known, extreme)
        declared = tuple(v.type for v in op.results)
        try:
            count = _pieces(op, types, batch)
            if count is not None and count != len(declared):
                return f"for a batch of {batch} it gives {count} pieces, not {len(declared)}"
            given = computed_types(op, types, batch)
            wanted = tuple(TensorType(t.dtype, tuple(evaluate(dim, batch) for dim in t.shape)) for t in declared)
        except GalvatronError as error:
            return str(error) if batches == BATCHES else ""
        if isinstance(given, str):
            return given
        if given is not None and given != wanted:
            return f"for a batch of {batch} it gives {_told(given)} and not {_told(wanted)}"
    return ""


def _at_lengths(op: Op, types: Mapping[str, TensorType], extreme: int) -> tuple[Op, dict[str, TensorType]]:
    """An op and its operands at the shortest lengths, or at the longest."""

    def at(arg: Arg) -> Arg:
        if isinstance(arg, tuple):
            return tuple(map(at, arg))
        values = [(one, one.extremes[extreme]) for one in lengths_in(arg)]
        return simplify_dim(arg.subs(values)) if isinstance(arg, sympy.Expr) and values else arg

    def typed(type_: TensorType) -> TensorType:
        return TensorType(type_.dtype, tuple(map(at, type_.shape)))  # type: ignore[arg-type]  # sizes of sizes

    read = {name: typed(types[name]) for name in op.operands}
    results = tuple(replace(value, type=typed(value.type)) for value in op.results)
    args, kwargs = tuple(map(at, op.args)), tuple((name, at(arg)) for name, arg in op.kwargs)
    return replace(op, args=args, kwargs=kwargs, results=results), read


def _told(types: tuple[TensorType, ...]) -> str:
    more = f", … ({len(types)} in all)" if len(types) > _SHOWN else ""
    return ", ".join(map(str, types[:_SHOWN])) + more


def _pieces(op: Op, types: Mapping[str, TensorType], batch: int) -> int | None:
    """How many results an op gives whose arguments say it, of one that gives a list: known before it is run, since
    there may be as many as a size or a number can be. None for any other."""
    if schema_of(op.target).results is not None:
        return None
    counts = {name: _number(arg, batch) for name, arg in op.arguments.items() if name not in ("self", "dim")}
    if "sections" in counts:
        return counts["sections"]
    for name, more in (("indices", 1), ("split_sizes", 0)):
        if isinstance(listed := op.arguments.get(name), tuple):
            return len(listed) + more
    if "dim" not in op.arguments or not counts.keys() <= {"chunks", "split_size"}:
        return None
    shape, dim = types[op.operands[0]].shape, op["dim"]
    if not isinstance(dim, int) or not -len(shape) <= dim < len(shape):
        return None
    size = evaluate(shape[dim], batch)
    if not counts:
        return size
    ((name, number),) = counts.items()
    if number is None or number <= 0:
        return None  # what torch will refuse, or a whole that is empty
    if size == 0:
        return number if name == "chunks" else 1
    part = -(-size // number) if name == "chunks" else number
    return -(-size // part)


def _number(arg: Arg, batch: int) -> int | None:
    """An argument that is a whole number, at a batch size."""
    if isinstance(arg, sympy.Expr):
        return evaluate(arg, batch)
    return arg if type(arg) is int else None


def _anonymous(op: Op) -> Op:
    """The op with its operands called by their positions, and no results."""
    positions = iter(range(len(op.operands)))
    return replace(op.map_refs(lambda _: str(next(positions))), results=())


@lru_cache(maxsize=1 << 14)
def _computed(op: Op, operands: tuple[TensorType, ...], batch: int) -> tuple[TensorType, ...] | str | None:
    """See `computed_types`: equal ops of all graphs are run once."""
    found = _on_meta(op, operands, batch)
    return _faked(op, operands, batch) if found is None else found


def _on_meta(op: Op, operands: tuple[TensorType, ...], batch: int) -> tuple[TensorType, ...] | None:
    """What an op gives on tensors of torch's own device without memory: sooner told than by fake tensors, which need
    much of torch that is not loaded yet. None where only these tell, or say why not."""
    if op.target in DESCRIBED:
        return None
    try:
        return _run(op, operands, batch, "meta")
    except Exception:  # of which fake tensors know better what to say
        return None


def _faked(op: Op, operands: tuple[TensorType, ...], batch: int) -> tuple[TensorType, ...] | str | None:
    """What an op gives on fake tensors."""
    from torch._subclasses import fake_tensor

    unknown = (
        NotImplementedError,
        fake_tensor.UnsupportedOperatorException,
        fake_tensor.DataDependentOutputException,
        fake_tensor.DynamicOutputShapeException,
    )
    with _mode(), described(), silence():
        try:
            return _run(op, operands, batch, "cpu")
        except GalvatronError as error:
            return str(error)
        except unknown:
            return None
        except Exception as error:  # whatever torch raises on arguments that it does not take
            if any(word in str(error).lower() for word in _TOO_LARGE):
                return None
            return str(error).strip().partition("\n")[0] or type(error).__name__


def _run(op: Op, operands: tuple[TensorType, ...], batch: int, device: str) -> tuple[TensorType, ...]:
    """The types of what an op gives on uninitialised tensors."""
    import torch

    from galvatron.ir.interpreter import empty_like_type, evaluated, torch_op

    with torch.no_grad():
        values = {str(i): empty_like_type(type_, batch, device) for i, type_ in enumerate(operands)}
        args, kwargs = evaluated(op, values, batch)
        where = {} if values else {"device": device}
        out = torch_op(op.target)(*args, **kwargs, **where)
        return tuple(_type_of(t) for t in (out if isinstance(out, (tuple, list)) else (out,)))


@contextmanager
def silence() -> Iterator[None]:
    """Without the log of torch, which shows where in it a refusal comes from."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = disabled


@cache
def _mode() -> FakeTensorMode:
    from torch._subclasses.fake_tensor import FakeTensorMode

    # Kernels without a description of their results are not run: that takes as much memory as the results do.
    return FakeTensorMode(allow_fallback_kernels=False)


def _type_of(tensor: Any) -> TensorType:
    from galvatron.ir.interpreter import DTYPE_OF

    return TensorType(DTYPE_OF.get(tensor.dtype, str(tensor.dtype)), tuple(map(int, tensor.shape)))
