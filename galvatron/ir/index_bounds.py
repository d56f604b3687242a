"""Whole numbers that are places in something else, such as rows of a table, classes, or elements along a dimension: how
many places there are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from galvatron.ir.graph import Arg, Graph, Op, Ref, walk_refs
from galvatron.ir.ops.table import operator_of
from galvatron.ir.types import Dim, TensorType, evaluate


def places(op: Op, types: Mapping[str, TensorType]) -> Iterator[tuple[str, Dim]]:
    """The operands of which the elements are places, each with how many there are; of a rank's part of what they are
    places in, those of the whole."""
    operator = operator_of(op)
    if op.function is not None or not operator.indices:
        return
    given = op[operator.indices]
    if operator.masks and isinstance(given, tuple):
        yield from _by_dimension(given, types[op.operands[0]].shape, types)
        return
    for ref in walk_refs(given):
        if not types[ref.name].is_floating:  # else probabilities
            yield ref.name, _count(op, ref.name, types)


def _by_dimension(
    given: Iterable[Arg], shape: tuple[Dim, ...], types: Mapping[str, TensorType]
) -> Iterator[tuple[str, Dim]]:
    """Of indices that stand for one dimension each; a mask stands for as many as it has."""
    dim = 0
    for arg in given:
        is_mask = isinstance(arg, Ref) and types[arg.name].dtype == "bool"
        if isinstance(arg, Ref) and not is_mask:
            yield arg.name, shape[dim]
        dim += len(types[arg.name].shape) if isinstance(arg, Ref) and is_mask else 1


def _count(op: Op, indices: str, types: Mapping[str, TensorType]) -> Dim:
    operator, size = operator_of(op), op.kwarg("size")
    if op.namespace == "spmd" and not isinstance(size, (str, tuple, float, Ref)) and size is not None:
        return size  # type: ignore[return-value]  # a size, as the verifier sees to
    shape = next((types[name].shape for name in op.operands if name != indices), ())
    dim, classes = op.get("dim"), op.get("num_classes")
    if not shape:
        return classes if isinstance(classes, int) and classes > 0 else 2
    if isinstance(dim, int):
        return shape[dim]
    if operator.looks_up:
        return shape[0]
    return shape[min(1, len(shape) - 1)] if operator.indices == "target" else math.prod(shape)


@dataclass(frozen=True)
class Read:
    """What one op says of whole numbers, or of signs, that it reads of an input or of state.

    Attributes:
        origin: the input or state that has them.
        count: how many places there are, where they are places in something.
        special: those that mean something else to the op than others: labels that are ignored, rows that get no
            gradient, and numbers that all are compared with.
        moved: they only stand in another order or place, so that the op reads no others.
        signs: each is 1 or -1.
        negative: a place may be counted from the end.
    """

    origin: str
    count: Dim | None = None
    special: tuple[float, ...] = ()
    moved: bool = True
    signs: bool = False
    negative: bool = False

    def takes(self, number: float, samples: int) -> bool:
        """Whether the op can be given a number."""
        if self.count is None or not self.moved or number in self.special:
            return True
        return 0 <= number < evaluate(self.count, samples)

    def refuses(self, number: float) -> bool:
        """Whether the op fails where a number is among them, whatever the number of samples."""
        if self.count is None or not self.moved or number in self.special:
            return False
        return (number < 0 and not self.negative) or (isinstance(self.count, int) and number >= self.count)


def reads(graph: Graph) -> Iterator[Read]:
    """What the ops of a graph, and of functions that it calls, say of what they read of inputs and state."""
    yield from _reads(graph, {value.name: {value.name: True} for value in (*graph.inputs, *graph.state)})


Origins = dict[str, dict[str, bool]]
"""By value, the inputs and state that it has elements of, and whether it has no others."""


def _reads(graph: Graph, origins: Origins) -> Iterator[Read]:
    for op in graph.ops:
        if op.function is not None:
            given = zip(op.function.forward.inputs, op.operands, strict=True)
            own = {value.name: origins[name] for value, name in given if name in origins}
            yield from _reads(op.function.forward, own)
            continue
        if found := _moved(op, origins, graph.types):
            origins |= {value.name: found for value in op.results}
        operator = operator_of(op)
        counts, signs = dict(places(op, graph.types)), op.get(operator.signs)
        for name in dict.fromkeys(op.operands):
            is_sign = isinstance(signs, Ref) and signs.name == name
            if name in counts or is_sign or operator.beside:
                for origin, moved in origins.get(name, {}).items():
                    special = _special(op, graph.types[name])
                    yield Read(origin, counts.get(name), special, moved, is_sign, operator.negative)


def _moved(op: Op, origins: Origins, types: Mapping[str, TensorType]) -> dict[str, bool]:
    """What the results of an op have elements of."""
    operator = operator_of(op)
    moves = operator.free or operator.casts or operator.elements == "moved"
    if not moves and not operator.elements:
        return {}
    found: dict[str, bool] = {}
    for name in op.operands[:1] if moves else op.operands:
        if moves or types[name].dtype != "bool":  # else it only says which
            found |= {origin: moves and moved for origin, moved in origins.get(name, {}).items()}
    return found


def _special(op: Op, type_: TensorType) -> tuple[float, ...]:
    """The numbers that mean something else to an op than others; of floating ones those that no random number is."""
    operator = operator_of(op)
    if operator.beside:
        number = op.get("other")
        beside = () if type_.is_floating and len(operator.beside) > 1 else operator.beside
        return tuple(number + more for more in beside) if isinstance(number, int | float) else ()
    named = (op.get(name) for name in operator.special)
    return tuple(number for number in named if isinstance(number, int) and (number >= 0 or not operator.looks_up))


def decided(graph: Graph) -> set[str]:
    """Results of comparisons with a number that come out in one way, whatever the graph is given: what they compare are
    elements of an input or of state, of which other ops refuse the numbers on the one side. No word of a text is the
    label that a loss ignores, for instance, where words are looked up in a table."""
    origins = {value.name: value.name for value in (*graph.inputs, *graph.state)}
    read: dict[str, list[Read]] = defaultdict(list)
    compared: list[tuple[Op, str]] = []
    for op in graph.ops:
        operator = operator_of(op)
        origin = origins.get(op.operands[0]) if op.operands else None
        if op.function is None and origin is not None and (operator.free or operator.elements == "moved"):
            origins |= {value.name: origin for value in op.results if value.type.dtype == graph.types[origin].dtype}
        for name, count in () if op.function is not None else places(op, graph.types):
            if name in origins:
                special = _special(op, graph.types[name])
                read[origins[name]].append(Read(origins[name], count, special, negative=operator.negative))
        if operator.beside and origin is not None:
            compared.append((op, origin))
    return {
        op.results[0].name
        for op, origin in compared
        for number in _special(op, graph.types[origin])
        if any(other.refuses(number) for other in read[origin])
    }


def bounds(graph: Graph, samples: int) -> dict[str, int]:
    """For inputs and state whose elements are places in something, how many places there are, at a number of samples:
    the fewest of those of all ops that look them up."""
    found: dict[str, int] = {}
    for read in reads(graph):
        if read.count is not None:
            most = max(1, evaluate(read.count, samples))
            found[read.origin] = min(found.get(read.origin, most), most)
    return found
