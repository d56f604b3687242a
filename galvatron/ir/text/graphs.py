"""Reads types, layouts, values and op graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import sympy

from galvatron.errors import GalvatronError, did_you_mean
from galvatron.ir import limits
from galvatron.ir.functions import with_dims
from galvatron.ir.graph import Arg, Function, Graph, Op, Source, Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Axis, Layout, Placement, Shard
from galvatron.ir.ops.targets import parsed
from galvatron.ir.program import State
from galvatron.ir.text import tokens
from galvatron.ir.text.arguments import read_argument
from galvatron.ir.text.scanner import KEY, NAME, Scanner, token
from galvatron.ir.text.targets import is_known_target, unknown_target
from galvatron.ir.types import DTYPE_BYTES, Dim, TensorType

_PLACEMENT = token(r"R'|[RPS](?![\w.])")
_AXIS = token(tokens.AXIS)
_SOURCE = token("#[0-9]+")

_PLACEMENTS: dict[str, Placement] = {"R": REPLICATE, "R'": BROADCAST, "P": PARTIAL}

SourceTable = dict[str, tuple[str, int, str]]
"""File, line and code by the number that ops give."""


class SourceNumbers:
    """The numbers of sources that ops were given so far, and where each was first: the table comes last in a file.

    And the functions so far, which ops call by name.
    """

    def __init__(self) -> None:
        self.first: dict[str, int] = {}
        self.functions: dict[str, Function] = {}

    def read(self, s: Scanner, scope: str) -> Source | None:
        """The number after an op, in a place where the file will be."""
        at = s.at
        number = s.take(_SOURCE)
        if number is None:
            return None
        self.first.setdefault(number, at)
        return Source(number, 0, scope=scope)

    def check(self, s: Scanner, table: SourceTable) -> None:
        """Refuses a number that the table lacks."""
        for number, at in self.first.items():
            if number not in table:
                s.refuse(f"source {number} is not in the table", at)


def with_sources(graph: Graph, table: SourceTable, functions: Mapping[str, Function]) -> Graph:
    """The graph with the entries of a table in place of their numbers, calling functions that have them too."""

    def sourced(op: Op) -> Op:
        function = op.function and functions[op.function.name]
        if op.source is None:
            return op if function is None else replace(op, function=function)
        return replace(op, source=Source(*table[op.source.file], op.source.scope), function=function)

    return replace(graph, ops=tuple(map(sourced, graph.ops)))


def functions_with_sources(functions: Mapping[str, Function], table: SourceTable) -> dict[str, Function]:
    """Functions with the entries of a table in place of their numbers."""
    return {
        name: replace(
            function,
            forward=with_sources(function.forward, table, {}),
            backward=with_sources(function.backward, table, {}),
        )
        for name, function in functions.items()
    }


def read_function(s: Scanner, sources: SourceNumbers) -> None:
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


def read_layout(s: Scanner) -> Layout:
    """`(S(0), R')`: a placement for each axis of the mesh."""
    s.expect("(")
    return s.listed(lambda: _placement(s), ")")


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
    padded = (s.more() if folded else more) and s.accept("padded")
    s.expect(")")
    return Shard(dim, outer, padded, folded)


def read_mesh(s: Scanner) -> tuple[Axis, ...]:
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


def read_value(s: Scanner) -> Value:
    """`%x : f32[B, 4] (S(0), R)`."""
    name = s.value()
    s.expect(":")
    return Value(name, *_typed(s))


def _typed(s: Scanner) -> tuple[TensorType, Layout | None]:
    return read_type(s), read_layout(s) if s.stands("(") else None


def read_graph(s: Scanner, sources: SourceNumbers) -> Graph:
    """Inputs, state, ops and what is returned, up to the brace that closes the graph."""
    inputs, state, ops, scope = [], [], [], ""
    while s.accept("input"):
        inputs.append(read_value(s))
    while s.accept("state"):
        state.append(read_value(s))
    while not s.accept("return"):
        if s.accept("in"):
            scope = s.name()
        elif s.stands("%") or s.stands("_"):
            ops.append(_op(s, scope, sources))
        else:
            s.unexpected("an op", "'in'", "'return'")
    outputs = s.values()
    s.expect("}")
    return Graph(tuple(inputs), tuple(state), tuple(ops), outputs)


def _op(s: Scanner, scope: str, sources: SourceNumbers) -> Op:
    names = s.values()
    s.expect("=")
    at = s.at
    target = s.expected(NAME, "an op")
    called = parsed(target)
    function = sources.functions.get(called.short) if called.namespace == "function" else None
    if function is None and not is_known_target(target):
        s.refuse(unknown_target(target), at)
    args, keywords = _op_arguments(s, at)
    s.expect(":")
    types = _op_types(s)
    if len(names) != len(types):
        s.refuse(f"{len(names)} results, but {len(types)} types", at)
    results = tuple(Value(name, *typed) for name, typed in zip(names, types, strict=True))
    return Op(target, args, keywords, results, sources.read(s, scope), function)


def _op_arguments(s: Scanner, at: int) -> tuple[tuple[Arg, ...], tuple[tuple[str, Arg], ...]]:
    """Positional arguments and those with keywords, of the op at `at`."""
    positional: list[Arg] = []
    keywords: dict[str, Arg] = {}

    def read() -> None:
        key = s.take(KEY)
        if key is not None:
            s.expect("=")
            if key in keywords:
                s.refuse("a keyword argument is given twice", at)
            keywords[key] = read_argument(s)
        elif keywords:
            s.refuse("a positional argument after one with a keyword", at)
        else:
            positional.append(read_argument(s))

    s.expect("(")
    s.listed(read, ")")
    return tuple(positional), tuple(keywords.items())


def _op_types(s: Scanner) -> tuple[tuple[TensorType, Layout | None], ...]:
    if s.accept("("):
        s.expect(")")
        return ()
    return s.separated(lambda: _typed(s))


def read_state(graph: Graph, state: Sequence[State], precision: str | None) -> tuple[Value, ...]:
    """The state that a graph reads, as its values: what `graph of program` leaves to the program's own tables."""
    read = {name for op in graph.ops for name in op.operands}.union(graph.outputs)
    return tuple(Value(s.name, s.compute_type(precision)) for s in state if s.name in read)
