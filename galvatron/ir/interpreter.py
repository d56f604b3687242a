"""Runs an op graph on torch tensors, op by op: the meaning of the IR, used by tests and by cost analysis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import sympy
import torch

from galvatron.errors import GalvatronError
from galvatron.ir.either import EITHER
from galvatron.ir.graph import Arg, Const, Function, Graph, Op, Ref
from galvatron.ir.ops.schemas import CONSTANTS, is_operator
from galvatron.ir.ops.table import operator_of
from galvatron.ir.ops.targets import parsed
from galvatron.ir.random import without_site
from galvatron.ir.types import (
    BATCH,
    LOCAL_BATCH,
    MICRO_BATCHES,
    TORCH_DTYPE_NAMES,
    BatchNumber,
    Length,
    TensorType,
    evaluate,
    lengths_in,
    numbers_in,
)

DTYPE_OF = {getattr(torch, attribute): name for name, attribute in TORCH_DTYPE_NAMES.items()}
"""torch dtype → IR element type."""

OpHandler = Callable[[Op, tuple[Any, ...], dict[str, Any]], Any]
"""Executes an op that torch does not have (a collective): the op, its evaluated arguments and keyword arguments."""

Caller = Callable[..., Any]
"""Calls a function: `caller(function, *args, **kwargs)`."""


@cache
def torch_op(target: str) -> Callable[..., Any]:
    """The torch operator behind an `aten.` target: one of those without side effects (`ir.ops.schemas`).

    Raises:
        GalvatronError: torch has no such operator, or a program may not run it.
    """
    if not is_operator(target):
        raise GalvatronError(f"op {target!r} is not run, since it is not known as free of side effects")
    if target == EITHER:
        return lambda trained, evaluated: trained
    called = parsed(target)
    if called.namespace == "galvatron":
        from galvatron import grouped  # noqa: F401  # registers it

    operator = getattr(getattr(getattr(torch.ops, called.namespace), called.name, None), called.overload, None)
    if operator is None:
        raise GalvatronError(f"this version of torch ({torch.__version__}) has no operator {target!r}")
    return operator


def torch_constant(const: Const) -> Any:
    """The torch object a `Const` names.

    Raises:
        GalvatronError: it names none that an op may be given.
    """
    if const.kind == "dtype" and const.name in TORCH_DTYPE_NAMES:
        return getattr(torch, TORCH_DTYPE_NAMES[const.name])
    if const not in CONSTANTS:
        raise GalvatronError(f"an op may not be given the constant {const.kind}.{const.name}")
    return getattr(torch, const.name)


def empty_like_type(type_: TensorType, batch: int, device: str = "cpu") -> torch.Tensor:
    """An uninitialised tensor of an IR type at a batch size."""
    shape = [evaluate(d, batch) for d in type_.shape]
    return torch.empty(shape, dtype=getattr(torch, TORCH_DTYPE_NAMES[type_.dtype]), device=device)


def run_graph(
    graph: Graph,
    values: Mapping[str, torch.Tensor],
    *,
    batch: int,
    global_batch: int | None = None,
    micro_batches: int = 1,
    numbers: Mapping[str, float] | None = None,
    lengths: Mapping[Length, int] | None = None,
    handler: OpHandler | None = None,
    device: torch.device | str | None = None,
    callers: Mapping[int, Caller] | None = None,
    calls: Callable[[str], Callable[..., Any] | None] | None = None,
) -> dict[str, torch.Tensor]:
    """Runs `graph` and returns its outputs by name.

    Args:
        values: a tensor for every input and state value, by name.
        batch: the local batch size `b` (and `B`, unless `global_batch` is given).
        micro_batches: `m`.
        numbers: of the batch, by name; those that are not given are some number of their kind.
        lengths: the sizes of inputs besides; those that are not given are those of the example.
        handler: executes `comm.` and `spmd.` ops.
        device: where ops that create tensors from nothing put them.
        callers: by number, the ops that are not called directly, and who calls them.
        calls: by target, what is called for an op, if it is not the op itself.
    """
    env: dict[str, Any] = {v.name: values[v.name] for v in (*graph.inputs, *graph.state)}
    whole_batch = batch if global_batch is None else global_batch
    symbols: Symbols = {LOCAL_BATCH: batch, BATCH: whole_batch, MICRO_BATCHES: micro_batches}
    symbols |= {BatchNumber(type(value).__name__, name): value for name, value in (numbers or {}).items()}
    for length, size in (lengths or {}).items():
        symbols[length] = size
    for index, op in enumerate(map(without_site, graph.ops)):
        args, kwargs = _arguments(op, env, symbols)
        if op.function is not None:
            function = _with_own_backward(op.function, batch, whole_batch, device, calls)
        elif op.namespace in ("comm", "spmd"):
            if handler is None:
                raise GalvatronError(f"op {op.target!r} needs a handler, since it communicates")
            function = _handled(op, handler)
        elif device is not None and not op.operands:
            function = partial(torch_op(op.target), device=device)
        else:
            function = (calls and calls(op.target)) or torch_op(op.target)
        if operator_of(op).reads_memory:
            args = (args[0].contiguous(), *args[1:])
        out = callers[index](function, *args, **kwargs) if callers and index in callers else function(*args, **kwargs)
        outs = tuple(out) if len(op.results) > 1 or isinstance(out, (tuple, list)) else (out,)
        env.update((value.name, tensor) for value, tensor in zip(op.results, outs, strict=False))
    return {name: env[name] for name in graph.outputs}


def _with_own_backward(
    own: Function,
    batch: int,
    global_batch: int,
    device: torch.device | str | None,
    calls: Callable[[str], Callable[..., Any] | None] | None,
) -> Callable[..., Any]:
    """A function of tensors whose backward is its own."""

    def run(graph: Graph, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = {v.name: tensor for v, tensor in zip(graph.inputs, tensors, strict=True)}
        found = run_graph(graph, values, batch=batch, global_batch=global_batch, device=device, calls=calls)
        return tuple(found[name] for name in graph.outputs)

    return lambda *operands: _OwnBackward.apply(own, run, *operands)


class _OwnBackward(torch.autograd.Function):
    """Runs the two graphs of a function."""

    @staticmethod
    def forward(ctx: Any, own: Function, run: Callable[..., tuple[torch.Tensor, ...]], *operands: torch.Tensor) -> Any:
        ctx.own, ctx.run = own, run
        outputs = run(own.forward, *operands)
        ctx.save_for_backward(*outputs[own.results :])
        return outputs[: own.results] if own.results > 1 else outputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        own = ctx.own
        floating = (g for g, v in zip(gradients, own.made, strict=True) if v.type.is_floating)
        made = dict(zip(own.differentiated, ctx.run(own.backward, *ctx.saved_tensors, *floating), strict=True))
        return None, None, *(made.get(i) for i in range(len(own.forward.inputs)))


def evaluated(op: Op, values: Mapping[str, torch.Tensor], batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of one op on some values at a batch size, in one micro-batch, as torch takes them."""
    return _arguments(op, values, {LOCAL_BATCH: batch, BATCH: batch, MICRO_BATCHES: 1})


