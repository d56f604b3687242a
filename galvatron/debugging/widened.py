"""Graphs in other element types: in float64 what differs by more than rounding is another computation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Arg, Const, Function, Graph, Op, Ref, Value
from galvatron.ir.ops.table import operator_of
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
    """The graph in which dropout drops nothing, so that ranks and one device need not draw the same, but multiplies by
    a number that follows from its rate, so that another rate shows.

    Raises:
        GalvatronError: it draws otherwise.
    """
    return replace(graph, ops=tuple(one for op in graph.ops for one in _undrawn(op)))


def _undrawn(op: Op) -> tuple[Op, ...]:
    draws = operator_of(op).draws
    if not (is_random(op) or draws_as_a_whole(op)) or (draws and draws.switch and not op.get(draws.switch)):
        return (op,)
    rates = [name for name in ("p", "dropout_p") if isinstance(op.get(name), int | float)]
    if draws is None or draws.switch is None or len(rates) != 1:
        raise GalvatronError(f"{op.target} draws random numbers, which are others on several ranks")
    (rate,), (first, *rest) = rates, op.results
    whole = replace(first, name=f"{first.name} undrawn")  # as nothing is called in a program
    more = Op("aten.mul.Tensor", (Ref(whole.name), 1.0 + float(op[rate])), (), (first,), op.source)  # type: ignore[arg-type]  # a number
    return replace(op.changed(**{rate: 0.0}), results=(whole, *rest)), more


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
