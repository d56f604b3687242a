"""Reads types, layouts, values and op graphs."""

from __future__ import annotations

from collections.abc import Sequence

import sympy

from galvatron.errors import GalvatronError, did_you_mean
from galvatron.ir import limits
from galvatron.ir.functions import with_dims
from galvatron.ir.graph import Arg, Function, Graph, Op, Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Axis, Layout, Mesh, Placement, Shard
from galvatron.ir.ops.targets import parsed
from galvatron.ir.program import State
from galvatron.ir.text import tokens
from galvatron.ir.text.arguments import read_argument
from galvatron.ir.text.calls import read_call
from galvatron.ir.text.scanner import NAME, Scanner, token
from galvatron.ir.text.sources import Sources
from galvatron.ir.text.targets import is_known_target, unknown_target
from galvatron.ir.types import DTYPE_BYTES, Dim, TensorType

_PLACEMENT = token(r"R'|[RPS](?![\w.])")
_AXIS = token(tokens.AXIS)
_AXIS_NAME = token(rf"(?:{tokens.STRING}|{tokens.NAME})(?={tokens.BLANKS}:)")

_PLACEMENTS: dict[str, Placement] = {"R": REPLICATE, "R'": BROADCAST, "P": PARTIAL}


def read_function(s: Scanner, sources: Sources) -> None:
    """`function Clip results 1 gradients (0) { … } backward { … }`, which ops after it may call."""
    s.expect("function")
    at = s.at
    name = s.expected(NAME, "the name of a function")
    if name in sources.functions:
        s.refuse(f"a second function {name!r}", at)
    s.expect("results")
    results = s.integer()
    s.expect("gradients", "(")
    places = s.listed(s.integer, ")")
    s.expect("{")
    forward = read_graph(s, sources)
    s.expect("backward", "{")
    backward = read_graph(s, sources)
    if any(op.function for op in (*forward.ops, *backward.ops)):
        s.refuse("a function that calls another one", at)
    sources.functions[name] = _with_known_dims(Function(name, forward, backward, results, tuple(places)))


def _with_known_dims(function: Function) -> Function:
    """The function with its dimensions, where its graphs are such that they follow: others the verifier refuses."""
    try:
        return with_dims(function)
    except (GalvatronError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError):
        return function


def read_type(s: Scanner) -> TensorType:
    """`f32[B, 4]`."""
    at = s.at
    dtype = s.expected(NAME, "an element type")
    s.expect("[")
    shape = s.listed(lambda: read_argument(s), "]")
    if dtype not in DTYPE_BYTES:
        s.refuse(f"unknown element type {dtype!r}; {did_you_mean(dtype, DTYPE_BYTES)}", at)
    if len(shape) > limits.RANK:
        s.refuse(f"a tensor of more than {limits.RANK} dimensions", at)
    return TensorType(dtype, tuple(_dim(s, dim, at) for dim in shape))


def _dim(s: Scanner, dim: Arg, at: int) -> Dim:
    if type(dim) is int:
        if abs(dim) > limits.SIZE:
            s.refuse(f"a size of more than {limits.SIZE}", at)
        return dim
    if not isinstance(dim, sympy.Expr):
        s.refuse("a size is a whole number or an expression", at)
    return dim


def read_layout(s: Scanner, mesh: Mesh = ()) -> Layout:
    """`(dp:S(0), tp:R')`: a placement for each axis of the mesh; the names of all of them may be left out."""
    at, names = s.at, list[str]()

    def read() -> Placement:
        if (name := s.take(_AXIS_NAME)) is not None:
            s.expect(":")
            names.append(s.unquoted(name, at) if name[0] == '"' else name)
        return _placement(s)

    s.expect("(")
    layout = s.listed(read, ")")
    if names and (len(names) < len(layout) or names != [axis.name for axis in mesh]):
        own = f"the axes of the mesh are {', '.join(axis.name for axis in mesh)}" if mesh else "there is no mesh"
        s.refuse(f"{len(layout)} placements on {', '.join(names)}, but {own}", at)
    return layout


