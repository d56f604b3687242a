"""What a rank runs of the functions that a local graph calls: their graphs on its slices."""

from __future__ import annotations

from dataclasses import replace

from galvatron.ir.functions import on_slices
from galvatron.ir.graph import Function, Graph, Op
from galvatron.ir.layout import REPLICATE, Mesh, Shard
from galvatron.ir.ops.functions import function_dims, samples_of
from galvatron.ir.verify.placements import Placed, sharded_factor
from galvatron.ir.whole import whole_type


def with_local_functions(graph: Graph, mesh: Mesh) -> Graph:
    """A local graph whose ops call what the rank runs of each function, in place of the function itself."""
    if not any(op.function for op in graph.ops):
        return graph
    return replace(
        graph,
        ops=tuple(op if op.function is None else replace(op, function=_local(op, graph, mesh)) for op in graph.ops),
    )


def _local(op: Op, graph: Graph, mesh: Mesh) -> Function:
    function = op.function
    assert function is not None
    values = [graph.values[name] for name in (*op.operands, *(v.name for v in op.results))]
    placed = [Placed(v.name, whole_type(v, mesh), v.layout or (REPLICATE,) * len(mesh), True) for v in values]
    operands = [p.type for p in placed[: len(op.operands)]]
    dims = function_dims(function, operands)
    ways: dict[str, int] = {}
    for i, axis in enumerate(mesh):
        cut = next((n for n, p in enumerate(placed) if isinstance(p.layout[i], Shard)), None)
        if cut is not None and dims is not None:
            name = sharded_factor(dims, (*dims.operands, *dims.results)[cut], placed[cut], mesh, i)[0]
            ways[name] = ways.get(name, 1) * axis.size
    return on_slices(function, ways, samples_of(function, operands))
