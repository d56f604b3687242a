"""Graphs in other element types: in float64 what differs by more than rounding is another computation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Arg, Const, Function, Graph, Op, Value
from galvatron.ir.random import draws_as_a_whole, is_random

WIDE = {"bf16": "f64", "f16": "f64", "f32": "f64", "c64": "c128"}
"""The element types that become wider."""

SINGLE = {"bf16": "f32", "f16": "f32", "f64": "f32", "c128": "c64"}
"""Those that become float32, and what is as wide."""


def widened(graph: Graph, types: Mapping[str, str] = WIDE) -> Graph:
    """The graph with every floating number in 64 bits, or in other types; also where it says what it casts to."""
    return Graph(
        tuple(_value(value, types) for value in graph.inputs),
        tuple(_value(value, types) for value in graph.state),
        tuple(_op(op, types) for op in graph.ops),
        graph.outputs,
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


def _value(value: Value, types: Mapping[str, str]) -> Value:
    return replace(value, type=replace(value.type, dtype=types.get(value.type.dtype, value.type.dtype)))


def _op(op: Op, types: Mapping[str, str]) -> Op:
    return replace(
        op,
        args=tuple(_arg(arg, types) for arg in op.args),
        kwargs=tuple((name, _arg(arg, types)) for name, arg in op.kwargs),
        results=tuple(_value(value, types) for value in op.results),
        function=op.function and _function(op.function, types),
    )


def _function(function: Function, types: Mapping[str, str]) -> Function:
    return replace(function, forward=widened(function.forward, types), backward=widened(function.backward, types))


def _arg(arg: Arg, types: Mapping[str, str]) -> Arg:
    if isinstance(arg, tuple):
        return tuple(_arg(one, types) for one in arg)
    if isinstance(arg, Const) and arg.kind == "dtype":
        return Const("dtype", types.get(arg.name, arg.name))
    return arg
