"""Op graphs as lines: types, layouts, values, ops and what is returned."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

from galvatron.ir.graph import Function, Graph, Op, Value
from galvatron.ir.layout import Axis, Layout, Mesh, Placement, Shard
from galvatron.ir.text import tokens
from galvatron.ir.text.arguments import format_argument
from galvatron.ir.text.calls import format_call
from galvatron.ir.text.lines import Line, Writer, pad, width
from galvatron.ir.text.names import bare_or_quoted, quote, sigiled, unmark
from galvatron.ir.types import TensorType
from galvatron.printing import one_line

_NAME_WIDTH, _CALL_WIDTH, _TYPE_WIDTH, _VALUE_WIDTH = 28, 80, 40, 64
_AXIS_NAME = re.compile(tokens.NAME)


def type_text(type_: TensorType, w: Writer) -> str:
    """`f32[B, 4]`."""
    return f"{type_.dtype}[{', '.join(format_argument(d, lenient=w.lenient) for d in type_.shape)}]"


def mesh_text(mesh: Mesh) -> str:
    """`(dp=2@2, tp=2@1)`."""
    return f"({', '.join(f'{_axis_name(a)}={a.size}@{a.stride}' for a in mesh)})"


def layout_text(layout: Layout, mesh: Mesh, w: Writer) -> str:
    """`(dp:S(0), tp:R)`; without the names of axes where the mesh is not known, or does not fit."""
    placements = [_placement(p, w) for p in layout]
    if len(mesh) == len(layout):
        placements = [f"{_axis_name(a)}:{p}" for a, p in zip(mesh, placements, strict=True)]
    return f"({', '.join(placements)})"


def _axis_name(axis: Axis) -> str:
    return axis.name if _AXIS_NAME.fullmatch(axis.name) else quote(axis.name)


def _placement(placement: Placement, w: Writer) -> str:
    if isinstance(placement, Shard) and (placement.outer != 1 or placement.by):
        outer = "" if placement.outer == 1 else f", outer={format_argument(placement.outer, lenient=w.lenient)}"
        flags = ", folded" * placement.folded + ", padded" * placement.padded
        by = f", by={value_name(placement.by)}" if placement.by else ""
        return f"S({placement.dim}{outer}{flags}{by})"
    return str(placement)


def value_name(name: str) -> str:
    """`%x`."""
    return sigiled("%", name)


def value_names(names: Sequence[str]) -> str:
    """`%x, %y`, or `_` for none."""
    return ", ".join(map(value_name, names)) if names else "_"


def _typed(value: Value, mesh: Mesh, w: Writer) -> str:
    return type_text(value.type, w) + ("" if value.layout is None else " " + layout_text(value.layout, mesh, w))


def _results(op: Op, mesh: Mesh, w: Writer) -> str:
    return ", ".join(_typed(value, mesh, w) for value in op.results) if op.results else "()"


def value_lines(
    keyword: str, values: Sequence[Value], w: Writer, owner: Hashable, mesh: Mesh = (), indent: str = ""
) -> list[Line]:
    """Inputs or state, one a line."""
    names = [value_name(v.name) for v in values]
    wide = width(names, _VALUE_WIDTH)
    return [
        Line(f"{indent}{keyword} {pad(name, wide)} : {_typed(v, mesh, w)}", (keyword, owner, v.name))
        for name, v in zip(names, values, strict=True)
    ]


def op_text(op: Op, mesh: Mesh = ()) -> str:
    """One op on a line of its own, without what says where it comes from."""
    w = Writer(lenient=True)
    results = value_names([value.name for value in op.results])
    return unmark(f"{results} = {format_call(op, lenient=True)} : {_results(op, mesh, w)}")


def graph_lines(graph: Graph, w: Writer, owner: Hashable, mesh: Mesh = (), *, signature: bool = True) -> list[Line]:
    """What stands between the braces of a graph; `signature` says whether its inputs and state do."""
    lines: list[Line] = []
    if signature:
        lines += value_lines("input", graph.inputs, w, owner, mesh, "  ")
        lines += value_lines("state", graph.state, w, owner, mesh, "  ")
    results = [value_names([v.name for v in op.results]) for op in graph.ops]
    calls = [format_call(op, lenient=w.lenient) for op in graph.ops]
    types = [_results(op, mesh, w) for op in graph.ops]
    widths = width(results, _NAME_WIDTH), width(calls, _CALL_WIDTH), width(types, _TYPE_WIDTH)
    scope: str | None = None
    file: str | None = None
    for index, op in enumerate(graph.ops):
        origin = ""
        if (source := op.source) is not None:
            label = w.file_of(source).label
            if (source.scope, label) != (scope, file):
                of = "" if label == file else f" of {_bare(label)}"
                lines.append(Line(f"  in {_bare(source.scope)}{of}"))
            scope, file = source.scope, label
            origin = f"  #{source.line}" + (one_line(f"  // {source}  {source.code}") if w.locations else "")
        columns = (pad(t, n) for t, n in zip((results[index], calls[index], types[index]), widths, strict=True))
        left, call, right = columns
        lines.append(Line(f"  {left} = {call} : {right}{origin}", ("op", owner, index)))
    lines.append(Line(f"  return {value_names(graph.outputs)}", ("return", owner)))
    return lines


def _bare(name: str) -> str:
    return unmark(bare_or_quoted(name))


def function_head(function: Function) -> str:
    """How many results there are, and the places of the operands that have a gradient."""
    places = ", ".join(map(str, function.differentiated))
    return f"function {function.name} results {function.results} gradients ({places})"


def function_lines(function: Function, w: Writer) -> list[Line]:
    """What is said of a function, then its forward and its backward."""
    forward = graph_lines(function.forward, w, (function.name, "forward"))
    backward = graph_lines(function.backward, w, (function.name, "backward"))
    head = Line(f"{function_head(function)} {{", ("function", function.name))
    return [head, *forward, Line("} backward {"), *backward, Line("}")]
