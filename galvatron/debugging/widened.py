"""Graphs in float64, where what differs by more than rounding is another computation."""

from __future__ import annotations

from dataclasses import replace

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Arg, Const, Function, Graph, Op, Value
from galvatron.ir.random import draws_as_a_whole, is_random

WIDE = {"bf16": "f64", "f16": "f64", "f32": "f64", "c64": "c128"}
"""The element types that become wider."""


def widened(graph: Graph) -> Graph:
    """The graph with every floating number in 64 bits, also where it says itself what it casts to."""
    return Graph(
        tuple(map(_value, graph.inputs)), tuple(map(_value, graph.state)), tuple(map(_op, graph.ops)), graph.outputs
    )


def undrawn(graph: Graph) -> Graph:
    """The graph in which dropout drops nothing, so that ranks and one device need not draw the same.

    Raises:
        GalvatronError: it draws otherwise.
    """
    return Graph(graph.inputs, graph.state, tuple(map(_undrawn, graph.ops)), graph.outputs)


def _undrawn(op: Op) -> Op:
    if draws_as_a_whole(op):
        raise GalvatronError(f"{op.target} draws random numbers, which are others on several ranks")
    if not is_random(op):
        return op
    rates = {name: 0.0 for name in ("p", "dropout_p") if name in op.arguments}
    if not rates:
        raise GalvatronError(f"{op.target} draws random numbers, which are others on several ranks")
    return op.changed(**rates)


def _value(value: Value) -> Value:
    return replace(value, type=replace(value.type, dtype=WIDE.get(value.type.dtype, value.type.dtype)))


def _op(op: Op) -> Op:
    return replace(
        op,
        args=tuple(map(_arg, op.args)),
        kwargs=tuple((name, _arg(arg)) for name, arg in op.kwargs),
        results=tuple(map(_value, op.results)),
        function=op.function and _function(op.function),
    )


def _function(function: Function) -> Function:
    return replace(function, forward=widened(function.forward), backward=widened(function.backward))


def _arg(arg: Arg) -> Arg:
    if isinstance(arg, tuple):
        return tuple(map(_arg, arg))
    if isinstance(arg, Const) and arg.kind == "dtype":
        return Const("dtype", WIDE.get(arg.name, arg.name))
    return arg
