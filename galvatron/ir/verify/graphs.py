"""Rules of one op graph."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import sympy

from galvatron.errors import did_you_mean
from galvatron.ir.collectives import ALSO, COLLECTIVES, SHARD, WAIT, ends, result_shape, sent_by
from galvatron.ir.functions import call_problem, signature_problem
from galvatron.ir.graph import Arg, Const, Function, Graph, Op, Ref, Value
from galvatron.ir.layout import (
    Layout,
    Mesh,
    Shard,
    cutting_problem,
    is_routed,
    joined,
    local_placement,
    nameable_axes,
    positions,
    same_factor,
)
from galvatron.ir.ops.schemas import is_operator
from galvatron.ir.ops.sizes import ShapeError, same_shape
from galvatron.ir.ops.table import takes_size
from galvatron.ir.padding import paddable
from galvatron.ir.random import draws_as_a_whole, is_random, random_problem, without_site
from galvatron.ir.spmd import FLAGS, is_spmd, without_axis
from galvatron.ir.text.targets import is_known_target, unknown_target
from galvatron.ir.types import BATCH, DTYPE_BYTES, MICRO_BATCHES, Dim, Length, lengths_in
from galvatron.ir.verify.arguments import argument_problem
from galvatron.ir.verify.computed import BATCHES, computed_problem
from galvatron.ir.verify.mending import collective_mended
from galvatron.ir.verify.shapes import expected_dtype, expected_shapes

Violation = tuple[tuple[Hashable, ...], str]
"""Which line is wrong (see `text.lines.Line`), and why."""


@dataclass(frozen=True)
class Scope:
    """A graph and what holds around it: the class it belongs to (None for a whole program's), the batch symbols and
    lengths its shapes may use, where it is sharded its mesh, the numbers of the batch, and the outputs that no layer
    reads (`Program.only_given`); of a function's graphs, whose it is; batch sizes for which it holds."""

    graph: Graph
    owner: Hashable = None
    symbols: frozenset[sympy.Expr] = frozenset((BATCH,))
    mesh: Mesh | None = None
    numbers: frozenset[sympy.Symbol] = frozenset()
    only_given: frozenset[str] = frozenset()
    function: Function | None = None
    batches: tuple[int, int] = BATCHES


def _definitions(scope: Scope) -> Iterator[tuple[Value, tuple[Hashable, ...]]]:
    """Every value with the line that defines it."""
    for value in scope.graph.inputs:
        yield value, ("input", scope.owner, value.name)
    for value in scope.graph.state:
        yield value, ("state", scope.owner, value.name)
    for op, locus in _ops(scope):
        yield from ((value, locus) for value in op.results)


def _ops(scope: Scope) -> Iterator[tuple[Op, tuple[Hashable, ...]]]:
    """Every op with its line."""
    return ((op, ("op", scope.owner, index)) for index, op in enumerate(scope.graph.ops))


def unique_names(scope: Scope) -> Iterator[Violation]:
    """Every value of a graph is defined once."""
    seen: set[str] = set()
    for value, locus in _definitions(scope):
        if value.name in seen:
            yield locus, f"%{value.name} is defined twice"
        seen.add(value.name)


def defined_before_use(scope: Scope) -> Iterator[Violation]:
    """Ops and outputs read inputs, state and results of earlier ops."""
    known = {v.name for v in (*scope.graph.inputs, *scope.graph.state)}
    for op, locus in _ops(scope):
        for name in op.operands:
            if name not in known:
                yield locus, _unknown(name, scope.graph, known)
        known.update(v.name for v in op.results)
    for name in scope.graph.outputs:
        if name not in known:
            yield ("return", scope.owner), _unknown(name, scope.graph, known)


def _unknown(name: str, graph: Graph, known: set[str]) -> str:
    if name in graph.values:
        return f"%{name} is used before it is defined"
    return f"%{name} is not defined; {did_you_mean(name, known) if known else 'nothing is'}"


def known_ops(scope: Scope) -> Iterator[Violation]:
    """Every op is an `aten` overload, a function of the program or a collective, its keyword arguments named once."""
    for op, locus in _ops(scope):
        if op.function is not None:
            if op.target != op.function.target:
                yield locus, f"{op.target} calls the function {op.function.name}"
        elif not is_known_target(op.target):
            yield locus, unknown_target(op.target)
        if len(dict(op.kwargs)) < len(op.kwargs):
            yield locus, "a keyword argument is given twice"


def arguments_fit(scope: Scope) -> Iterator[Violation]:
    """An op has the arguments and the number of results that the operator's signature asks for."""
    for op, locus in _ops(scope):
        plain = without_axis(without_site(op))
        if is_operator(plain.target) and (problem := argument_problem(plain)):
            yield locus, f"{op.target}: {problem}"


def functions_fit(scope: Scope) -> Iterator[Violation]:
    """Of a function the backward reads what its forward saves and makes the gradients of its operands.

    Nothing in it communicates, draws random numbers or calls another function.
    """
    function = scope.function
    if function is None:
        return
    if problem := signature_problem(function):
        yield ("function", function.name), f"@{function.name}: {problem}"
    for op, locus in _ops(scope):
        if op.function is not None or op.namespace != "aten" or is_random(op):
            yield locus, f"{op.target} in a function"
        if any(_symbols(arg) and not takes_size(op, i) for i, arg in (*enumerate(op.args), *op.kwargs)):
            yield locus, f"{op.target} is given a number in {BATCH}, which a function does not know"


def calls_fit(scope: Scope) -> Iterator[Violation]:
    """An op that calls a function has operands and results of its types; on slices see `ops_on_slices`."""
    types = scope.graph.types
    for op, locus in () if scope.mesh else _ops(scope):
        if op.function is not None and (problem := call_problem(op, [types[name] for name in op.operands])):
            yield locus, f"{op.target}: {problem}"


def known_dtypes(scope: Scope) -> Iterator[Violation]:
    """Element types, of values and in arguments, are those of `types.DTYPE_BYTES`."""
    for value, locus in _definitions(scope):
        if value.type.dtype not in DTYPE_BYTES:
            yield locus, f"unknown element type {value.type.dtype!r}; {did_you_mean(value.type.dtype, DTYPE_BYTES)}"
    for op, locus in _ops(scope):
        for arg in (*op.args, *(v for _, v in op.kwargs)):
            if isinstance(arg, Const) and arg.kind == "dtype" and arg.name not in DTYPE_BYTES:
                yield locus, f"unknown element type {arg.name!r}"


def sizes_in_batch(scope: Scope) -> Iterator[Violation]:
    """Sizes are not negative, and symbolic only in the batch: `B` before sharding, `b` after."""
    for value, locus in _definitions(scope):
        for dim in value.type.shape:
            if problem := _dim_problem(dim, scope):
                yield locus, f"%{value.name} has a dimension of {dim}: {problem}"


def numbers_in_batch(scope: Scope) -> Iterator[Violation]:
    """Numbers count the samples of the whole batch or come with it, and sizes count those of the shapes around them."""
    sizes = scope.symbols | {MICRO_BATCHES}
    lengths = {symbol for symbol in scope.symbols if isinstance(symbol, Length)}
    numbers = (sizes if scope.mesh is None else {BATCH, MICRO_BATCHES} | lengths) | scope.numbers
    for op, locus in _ops(scope):
        plain = without_axis(without_site(op))
        if not is_operator(plain.target):
            continue
        for place, arg in (*enumerate(plain.args), *plain.kwargs):
            strangers = _symbols(arg) - (sizes if takes_size(plain, place) else numbers)
            if strangers:
                named = ", ".join(sorted(map(str, strangers)))
                yield locus, f"{op.target} is given a number in {named}, which means nothing here"


def _symbols(arg: Arg) -> set[sympy.Basic]:
    if isinstance(arg, tuple):
        return set().union(*map(_symbols, arg))
    return set(arg.free_symbols) if isinstance(arg, sympy.Expr) else set()


def _dim_problem(dim: Dim, scope: Scope) -> str:
    if isinstance(dim, sympy.Expr) and (strangers := dim.free_symbols - scope.symbols):
        names = " or ".join(sorted(str(s) for s in scope.symbols))
        return f"{', '.join(sorted(map(str, strangers)))} is not the batch symbol here, which is {names}"
    return size_problem(dim)


def size_problem(dim: Dim) -> str:
    """What is wrong with a size in batch symbols that are known; empty if nothing is."""
    if isinstance(dim, sympy.Expr):
        for value in _values(dim):
            if not value.is_positive:
                return "not positive"
            if not value.is_rational:
                return "no fraction of the batch"
        return ""
    if isinstance(dim, bool) or not isinstance(dim, int):
        return "a size is a whole number or an expression"
    return "" if dim >= 0 else "negative"


def _values(dim: sympy.Expr) -> Iterator[sympy.Expr]:
    """A size for a large batch, and the shortest and the longest lengths."""
    lengths = lengths_in(dim)
    at_batch = dim.subs(dict.fromkeys(dim.free_symbols - lengths, BATCHES[0]))
    for extreme in range(2) if lengths else range(1):
        yield at_batch.subs({one: one.extremes[extreme] for one in lengths})


def result_count(scope: Scope) -> Iterator[Violation]:
    """An op has as many results as its kind gives."""
    types = scope.graph.types
    for op, locus in _ops(scope):
        expected = 1 if op.target in COLLECTIVES else None
        if expected is None:
            try:
                shapes = expected_shapes(op, types)
            except ShapeError:
                continue
            expected = None if shapes is None else len(shapes)
        if expected is not None and len(op.results) != expected:
            yield locus, f"{op.target} gives {expected} results here, not {len(op.results)}"


def result_types(scope: Scope) -> Iterator[Violation]:
    """Results have the shape and element type that follow from the operands, where the table says it."""
    types = scope.graph.types
    for op, locus in _ops(scope):
        try:
            shapes = expected_shapes(op, types)
        except ShapeError as error:
            yield locus, f"{op.target}: {error}"
            continue
        for value, shape in zip(op.results, shapes or (), strict=False):
            if not same_shape(value.type.shape, shape):
                yield locus, f"%{value.name} is {value.type}, but {op.target} gives [{', '.join(map(str, shape))}]"
        dtype = expected_dtype(op, types)
        for value in op.results if dtype else ():
            if value.type.dtype != dtype:
                yield locus, f"%{value.name} is {value.type}, but {op.target} gives {dtype} here"


def computed_results(scope: Scope) -> Iterator[Violation]:
    """Results have the types that torch gives them, for every op of which the table of shapes does not say them."""
    types = scope.graph.types
    for op, locus in _ops(scope):
        plain = without_site(op)
        if is_operator(plain.target) and (problem := computed_problem(plain, types, scope.batches)):
            yield locus, f"{op.target}: {problem}"


def mesh_axes(scope: Scope) -> Iterator[Violation]:
    """The axes of a mesh have names of their own and at least two devices each, and nest, outermost first.

    Sub-axes of one axis follow one another and leave no device out.
    """
    mesh = scope.mesh or ()
    names = [axis.name for axis in nameable_axes(mesh)]
    if len(set(names)) < len(names):
        yield ("class", scope.owner), "two axes of the mesh have one name"
    for outer, inner in zip(mesh, mesh[1:], strict=False):
        if outer.parent == inner.parent and outer.stride != inner.size * inner.stride:
            yield ("class", scope.owner), f"{outer} and {inner} are no nested parts of one axis"
    if problem := axes_problem(mesh):
        yield ("class", scope.owner), f"{', '.join(map(str, mesh))} are no axes of one group of devices: {problem}"


def axes_problem(mesh: Mesh) -> str:
    """Why axes do not nest in one another, outermost first, with at least two devices each; empty if they do."""
    for axis in mesh:
        if axis.stride < 1 or axis.size < 2:
            return f"{axis} is not of two devices at least, with a stride of at least 1"
    for outer, inner in zip(mesh, mesh[1:], strict=False):
        if outer.stride < inner.stride * inner.size:
            return (
                f"axes stand outermost first, so that before {inner} there is one with a stride of at least "
                f"{inner.stride * inner.size}"
            )
    return ""


def layouts_present(scope: Scope) -> Iterator[Violation]:
    """Values of a sharded graph have one placement per mesh axis, on dimensions they have; others have no layout."""
    for value, locus in _definitions(scope):
        layout = value.layout
        if scope.mesh is None:
            if layout is not None:
                yield locus, f"%{value.name} has a layout, but the graph is not sharded"
        elif layout is None and scope.mesh:
            yield locus, f"%{value.name} has no layout"
        elif layout is not None and len(layout) != len(scope.mesh):
            yield locus, f"%{value.name} has {len(layout)} placements on a mesh of {len(scope.mesh)} axes"
        elif layout is not None and (problem := _layout_problem(value, layout, scope.mesh)):
            yield locus, f"%{value.name} is {problem}"


def _layout_problem(value: Value, layout: Layout, mesh: Mesh) -> str:
    shape = list(value.type.shape)
    for placement, axis in zip(layout, mesh, strict=True):
        if isinstance(placement, Shard) and 0 <= placement.dim < len(shape):
            shape[placement.dim] = shape[placement.dim] * axis.size
    return layout_problem(tuple(shape), layout, mesh)


def layout_problem(shape: tuple[Dim, ...], layout: Layout, mesh: Mesh) -> str:
    """Why a tensor of global `shape` cannot be placed so; empty if it can. A padded size may be any."""
    for placement in layout:
        if isinstance(placement, Shard) and not 0 <= placement.dim < len(shape):
            return f"sharded along dimension {placement.dim}, but has {len(shape)}"
        if isinstance(placement, Shard) and placement.padded:
            alone = [p for p in layout if isinstance(p, Shard) and p.dim == placement.dim] == [placement]
            if placement.outer != 1 or placement.folded or not alone:
                return f"padded along dimension {placement.dim}, of which only one axis may then take a share"
    return cutting_problem(shape, layout, mesh)


def padded_shards(scope: Scope) -> Iterator[Violation]:
    """A padded shard stays what it is: state or a result, read only by ops that leave its filler uncounted."""
    crossing = {v.name for v in scope.graph.inputs} | set(scope.graph.outputs) - scope.only_given
    for value, locus in _definitions(scope):
        if value.name in crossing and _padded_axes(value):
            yield locus, f"%{value.name} enters or leaves as a padded shard, {_shown(value)}"
    for op, locus in _ops(scope):
        if problem := _padding_problem(op, scope):
            yield locus, f"{op.target}: {problem}"


def _padding_problem(op: Op, scope: Scope) -> str:
    """What is wrong with the padded shards that an op reads and makes."""
    read: set[int] = set()
    for position, operand in enumerate(scope.graph.values[name] for name in op.operands):
        if axes := _padded_axes(operand):
            if position not in paddable(op) and not _is_along_others(op, axes, scope):
                return f"would count the filler of %{operand.name}, {_shown(operand)}"
            read |= axes
    if is_spmd(op.target):
        read -= set(positions(scope.mesh or (), str(op.kwarg("axis"))))
    for value in op.results:
        if _padded_axes(value) != read:
            return f"%{value.name} must be padded on the axes on which its operands are, but is {_shown(value)}"
    return ""


def _is_along_others(op: Op, axes: set[int], scope: Scope) -> bool:
    """Whether an op is a collective on none of the axes: it treats all filler of a dimension alike."""
    return op.namespace == "comm" and not axes & set(positions(scope.mesh or (), str(op.kwarg("axis"))))


def _padded_axes(value: Value) -> set[int]:
    return {i for i, p in enumerate(value.layout or ()) if isinstance(p, Shard) and p.padded}


def _shown(value: Value) -> str:
    return f"({', '.join(map(str, value.layout or ()))})"


def collectives(scope: Scope) -> Iterator[Violation]:
    """Collectives name an axis, perhaps one of sub-axes, and lead between the placements of `ir.collectives`.

    Other axes stay as they are.
    """
    for op, locus in _ops(scope):
        if op.target in COLLECTIVES and (problem := _collective_problem(op, scope)):
            yield locus, f"{op.target}: {problem}"


def spmd_ops(scope: Scope) -> Iterator[Violation]:
    """Ops of `ir.spmd` name a mesh axis and the whole size of the dimension that is sharded on it."""
    for op, locus in _ops(scope):
        if is_spmd(op.target):
            axes = [axis.name for axis in scope.mesh or ()]
            if op.kwarg("axis") not in axes:
                told = f"{op.kwarg('axis')!r} is no axis of the mesh; axes are {', '.join(axes) or 'none'}"
                yield locus, f"{op.target}: {told}"
            if type(op.kwarg("size")) is not int and not isinstance(op.kwarg("size"), sympy.Expr):
                yield locus, f"{op.target}: size must be the whole size of the sharded dimension"
            for flag in FLAGS:
                if op.kwarg(flag, True) is not True:
                    yield locus, f"{op.target}: {_FLAG.format(flag)}"


_FLAG = "{} is true, or not written"


def _collective_problem(op: Op, scope: Scope) -> str:
    if scope.mesh is None:
        return "a collective in a graph that is not sharded"
    kind, keywords = COLLECTIVES[op.target], dict(op.kwargs)
    flags = [flag for flag in kind.flags if flag in keywords]
    optional = [name for name in kind.optional if name in keywords]
    if tuple(keywords) != (*kind.keywords, *optional, *flags):
        return f"the keyword arguments must be {', '.join(kind.keywords)}, in this order"
    if wrong := [flag for flag in flags if keywords[flag] is not True]:
        return _FLAG.format(wrong[0])
    if len(op.args) != 1 or not isinstance(op.args[0], Ref):
        return "the only positional argument must be a value"
    if kind.routes and (problem := _route_problem(op, scope)):
        return problem
    axes = [axis.name for axis in nameable_axes(scope.mesh)]
    if keywords["axis"] not in axes:
        return f"{keywords['axis']!r} is no axis of the mesh; axes are {', '.join(axes) or 'none'}"
    if kind.gradients and keywords["grad"] not in kind.gradients:
        return f"grad must be {' or '.join(kind.gradients)}"
    operand, result = scope.graph.values[op.args[0].name], op.result
    rank = len(operand.type.shape)
    for name in kind.keywords:
        value = keywords[name]
        if name.endswith("dim") and not (type(value) is int and 0 <= value < rank):
            return f"{name}={value} of a tensor of rank {rank}"
        if name.endswith("outer") and not (type(value) is int or isinstance(value, sympy.Expr)):
            return f"{name} must be a size"
    return "" if op.target == WAIT else _movement_problem(op, operand, result, scope.mesh)


def _route_problem(op: Op, scope: Scope) -> str:
    """What is wrong with that by which rows are sent: whole numbers, one for each row, where the rows were."""
    by, size, shard = op.kwarg("by"), op.kwarg("size"), op.kwarg("dim")
    if not isinstance(by, Ref) or type(size) is not int or size < 1:
        return "by must be a value, and size among how many it chooses"
    chosen, rows = scope.graph.values[by.name], scope.graph.values[op.operands[0]]
    if shard != 0 or op.kwarg("outer") != 1 or not same_shape(chosen.type.shape, rows.type.shape[:1]):
        return f"%{by.name} must choose for each row of %{rows.name}"
    also = op.kwarg(ALSO, ())
    if not isinstance(also, tuple) or not all(isinstance(other, Ref) for other in also):
        return f"{ALSO} must be a list of values"
    at = next((i for i, axis in enumerate(scope.mesh or ()) if axis.name == op.kwarg("axis")), None)
    for value in (scope.graph.values[name] for name in sent_by(op)):
        if value.type.is_floating or value.type.dtype == "bool" or len(value.type.shape) != 1:
            return f"%{value.name} must be whole numbers, one for each row"
        if at is None or (value.layout or ())[at] != SHARD:
            return f"%{value.name} must be {SHARD} on {op.kwarg('axis')}"
    for other in scope.graph.ops:
        sends = other.namespace == "comm" and other.kwarg("by") == by
        chooses = other.kwarg("routed") is True and other.operands[-1] == by.name
        if (sends or chooses) and other.kwarg("size") != size:
            return f"size must be {other.kwarg('size')}, as of {other.target} that makes %{other.results[0].name}"
    return ""


def routed_rows(scope: Scope) -> Iterator[Violation]:
    """Rows that are where something is that they choose stay within a layer."""
    crossing = {v.name for v in (*scope.graph.inputs, *scope.graph.state)} | set(scope.graph.outputs)
    for value, locus in _definitions(scope):
        if value.name in crossing and any(map(is_routed, value.layout or ())):
            yield locus, f"%{value.name} enters or leaves in rows by what they choose, {_shown(value)}"


def _movement_problem(op: Op, operand: Value, result: Value, mesh: Mesh) -> str:
    """What is wrong with the placements and the shape on the two sides of a collective."""
    name = str(op.kwarg("axis"))
    before, after = operand.layout or (), result.layout or ()
    at, *parts = positions(mesh, name)
    if parts:
        # Sub-axes of one axis: on a mesh that joins them where they agree.
        mesh, groups = joined(mesh, before, after)
        if (at, *parts) not in groups:
            return f"%{operand.name} and %{result.name} are not placed alike on the parts of {name}"
        before, after = (tuple(layout[group[0]] for group in groups) for layout in (before, after))
        at = groups.index((at, *parts))
    source, target = ends(op)
    led = (local_placement(before, mesh, at), source, before, operand, "from")
    come = (local_placement(after, mesh, at), target, after, result, "to")
    for found, wanted, layout, value, way in (led, come):
        if found != wanted:
            mended = collective_mended(op, operand.name, before, after, mesh, at)
            return f"leads {way} {wanted}, but %{value.name} is {layout[at]} on {mesh[at].name}{mended}"
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        if axis != at and old != new:
            return f"changes the placement on {mesh[axis].name}, from {old} to {new}"
        if axis != at and is_routed(old) and any(isinstance(p, Shard) and p.dim == 0 for p in (source, target)):
            return f"moves rows that are on {mesh[axis].name} where something is that they choose"
        if (
            axis > at
            and not COLLECTIVES[op.target].routes
            and (same_factor(old, before[at]) or same_factor(old, after[at]))
        ):
            return f"moves slices that {mesh[axis].name}, which lies inside {mesh[at].name}, cuts further"
    expected = result_shape(op, operand.type.shape, mesh[at].size)
    if not same_shape(expected, result.type.shape) or operand.type.dtype != result.type.dtype:
        return f"%{result.name} is {result.type}, but must be {operand.type.dtype}[{', '.join(map(str, expected))}]"
    return ""


def random_draws(scope: Scope) -> Iterator[Violation]:
    """In a sharded graph, and only there, every op that draws random numbers has a site and says which ranks agree.

    No op draws what cannot be drawn slice by slice.
    """
    sites: set[object] = set()
    for op, locus in _ops(scope):
        if draws_as_a_whole(op):
            yield locus, f"{op.target} draws random numbers that cannot be split over micro-batches and ranks"
        if not is_random(op):
            continue
        if scope.mesh is None or op.namespace != "random":
            if op.namespace == "random":
                yield locus, f"{op.target} in a graph that is not sharded"
            elif scope.mesh is not None:
                yield locus, f"{op.target} draws random numbers, but does not say which ranks draw the same"
            continue
        if problem := random_problem(op, scope.mesh):
            yield locus, f"{op.target}: {problem}"
        if op.kwarg("site") in sites:
            yield locus, f"{op.target}: site {op.kwarg('site')} is taken"
        sites.add(op.kwarg("site"))
