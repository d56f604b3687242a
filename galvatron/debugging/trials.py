"""At which sizes, and with which numbers, graphs are run to be compared.

One size would not do: at two samples `2*B` is `B**2` and `4`. So there are two, one of them odd where it may be, and so
of every size that is free besides, and of every number that comes with a batch. At scales besides 1 an epsilon shows,
and a clamp.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import sympy

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Arg, Function, Graph, Op, Value
from galvatron.ir.layout import Layout, Shard
from galvatron.ir.types import BatchNumber, BatchSizes, Dim, Length, evaluate, simplify_dim

MOST_SAMPLES = 4096
"""That are tried."""

Settled = Mapping[sympy.Symbol, int | float]
"""What lengths and numbers of the batch are."""


@dataclass(frozen=True)
class Trial:
    """With what graphs are run: samples, those of a rank where they are on several; random numbers of a scale; and
    what lengths and numbers of the batch are."""

    samples: int
    scale: float
    settled: Settled


SCALES = (1.0, 1e-3, 3.0)
"""Of the random numbers, the last with another number of samples than the others."""


def trials(graphs: Sequence[Graph], sizes: BatchSizes, degree: int = 1) -> list[Trial]:
    """What graphs are run with.

    Args:
        sizes: the numbers of samples for which they hold.
        degree: over how many ranks the samples of all graphs but the first are cut, which have those of a rank.

    Raises:
        GalvatronError: there is no number of samples at which every size is whole.
    """
    symbols = {symbol for graph in graphs for symbol in _symbols(graph)}
    first, second = (_settled(symbols, other=other) for other in (False, True))
    samples = list(_samples(graphs, sizes, degree, first))
    if not samples:
        raise GalvatronError(
            f"there is no number of samples up to {MOST_SAMPLES} among {sizes} at which all sizes are whole"
        )
    again = list(_samples(graphs, sizes, degree, second))
    if not again:
        second, again = first, samples
    found = [Trial(samples[0], scale, first) for scale in SCALES[:-1]]
    return [*found, Trial(again[-1], SCALES[-1], second)]


def _samples(graphs: Sequence[Graph], sizes: BatchSizes, degree: int, settled: Settled) -> Iterator[int]:
    """The least number of samples above one for which every size is whole, and another one: the next odd one, or the
    next where none is near."""
    whole, *rest = (
        {dim for value in settle(graph, settled).values.values() for dim in value.type.shape} for graph in graphs
    )
    found: list[int] = []
    for own in range(2, MOST_SAMPLES // degree + 1):
        if found and own > 4 * found[0] + 1:
            break
        if own * degree in sizes and _are_whole(whole, own * degree) and all(_are_whole(dims, own) for dims in rest):
            found.append(own)
    yield from found[:1]
    others = found[1:]
    yield from [own for own in others if own % 2][:1] or others[:1]


def _are_whole(dims: Iterable[Dim], samples: int) -> bool:
    try:
        return all(evaluate(dim, samples) >= 0 for dim in dims)
    except GalvatronError:
        return False


def _settled(symbols: Iterable[sympy.Symbol], *, other: bool) -> dict[sympy.Symbol, int | float]:
    found: dict[sympy.Symbol, int | float] = {}
    for symbol in symbols:
        if isinstance(symbol, Length):
            found[symbol] = _another(symbol) if other else symbol.example
        elif isinstance(symbol, BatchNumber):
            found[symbol] = _NUMBERS[symbol.number_kind][other]
    return found


_NUMBERS = {"float": (0.75, 1.25), "int": (2, 3)}
"""By kind, what numbers of the batch are."""


def _another(length: Length) -> int:
    """Another size that a length may have, near that of the example and not larger if there is one."""
    around = range(1, length.example)
    for size in (*(length.example - more for more in around), *(length.example + more for more in around)):
        if size > 1 and size in length.sizes:
            return size
    return length.example


def settle(graph: Graph, settled: Settled) -> Graph:
    """The graph with numbers in the place of lengths and of numbers of the batch."""
    if not settled:
        return graph
    given = list(settled.items())

    def arg(value: Arg) -> Arg:
        if isinstance(value, tuple):
            return tuple(map(arg, value))
        if not isinstance(value, sympy.Expr):
            return value
        found = value.subs(given)
        return simplify_dim(found) if found.free_symbols or found.is_Integer else float(found)

    def size(dim: Dim) -> Dim:
        return dim if isinstance(dim, int) else simplify_dim(dim.subs(given))

    def layout(placements: Layout) -> Layout:
        return tuple(replace(p, outer=size(p.outer)) if isinstance(p, Shard) else p for p in placements)

    def of_value(value: Value) -> Value:
        type_ = value.type.with_shape(tuple(map(size, value.type.shape)))
        return replace(value, type=type_, layout=value.layout and layout(value.layout))

    def of_op(op: Op) -> Op:
        return replace(
            op,
            args=tuple(map(arg, op.args)),
            kwargs=tuple((name, arg(value)) for name, value in op.kwargs),
            results=tuple(map(of_value, op.results)),
            function=op.function and of_function(op.function),
        )

    def of_function(function: Function) -> Function:
        return replace(function, forward=of_graph(function.forward), backward=of_graph(function.backward))

    def of_graph(graph: Graph) -> Graph:
        inputs, state = tuple(map(of_value, graph.inputs)), tuple(map(of_value, graph.state))
        return Graph(inputs, state, tuple(map(of_op, graph.ops)), graph.outputs)

    return of_graph(graph)


def _symbols(graph: Graph) -> Iterator[sympy.Symbol]:
    def walk(arg: object) -> Iterator[sympy.Symbol]:
        if isinstance(arg, sympy.Expr):
            yield from (symbol for symbol in arg.free_symbols if isinstance(symbol, sympy.Symbol))
        elif isinstance(arg, tuple):
            for one in arg:
                yield from walk(one)

    for value in graph.values.values():
        yield from walk(value.type.shape)
    for op in graph.ops:
        yield from walk((op.args, tuple(value for _, value in op.kwargs)))
        for part in () if op.function is None else (op.function.forward, op.function.backward):
            yield from _symbols(part)
