"""Whole numbers that are places in something else, such as rows of a table, classes, or elements along a dimension: how
many places there are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

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


def bounds(graph: Graph, samples: int) -> dict[str, int]:
    """For inputs and state whose elements are places in something, how many places there are, at a number of samples:
    the fewest of those of all ops that look them up."""
    origin = origins(graph)
    found: dict[str, int] = {}
    for op in graph.ops:
        for name, count in places(op, graph.types):
            if name in origin:
                most = max(1, evaluate(count, samples))
                found[origin[name]] = min(found.get(origin[name], most), most)
    return found


def origins(graph: Graph) -> dict[str, str]:
    """The inputs and state by themselves, and values that only have the numbers of one, or some of them, elsewhere."""
    found = {value.name: value.name for value in (*graph.inputs, *graph.state)}
    for op in graph.ops:
        operator = operator_of(op)
        moves = op.function is None and (operator.free or operator.casts or op.name in _COPIES)
        if moves and op.operands[:1] and op.operands[0] in found:
            found |= {value.name: found[op.operands[0]] for value in op.results}
    return found


_COPIES = ("clone", "contiguous")