Symbols = dict[sympy.Symbol, int | float]
"""What symbols stand for."""

_SOME_NUMBER = {"float": 0.75, "int": 2}
"""By kind, for where the value does not matter."""


def _arguments(op: Op, env: Mapping[str, Any], symbols: Symbols) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(_evaluate(a, env, symbols) for a in op.args), {k: _evaluate(v, env, symbols) for k, v in op.kwargs}


def _handled(op: Op, handler: OpHandler) -> Callable[..., Any]:
    return lambda *args, **kwargs: handler(op, args, kwargs)


def _evaluate(arg: Arg, env: Mapping[str, Any], symbols: Symbols) -> Any:
    if isinstance(arg, Ref):
        return env[arg.name]
    if isinstance(arg, Const):
        return torch_constant(arg)
    if isinstance(arg, tuple):
        return [_evaluate(a, env, symbols) for a in arg]
    if isinstance(arg, sympy.Expr):
        numbers = numbers_in(arg)
        given: Symbols = {number: _SOME_NUMBER[number.number_kind] for number in numbers}
        given |= {length: length.example for length in lengths_in(arg)}
        given |= symbols
        value = arg.subs(list(given.items()))
        is_whole = value.is_Integer and all(number.number_kind == "int" for number in numbers)
        return int(value) if is_whole else float(value)
    return arg
