"""Where every value of a sharded program is on each mesh axis, its gradient too, and why that is legal.

The reasons are those of the verifier: the way in which its rule lets an op run, what a collective leads from and to,
and on a border between layers why what is made is what is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from galvatron.ir.collectives import WAIT, Conversion, conversion, conversion_of, ends
from galvatron.ir.gradients import Gradients, gradients
from galvatron.ir.graph import Op
from galvatron.ir.layout import BROADCAST, PARTIAL, Axis, Layout, Mesh, Placement, Shard, dual, positions
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.padding import whole_sizes
from galvatron.ir.program import Form, LayerClass, Program
from galvatron.ir.random import is_random
from galvatron.ir.verify.placed import Misplaced, Placed
from galvatron.ir.verify.placements import Way, ways, whole_dims
from galvatron.ir.verify.sharding import Edge, edges, placed_values, same_distribution

OF_BATCH = "every rank takes what it needs of the batch"
"""Why an input of the program is read as it is."""


@dataclass(frozen=True)
class Spot:
    """Where a value is on one axis and where its gradient, empty if it has none, and why."""

    axis: str
    value: str
    gradient: str
    why: str


@dataclass(frozen=True)
class PlacedValue:
    """A value that a class is given or that one of its ops makes.

    `by` says what makes it, `rule` the named dimensions of that op, `line` and `module` where it stands in the model;
    empty for what is not known, or not an op's.
    """

    name: str
    by: str
    rule: str
    line: str
    module: str
    spots: tuple[Spot, ...]


@dataclass(frozen=True)
class PlacedClass:
    """Classes that are alike but for their names, with the layers that call them, in order."""

    names: tuple[str, ...]
    layers: tuple[str, ...]
    mesh: tuple[str, ...]
    values: tuple[PlacedValue, ...]


@dataclass(frozen=True)
class ReadValues:
    """Values that layers of one class read, each as layers of another class make it (an empty `maker`: as the batch has
    it), and why that is legal."""

    values: tuple[str, ...]
    maker: str
    reader: str
    layout: str
    why: str


def placed_classes(program: Program) -> tuple[PlacedClass, ...]:
    """The classes of a valid program that are on a mesh."""
    flowing = gradients(program)
    found: dict[tuple[tuple[str, ...], tuple[PlacedValue, ...]], list[LayerClass]] = {}
    for cls in program.classes:
        if program.form >= Form.SHARDED and cls.mesh:
            mesh = tuple(map(str, cls.mesh))
            found.setdefault((mesh, tuple(values_of(program, cls, flowing))), []).append(cls)
    return tuple(
        PlacedClass(
            tuple(cls.name for cls in alike),
            tuple(layer.name for layer in program.all_layers if layer.cls in {cls.name for cls in alike}),
            *key,
        )
        for key, alike in found.items()
    )


def values_of(program: Program, cls: LayerClass, flowing: Gradients) -> Iterator[PlacedValue]:
    """The values of a class on a mesh, in the order in which they are made; `flowing` are those with gradients."""
    graph = cls.graph
    placed = placed_values(cls, flowing.formals[cls.origin_name], whole_sizes(program, cls))
    batch = {value.name for value in program.inputs}
    for place, value in enumerate(graph.inputs):
        is_of_batch = all(layer.operands[place] in batch for layer in program.layers_of[cls.name])
        why = _of_batch if is_of_batch else _given
        yield PlacedValue(value.name, "input", "", "", "", _spots(placed[value.name], cls.mesh, why))
    for value in graph.state:
        yield PlacedValue(value.name, "state", "", "", "", _spots(placed[value.name], cls.mesh, _kept))
    for op in graph.ops:
        yield from _made(op, placed, cls.mesh)


def _spots(value: Placed, mesh: Mesh, why: Callable[[Placed, Axis, int], str]) -> tuple[Spot, ...]:
    return tuple(_spot(value, mesh, i, why(value, mesh[i], i)) for i in range(len(mesh)))


def _spot(value: Placed, mesh: Mesh, axis: int, why: str) -> Spot:
    placement = value.layout[axis]
    return Spot(mesh[axis].name, str(placement), str(dual(placement)) if value.differentiable else "", why)


def _given(value: Placed, axis: Axis, place: int) -> str:
    return "as the layer that makes it gives it"


def _of_batch(value: Placed, axis: Axis, place: int) -> str:
    return OF_BATCH


def _kept(value: Placed, axis: Axis, place: int) -> str:
    if isinstance(value.layout[place], Shard):
        return f"each rank has a part{', and the gradient of it' * value.differentiable}"
    if not value.differentiable:
        return "every rank has all of it; it has no gradient"
    if value.layout[place] == BROADCAST:
        return f"each rank has a term of its gradient, which is summed over {axis.name} once per step"
    return "every rank has all of it, and all of its gradient"


def _made(op: Op, placed: dict[str, Placed], mesh: Mesh) -> Iterator[PlacedValue]:
    operands = tuple(placed[name] for name in op.operands)
    results = tuple(placed[value.name] for value in op.results)
    if op.namespace == "comm":
        rule, reasons = "", _collective_reasons(op, mesh, differentiable=results[0].differentiable)
    else:
        rule, reasons = _op_reasons(op, operands, results, mesh)
    by = f"{op.namespace}.{op.name}({', '.join(f'%{name}' for name in op.operands)})"
    line, module = (str(op.source), op.source.scope) if op.source else ("", "")
    for value in results:
        spots = tuple(_spot(value, mesh, i, why) for i, why in enumerate(reasons))
        yield PlacedValue(value.name, by, rule, line, module, spots)


def _op_reasons(
    op: Op, operands: tuple[Placed, ...], results: tuple[Placed, ...], mesh: Mesh
) -> tuple[str, tuple[str, ...]]:
    """The rule of an op, and why it may run on each axis, or why it may not."""
    try:
        dims = whole_dims(op, operands, results)
        found = ways(op, operands, results, mesh)
    except Misplaced as problem:
        return "", tuple(f"it may not: {problem}" for _ in mesh)
    reasons = tuple(_reason(op, way, dims, operands, results, i) for i, way in enumerate(found))
    return "" if dims is None else str(dims), reasons


def _collective_reasons(op: Op, mesh: Mesh, *, differentiable: bool) -> tuple[str, ...]:
    if op.target == WAIT:
        return ("as it was started",) * len(mesh)
    source, target = ends(op)
    told = _moving(conversion_of(op), source, target)
    back = conversion(dual(target), dual(source)) if differentiable else None
    told += f"; backward {_moving(back, dual(target), dual(source))}" if back else ""
    at = positions(mesh, str(op.kwarg("axis")))
    return tuple(told if i in at else "as it was" for i in range(len(mesh)))


def _moving(way: Conversion, source: Placement, target: Placement) -> str:
    return f"{way.collective.name} {source} → {target}"


def _reason(
    op: Op, way: Way, dims: OpDims | None, operands: tuple[Placed, ...], results: tuple[Placed, ...], axis: int
) -> str:
    """Why an op may run on an axis as it does."""
    if way.kind == "whole":
        told = "every rank computes all of it"
    elif way.kind == "terms":
        told = "every rank computes all of it, and has a term of each gradient"
    elif way.kind == "sums":
        told = "linear, so that terms of a sum stay terms"
    else:
        told = f"cut along {way.along}" if way.kind == "cut" else f"exchanges along {way.along} inside"
        if any(result.layout[axis] == PARTIAL for result in results):
            told += ", which it sums over: a term each"
        terms = [f"%{p.name}" for p in dict.fromkeys(operands) if p.differentiable and p.layout[axis] == BROADCAST]
        told += f"; each rank has a term of the gradient of {', '.join(terms)}" if terms else ""
    if is_random(op):
        told += "; draws of its own" if isinstance(results[0].layout[axis], Shard) else "; the same draws"
    return told


def borders(program: Program) -> tuple[ReadValues, ...]:
    """What the layers of a valid sharded program read; alike ones once, in the order of the first."""
    if program.form < Form.SHARDED:
        return ()
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for edge in edges(program):
        cls = program.class_of[edge.reader.layer.cls]
        maker = "" if edge.maker is None else edge.maker.layer.cls
        layout = _layout(cls.mesh, edge.asked)
        found.setdefault((maker, cls.name, layout, _border_reason(program, edge)), []).append(edge.name)
    return tuple(ReadValues(tuple(dict.fromkeys(values)), *key) for key, values in found.items())


def _border_reason(program: Program, edge: Edge) -> str:
    if edge.maker is None:
        return OF_BATCH
    own, mesh = (program.class_of[one.layer.cls].mesh for one in (edge.maker, edge.reader))
    if not edge.agrees:
        return f"made as {_layout(own, edge.given)}: the pass redistribute is to convert it"
    if (own, edge.given) == (mesh, edge.asked):
        return "as it is made"
    if same_distribution(own, edge.given_in_samples, mesh, edge.asked_in_samples):
        return f"made as {_layout(own, edge.given)}, which is the same part on every device"
    return f"made as {_layout(own, edge.given)}: without a gradient R' and R are one"


def _layout(mesh: Mesh, layout: Layout) -> str:
    return ", ".join(f"{axis.name} {placement}" for axis, placement in zip(mesh, layout, strict=True)) or "whole"


def folded(names: tuple[str, ...]) -> str:
    """Names of layers or values on one line: of runs of more than three that differ in a number the ends."""
    runs = [list(run) for _, run in groupby(names, key=lambda name: name.translate(_WITHOUT_DIGITS))]
    return ", ".join(f"{run[0]} … {run[-1]} ({len(run)})" if len(run) > 3 else ", ".join(run) for run in runs)


_WITHOUT_DIGITS = str.maketrans("", "", "0123456789")
