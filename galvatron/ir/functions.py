"""Functions with a backward of their own: along which dimensions they run on slices, derived from their two graphs.

A function has no line in the table of operators: its graphs say what a line would. A factor of the operands may be
sharded where every op of both graphs runs on slices of it as the table says, without communication: then the results
are slices or partial sums, and so are, given the like of their gradients, the gradients of the operands. So nothing
that a program from a file says of a function can make it wrong.

Nor is its backward linear in the gradients as that of an operator is: it may clamp them. Where a rank or a micro-batch
knows but a term of their sum, only one that is known to be linear may run (`Function.linear`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from math import prod

import sympy

from galvatron.ir.factors import Factor, FactorPlace, FactorTable
from galvatron.ir.graph import Function, Graph, Op, Ref, Value
from galvatron.ir.local_arguments import with_local_arguments
from galvatron.ir.names import Names
from galvatron.ir.ops.functions import in_samples, samples_of
from galvatron.ir.ops.notation import DimNames, OpDims
from galvatron.ir.ops.table import derived, operator_of
from galvatron.ir.types import BATCH, Dim, TensorType, exact_quotient, simplify_dim


def with_dims(function: Function) -> Function:
    """The function with the dimensions that follow from its graphs, and whether its backward is linear."""
    return replace(function, dims=_named(function).dims, linear=_is_linear(function))


def functions_of(graphs: Iterable[Graph]) -> tuple[Function, ...]:
    """The functions that ops of the graphs call, each once, in order."""
    return tuple(dict.fromkeys(op.function for graph in graphs for op in graph.ops if op.function is not None))


def signature_problem(function: Function) -> str:
    """What is wrong with a function whose graphs are valid by themselves; empty if nothing is."""
    forward, backward = function.forward, function.backward
    types = forward.types | backward.types
    if not (function.name.isidentifier() and function.name.isascii()):
        return f"{function.name!r} is no name of a function"
    if forward.state or backward.state:
        return "it has state: what a function reads are its operands"
    if not 0 < function.results <= len(forward.outputs):
        return f"it cannot have {function.results} results of {len(forward.outputs)} outputs"
    saved = tuple(forward.values[name] for name in function.saved)
    if backward.inputs[: len(saved)] != saved:
        return "its backward must first read what its forward saves"
    results = tuple(v.type for v in function.made if v.type.is_floating)
    if tuple(v.type for v in function.gradients) != results:
        return "its backward must read the gradient of each floating result"
    own = {*(v.name for v in function.gradients), *(v.name for op in backward.ops for v in op.results)}
    if twice := sorted(own & forward.types.keys()):
        return f"%{twice[0]} is a value of its forward and another one of its backward"
    places = function.differentiated
    if sorted(set(places)) != list(places) or not all(0 <= i < len(forward.inputs) for i in places):
        return f"there are no operands {', '.join(map(str, places))}, in this order"
    if len(places) != len(backward.outputs):
        return f"its backward makes {len(backward.outputs)} gradients, not {len(places)}"
    for place, name in zip(places, backward.outputs, strict=True):
        operand = forward.inputs[place]
        if types[name] != operand.type or not operand.type.is_floating:
            return f"%{name} is {types[name]}, but the gradient of %{operand.name} is {operand.type}"
    return ""


def call_problem(op: Op, operands: Sequence[TensorType]) -> str:
    """What is wrong with the operands and results, seen whole, of an op that calls a function; empty if nothing is."""
    function = op.function
    assert function is not None
    if op.kwargs or not all(isinstance(arg, Ref) for arg in op.args):
        return "the operands of a function are tensors"
    samples = samples_of(function, operands)
    for kind, given, declared in (
        ("operands", operands, function.forward.inputs),
        ("results", [v.type for v in op.results], function.made),
    ):
        wanted = [in_samples(v.type, samples) for v in declared]
        if list(given) != wanted:
            return f"its {kind} are {_told(given)}, but those of @{function.name} {_told(wanted)}"
    return ""


def _told(types: Iterable[TensorType]) -> str:
    return ", ".join(map(str, types)) or "none"


class _Uncut(Enum):
    """What a value is whose elements do not lie along a factor: see `micro_batches`, where this is over time."""

    SAME = "same"
    SUM = "sum"


_SAME, _SUM = _Uncut
_State = Factor | _Uncut


@dataclass(frozen=True)
class _Named:
    """The dimensions of a function, and in which dimensions of each value of its graphs the shardable ones are."""

    dims: OpDims
    values: Mapping[str, tuple[DimNames, ...]]


@derived(maxsize=1 << 8)
def _named(function: Function) -> _Named:
    joint = _joint(function)
    table = FactorTable(joint)
    ends = [*function.forward.inputs, *function.made]
    names: dict[FactorPlace, str] = {}
    sizes: dict[str, Dim] = {}
    whole: dict[FactorPlace, str] = {}
    for value in ends:
        for place in _places(table, value):
            if place in names or place in whole:
                continue
            name = f"d{len(sizes)}"
            sizes[name] = place[1].size
            connected = table.connected([place])
            if _runs_along(function, joint, table, connected):
                names.update((place, name) for place in connected)
            else:
                whole[place] = name

    def named(value: Value, names: Mapping[FactorPlace, str]) -> tuple[DimNames, ...]:
        return tuple(
            tuple(names[value.name, f] for f in table.factors(value.name, dim) if (value.name, f) in names)
            for dim in range(len(value.type.shape))
        )

    operands, results = (
        tuple(named(value, names | whole) for value in values) for values in (function.forward.inputs, function.made)
    )
    return _Named(
        OpDims(operands, results, sizes, frozenset(whole.values())),
        {name: named(value, names) for name, value in joint.values.items()},
    )


def _places(table: FactorTable, value: Value) -> list[FactorPlace]:
    dims = range(len(value.type.shape))
    return [(value.name, factor) for dim in dims for factor in table.factors(value.name, dim)]


def on_slices(function: Function, ways: Mapping[str, int], samples: sympy.Expr) -> Function:
    """What a rank computes of a function of which some dimensions are cut, each so many ways.

    Args:
        samples: what the batch size of the function stands for, over all ranks.
    """
    named = _named(function)

    def size(dim: Dim) -> Dim:
        return dim if isinstance(dim, int) else simplify_dim(dim.subs(BATCH, samples))

    def local(value: Value) -> Value:
        cut = (prod(ways.get(name, 1) for name in names) for names in named.values[value.name])
        shape = (exact_quotient(size(dim), n) for dim, n in zip(value.type.shape, cut, strict=True))
        return Value(value.name, value.type.with_shape(tuple(dim for dim in shape if dim is not None)))

    def of(graph: Graph) -> Graph:
        ops = tuple(
            with_local_arguments(
                replace(op, results=tuple(map(local, op.results))), [local(graph.values[n]) for n in op.operands], size
            )
            for op in graph.ops
        )
        return replace(graph, inputs=tuple(map(local, graph.inputs)), ops=ops)

    return replace(function, forward=of(function.forward), backward=of(function.backward), dims=None)


def _joint(function: Function) -> Graph:
    """Both graphs as one, in which every result is one with its gradient, and every operand with its own."""
    pairs = [
        *zip((v for v in function.made if v.type.is_floating), function.gradients, strict=True),
        *(
            (function.forward.inputs[place], function.backward.values[name])
            for place, name in zip(function.differentiated, function.backward.outputs, strict=True)
        ),
    ]
    forward, backward = function.forward, function.backward
    names = Names((*forward.values, *backward.values))
    links = tuple(
        Op("aten.mul.Tensor", (Ref(v.name), Ref(g.name)), (), (Value(names.fresh("pair"), v.type),)) for v, g in pairs
    )
    return Graph((*forward.inputs, *function.gradients), (), (*forward.ops, *backward.ops, *links), ())


def _runs_along(function: Function, joint: Graph, table: FactorTable, places: frozenset[FactorPlace]) -> bool:
    """Whether both graphs run on slices of a factor, which lies at these places."""
    along = dict(places)
    if len(along) < len(places):
        return False  # one value would be sharded twice
    states: dict[str, _State] = {v.name: along.get(v.name, _SAME) for v in function.forward.inputs}
    forward = len(function.forward.ops)
    if not _follow(range(forward), joint, table, along, states):
        return False
    results = [states[v.name] for v in function.made]
    if not (all(isinstance(state, Factor) for state in results) or all(state is _SUM for state in results)):
        return False
    states.update((v.name, along.get(v.name, _SAME)) for v in function.gradients)
    if not _follow(range(forward, forward + len(function.backward.ops)), joint, table, along, states):
        return False
    return all(
        states[name] == along.get(function.forward.inputs[place].name, _SUM)
        for place, name in zip(function.differentiated, function.backward.outputs, strict=True)
    )


def _is_linear(function: Function) -> bool:
    """Whether the backward makes terms of sums of terms of sums, given all that is saved whole."""
    graph = function.backward
    states: dict[str, _State] = {v.name: _SUM if v in function.gradients else _SAME for v in graph.inputs}
    return _follow(range(len(graph.ops)), graph, FactorTable(graph), {}, states) and all(
        states[name] is _SUM for name in graph.outputs
    )


def _follow(
    indices: Iterable[int], joint: Graph, table: FactorTable, along: dict[str, Factor], states: dict[str, _State]
) -> bool:
    """Adds what some ops of the joint graph make of their operands; False where one does not run on slices."""
    for index in indices:
        op = joint.ops[index]
        made = _made(index, op, table, along, [states[name] for name in op.operands])
        if made is None:
            return False
        states.update((v.name, along.get(v.name, made)) for v in op.results)
    return True


def _made(index: int, op: Op, table: FactorTable, along: dict[str, Factor], operands: list[_State]) -> _State | None:
    """What the results of an op are that do not have the factor; None where it does not run on slices."""
    given = tuple(along.get(name) for name in op.operands)
    results = tuple(along.get(v.name) for v in op.results)
    if not any(given) and not any(results):
        return _uncut(op, table.dims[index], operands)
    dims = table.dims[index]
    if dims is None or not any(
        (f.operands, f.results) == (given, results) for f in table.op_factors(index) if f.name not in dims.spmd
    ):
        return None
    if any(results):
        return _SAME if all(results) and _SUM not in operands else None
    added = {i for i, state in enumerate(operands) if i in dims.sums and not isinstance(state, Factor)}
    fits = all(state is (_SUM if i in added else _SAME) for i, state in enumerate(operands) if not given[i])
    return _SUM if fits else None


def _uncut(op: Op, dims: OpDims | None, operands: list[_State]) -> _State | None:
    """What an op makes of operands without the factor."""
    if all(state is _SAME for state in operands):
        return _SAME
    if operator_of(op).casts and op.result.type.is_floating:  # linear, to rounding
        return operands[0]
    partial = {i for i, state in enumerate(operands) if state is _SUM}
    if dims is None:
        return None
    if dims.sums and not dims.products:
        return _SUM if partial == set(range(len(operands))) == dims.sums else None
    factors = partial & dims.products
    complete = not dims.sums or len(dims.sums) + len(dims.products) == len(operands)
    return _SUM if complete and len(factors) == 1 and partial - factors == dims.sums else None
