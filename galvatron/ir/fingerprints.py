"""Fingerprints of local graphs: two graphs that compute the same, whatever their values are called, have one.

What was measured of a layer class under a strategy is found by it: in another run, another program, or under another
strategy that leaves the same to a rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

import sympy

from galvatron.ir.graph import Arg, Const, Function, Graph, Ref
from galvatron.ir.layout import Mesh, nameable_axes
from galvatron.ir.types import BatchNumber, Length, TensorType


def local_fingerprint(graph: Graph, mesh: Mesh, differentiable: Collection[str], recompute: str = "none") -> str:
    """16 hexadecimal digits for what a rank runs of a layer class.

    They depend on its ops with their arguments, on types, on the sizes of the axes that it communicates on, on what has
    a gradient and on what the backward computes again. They do not depend on names, on where ops come from, nor on how
    axes lie on the devices. Sizes that may be another in each step count as in the example.
    """
    axes = {axis.name: axis.size for axis in nameable_axes(mesh)}
    text = f"{recompute};{_graph(graph, axes, differentiable)}"
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _graph(graph: Graph, axes: Mapping[str, int], differentiable: Collection[str] = ()) -> str:
    numbers = {name: number for number, name in enumerate(graph.values)}
    parts: list[str] = []
    for kind, values in (("in", graph.inputs), ("state", graph.state)):
        parts += [f"{kind} {_type(value.type)} {value.name in differentiable}" for value in values]
    for op in graph.ops:
        target = op.target if op.function is None else _function(op.function, axes)
        arguments = [_argument(arg, numbers) for arg in op.args]
        for name, arg in op.kwargs:
            named = op.namespace in ("comm", "spmd", "random") and name in ("axis", "axes")
            arguments.append(f"{name}={_axes(arg, axes) if named else _argument(arg, numbers)}")
        parts.append(f"{target}({', '.join(arguments)}) {' '.join(_type(value.type) for value in op.results)}")
    parts.append(f"out {[numbers[name] for name in graph.outputs]}")
    return "\n".join(parts)


def _function(function: Function, axes: Mapping[str, int]) -> str:
    """A function with a backward of its own, without its name."""
    both = (_graph(function.forward, axes), _graph(function.backward, axes))
    return f"function {both} {function.results} {function.differentiated}"


def _axes(arg: Arg, axes: Mapping[str, int]) -> str:
    names = (arg,) if isinstance(arg, str) else arg
    assert isinstance(names, Sequence)
    return str([axes.get(str(name), 1) for name in names])


def _argument(arg: Arg, numbers: Mapping[str, int]) -> str:
    if isinstance(arg, Ref):
        return f"%{numbers[arg.name]}"
    if isinstance(arg, tuple):
        return f"({', '.join(_argument(item, numbers) for item in arg)})"
    if isinstance(arg, sympy.Expr):
        return _expression(arg)
    return f"{arg.kind}.{arg.name}" if isinstance(arg, Const) else repr(arg)


def _type(type_: TensorType) -> str:
    shape = (_expression(size) if isinstance(size, sympy.Expr) else str(size) for size in type_.shape)
    return f"{type_.dtype}[{', '.join(shape)}]"


def _expression(expression: sympy.Expr) -> str:
    """An expression in the symbols of the batch, with the example's lengths, and numbers without their names."""
    told: dict[sympy.Basic, sympy.Basic] = {}
    for place, symbol in enumerate(sorted(expression.free_symbols, key=str)):
        if isinstance(symbol, Length):
            told[symbol] = sympy.Integer(symbol.example)
        elif isinstance(symbol, BatchNumber):
            told[symbol] = sympy.Symbol(f"{symbol.number_kind}{place}")
    return str(expression.xreplace(told) if told else expression)