def _placement(s: Scanner) -> Placement:
    kind = s.expected(_PLACEMENT, "a placement")
    if kind != "S":
        return _PLACEMENTS[kind]
    s.expect("(")
    at = s.at
    dim, outer, more = s.integer(), 1, s.more()
    if more and s.accept("outer"):
        s.expect("=")
        outer, more = _dim(s, read_argument(s), at), s.more()
    folded = more and s.accept("folded")
    more = s.more() if folded else more
    padded = more and s.accept("padded")
    more = s.more() if padded else more
    by = ""
    if more and s.accept("by"):
        s.expect("=")
        by = s.value()
    s.expect(")")
    return Shard(dim, outer, padded, folded, by)


def read_mesh(s: Scanner) -> Mesh:
    """`(dp=2@2, tp=2@1)`."""
    at = s.at
    s.expect("(")
    mesh = s.listed(lambda: _axis(s), ")")
    if len(mesh) > limits.MESH_AXES:
        s.refuse(f"a mesh of more than {limits.MESH_AXES} axes", at)
    return mesh


def _axis(s: Scanner) -> Axis:
    at = s.at
    name, _, degree = s.expected(_AXIS, "an axis such as tp=2@1").rpartition("=")
    size, _, stride = degree.partition("@")
    name = s.unquoted(name, at) if name[0] == '"' else name
    if len(name) > limits.STRING_CHARACTERS:
        s.refuse(f"a name of more than {limits.STRING_CHARACTERS} characters", at)
    return Axis(name, s.number(size, at), s.number(stride, at))


def read_value(s: Scanner, mesh: Mesh = ()) -> Value:
    """`%x : f32[B, 4] (dp:S(0), tp:R)`."""
    name = s.value()
    s.expect(":")
    return Value(name, *_typed(s, mesh))


def _typed(s: Scanner, mesh: Mesh) -> tuple[TensorType, Layout | None]:
    return read_type(s), read_layout(s, mesh) if s.stands("(") else None


def read_graph(s: Scanner, sources: Sources, mesh: Mesh = ()) -> Graph:
    """Inputs, state, ops and what is returned, up to the brace that closes the graph."""
    inputs, state, ops, scope, file = [], [], [], "", ""
    while s.accept("input"):
        inputs.append(read_value(s, mesh))
    while s.accept("state"):
        state.append(read_value(s, mesh))
    while not s.accept("return"):
        if s.accept("in"):
            scope = s.name()
            file = s.name() if s.accept("of") else file
        elif s.stands("%") or s.stands("_"):
            ops.append(_op(s, sources, mesh, scope, file))
        else:
            s.unexpected("an op", "'in'", "'return'")
    outputs = s.values()
    s.expect("}")
    return Graph(tuple(inputs), tuple(state), tuple(ops), outputs)


def _op(s: Scanner, sources: Sources, mesh: Mesh, scope: str, file: str) -> Op:
    names = s.values()
    s.expect("=")
    at = s.at
    target = s.expected(NAME, "an op")
    called = parsed(target)
    function = sources.functions.get(called.short) if called.namespace == "function" else None
    if function is None and not is_known_target(target):
        s.refuse(unknown_target(target), at)
    args, keywords = read_call(s, target)
    s.expect(":")
    types = _op_types(s, mesh)
    if len(names) != len(types):
        s.refuse(f"{len(names)} results, but {len(types)} types", at)
    results = tuple(Value(name, *typed) for name, typed in zip(names, types, strict=True))
    return Op(target, args, keywords, results, sources.read(s, scope, file), function)


def _op_types(s: Scanner, mesh: Mesh) -> tuple[tuple[TensorType, Layout | None], ...]:
    if s.accept("("):
        s.expect(")")
        return ()
    return s.separated(lambda: _typed(s, mesh))


def read_state(graph: Graph, state: Sequence[State], precision: str | None) -> tuple[Value, ...]:
    """The state that a graph reads, as its values: what `graph of program` leaves to the program's own tables."""
    read = {name for op in graph.ops for name in op.operands}.union(graph.outputs)
    return tuple(Value(s.name, s.compute_type(precision)) for s in state if s.name in read)
