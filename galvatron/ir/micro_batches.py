"""Micro-batches as an axis in time: whether the sum over the micro-batches of a step is the loss of the whole batch.

What a mesh axis does to a value in space, the micro-batches of a step do in time. Over them a value is

| state | the value in each micro-batch | its gradient |
|---|---|---|
| `Along(dim, inner)` | of its own samples, a factor of a dimension | of the same samples |
| `SUM` | a term of a sum | the same in each |
| `SAME` | the same in each | a term of a sum |

just as under data parallelism, and the rules of the op table say what an op makes of them. But in the middle of a step
micro-batches cannot exchange anything. Terms are added up only at the very end (the loss, the other results, and
gradients), and the only conversion is to count a value once, from `SAME` to `SUM`, by dividing it by the number of
micro-batches. An op that needs any other *couples* samples: so it sees a part of the batch where the model saw all of
it, and several micro-batches are not exact, unless that op and all that follows it run once per step
(`LayerKind.EPILOGUE`, `LayerKind.CLOSING`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

import sympy

from galvatron.ir.gradients import takes_terms
from galvatron.ir.graph import Arg, Graph, Op, Ref, Source, Value
from galvatron.ir.ops.foreign import is_foreign, whole_note
from galvatron.ir.ops.notation import DimNames, OpDims
from galvatron.ir.ops.schemas import is_operator, schema_of
from galvatron.ir.ops.table import derived, differentiated, op_dims, operator_of, summands
from galvatron.ir.program import Layer, LayerClass, LayerKind, Program
from galvatron.ir.types import BATCH, MICRO_BATCHES, Dim, TensorType, exact_quotient, simplify_dim
from galvatron.ir.whole import layers_seen_whole


class Whole(Enum):
    """States of values that are not cut along the samples."""

    SAME = "same"
    SUM = "sum"
    COUPLED = "coupled"
    """Only known once all micro-batches are there."""


SAME, SUM, COUPLED = Whole


@dataclass(frozen=True)
class Along:
    """Each micro-batch has its own samples: the factor of dimension `dim` that counts them, of which each spans `inner`
    elements."""

    dim: int
    inner: Dim


Spread = Along | Whole


@dataclass(frozen=True)
class Coupling:
    """An op that needs more of the batch than one micro-batch, and why."""

    op: Op
    reason: str

    def __str__(self) -> str:
        source = self.op.source
        line = f"{source}: `{source.code}`: " if source else ""
        return f"{line}{self.op.name} {self.reason}"


@dataclass(frozen=True)
class Flow:
    """The state of every value of a graph over the micro-batches of a step.

    `once` are operands (by name) and numbers (by argument) that have to be counted once and are not, `couplings` the
    ops that couple samples first; both by the name of the op's first result. What follows a coupling is `COUPLED`.
    `differentiable` are the values that may have a gradient.
    """

    states: Mapping[str, Spread]
    once: Mapping[str, tuple[str | int, ...]]
    couplings: Mapping[str, Coupling]
    differentiable: frozenset[str]


def batch_state(type_: TensorType) -> Spread:
    """The state of a batch input, or of what is made anew in each micro-batch: along the batch where it has one."""
    for dim, size in enumerate(type_.shape):
        inner = exact_quotient(size, BATCH) if not isinstance(size, int) else None
        if inner is not None:
            return Along(dim, inner)
    return SAME


def flow(graph: Graph, given: Mapping[str, Spread], *, once: bool = False, differentiable: Iterable[str] = ()) -> Flow:
    """Follows states through a graph, written in the global batch size, from those `given` for its inputs and state
    (`SAME` by default); what runs `once` per step has the whole batch before it. Of the inputs some may have a
    gradient, of the state all may."""
    types = {name: value.type for name, value in graph.values.items()}
    states: dict[str, Spread] = {v.name: given.get(v.name, SAME) for v in (*graph.inputs, *graph.state)}
    uncounted: dict[str, tuple[str | int, ...]] = {}
    couplings: dict[str, Coupling] = {}
    trained = {*differentiable, *(v.name for v in graph.state if v.type.is_floating)}
    for op in graph.ops:
        operands = [states[name] for name in op.operands]
        made: tuple[Spread, ...] = (COUPLED,) * len(op.results)
        in_terms = not trained.isdisjoint(differentiated(op))
        trained.update(v.name for v in op.results if in_terms and v.type.is_floating)
        if once and not counts(op) and all(state is SAME for state in operands):
            made = (SAME,) * len(op.results)
        elif COUPLED not in operands:
            try:
                made, counted = _checked(op, operands, _results(op, types, operands, in_terms))
                if counted:
                    uncounted[op.results[0].name] = tuple(counted)
            except _Couples as found:
                couplings[op.results[0].name] = Coupling(op, str(found))
        states.update((value.name, state) for value, state in zip(op.results, made, strict=True))
    return Flow(states, uncounted, couplings, frozenset(trained))


class _Couples(Exception):
    """The op couples samples; the message goes on from its name."""


_Made = tuple[tuple[Spread, ...], list[str | int]]
"""The states of an op's results, and what it has to count once."""


def _results(op: Op, types: Mapping[str, TensorType], operands: list[Spread], in_terms: bool) -> _Made:
    """What an op makes of its operands; the gradient of what is `SAME` comes `in_terms`, if there may be one.

    Raises:
        _Couples: it needs more than a micro-batch has.
    """
    batched = any(map(_is_batched, op.results))
    same = all(state is SAME for state in operands)
    number = _added_number(op)
    if same and is_counted(op):
        return (SUM,), []
    is_share = operands == [SUM] and number is not None and _is_share(op.args[number])
    rest = (*(arg for i, arg in enumerate(op.args) if not (is_share and i == number)), *(arg for _, arg in op.kwargs))
    if any(map(_mentions, rest)):
        raise _Couples(_COUNTS)
    if same and not batched:
        if in_terms and not takes_terms(op):
            raise _Couples("has a backward that is not known to be linear in the gradient, a sum over the batch")
        return (SAME,) * len(op.results), []
    dims = op_dims(op, types)
    shapes = (*(types[name].shape for name in op.operands), *(value.type.shape for value in op.results))
    if dims is None and is_foreign(op.target):
        raise _Couples(f"is computed on all samples at once, since {whole_note(op.target)}")
    if dims is None or len(dims.operands) != len(operands) or not dims.agree(shapes):
        raise _Couples("is computed on all samples at once")
    if batched or any(isinstance(state, Along) for state in operands):
        return _along(op, types, dims, operands)
    return _linear(op, types, dims, operands)


def _checked(op: Op, operands: list[Spread], found: _Made) -> _Made:
    """What an op makes, where a micro-batch can say it in its own number of samples.

    Raises:
        _Couples: it cannot.
    """
    if not _sizes_are_of_samples(op, operands, found[0]):
        raise _Couples("has the batch size for a size that is not of its samples")
    return found


def _sizes_are_of_samples(op: Op, operands: list[Spread], made: tuple[Spread, ...]) -> bool:
    """Whether the batch size is in the sizes of an op as often as its results have samples: a micro-batch writes its
    own for each."""
    if not all(_is_of_samples(value.type, state) for value, state in zip(op.results, made, strict=True)):
        return False
    if not is_operator(op.target):
        return True
    operator = operator_of(op)
    cuts = any(isinstance(state, Along) and state.dim == op.get("dim") for state in operands)
    told = operator.sizes.union(operator.bounds if cuts else ())
    return not any(
        parameter.kind in ("SymInt", "int") and parameter.name not in told and _has_batch(op[parameter.name])
        for parameter in schema_of(op.target).parameters
    )


def _is_of_samples(type_: TensorType, state: Spread) -> bool:
    rest = list(type_.shape)
    if isinstance(state, Along):
        outer = exact_quotient(rest[state.dim], simplify_dim(state.inner * BATCH))
        if outer is None:
            return False
        rest[state.dim] = simplify_dim(state.inner * outer)
    return not _has_batch(tuple(rest))


def _has_batch(arg: Arg) -> bool:
    items = arg if isinstance(arg, tuple) else (arg,)
    return any(isinstance(item, sympy.Expr) and item.has(BATCH) for item in items)


_SHARE = "aten.div.Tensor"


def counted(name: str, made: Value, source: Source | None) -> Op:
    """The op that counts a value once: it is divided by the number of micro-batches."""
    return Op(_SHARE, (Ref(name), MICRO_BATCHES), (), (made,), source)


def is_counted(op: Op) -> bool:
    """Whether the op counts a value once."""
    return op.target == _SHARE and len(op.args) > 1 and op.args[1] == MICRO_BATCHES


def statistic_state(op: Op) -> Spread:
    """The state of what an op makes once per step of the whole batch."""
    return SUM if is_counted(op) else SAME


def counts(op: Op) -> bool:
    """Whether an op has the number of micro-batches in an argument, as what is counted once has."""
    return any(map(_mentions, (*op.args, *(arg for _, arg in op.kwargs))))


def _mentions(arg: Arg) -> bool:
    """Whether an argument depends on the number of micro-batches."""
    return (
        any(map(_mentions, arg)) if isinstance(arg, tuple) else isinstance(arg, sympy.Expr) and arg.has(MICRO_BATCHES)
    )


def _along(op: Op, types: Mapping[str, TensorType], dims: OpDims, operands: list[Spread]) -> _Made:
    """An op whose operands or results have samples: along one factor of one of its named dimensions."""
    found = {_factor(tensor, dims, state) for tensor, state in zip(dims.operands, operands, strict=True)} - {None}
    if not found:
        made = (_factor(t, dims, batch_state(v.type)) for t, v in zip(dims.results, op.results, strict=True))
        found = set(made) - {None}
    if len(found) > 1 and _ACROSS not in found:
        raise _Couples("pairs samples with one another")
    factor = next(iter(found), _ACROSS)
    if _ACROSS in found or isinstance(factor, str) or factor is None:
        raise _Couples("works across the samples of the batch")
    results = [_place(tensor, dims, factor) for tensor in dims.results]
    summed = all(place is None for place in results)
    if not summed and None in results:
        raise _Couples("works across the samples of the batch")
    if summed and any(map(_is_batched, op.results)):
        raise _Couples("pairs samples with one another")
    counted: list[str] = []
    for position, (tensor, state) in enumerate(zip(dims.operands, operands, strict=True)):
        place = _place(tensor, dims, factor)
        if place is not None and state != place:
            raise _Couples("reads what belongs to all samples beside what belongs to its own")
        if place is None and summed and position in dims.sums:
            counted += [op.operands[position]] if state is SAME else []
        elif place is None and state is SUM:
            raise _Couples(_PART_OF_A_SUM.format("reads"))
    return tuple(SUM if place is None else place for place in results), _fractions(types, counted)


def _linear(op: Op, types: Mapping[str, TensorType], dims: OpDims, operands: list[Spread]) -> _Made:
    """An op on sums over the batch: terms pass through what is linear in them."""
    results: tuple[Spread, ...] = (SUM,) * len(op.results)
    if _is_cast(op):
        return results, []
    number = _added_number(op)
    if number is not None:
        is_share = _is_share(op.args[number])
        return results, [] if is_share else [number]
    partial = {i for i, state in enumerate(operands) if state is SUM}
    multiplied = partial & dims.products
    complete = not dims.sums or len(dims.sums) + len(dims.products) == len(operands)
    if partial - multiplied <= dims.sums and complete and len(multiplied) == bool(dims.products):
        return results, _fractions(types, [op.operands[i] for i in sorted(dims.sums - partial)])
    raise _Couples(_PART_OF_A_SUM.format("is not linear in"))


_COUNTS = "counts micro-batches, which the model does not have"
_PART_OF_A_SUM = "{} a sum over the batch, of which a micro-batch knows only its own part"


def _is_cast(op: Op) -> bool:
    """Whether the op only changes the element type, to one that has fractions: linear, to rounding."""
    return operator_of(op).casts and op.result.type.is_floating


def _added_number(op: Op) -> int | None:
    """Which argument is a number that the op adds to its only operand."""
    if len(op.operands) != 1:
        return None
    places = (i for i in summands(op) if i < len(op.args) and isinstance(op.args[i], (int, float, sympy.Expr)))
    return next(places, None)


def _is_share(number: Arg) -> bool:
    """Whether a number is a share of another one, `c / m`."""
    return isinstance(number, sympy.Expr) and not sympy.expand(number * MICRO_BATCHES).has(MICRO_BATCHES)


def _fractions(types: Mapping[str, TensorType], operands: list[str]) -> list[str | int]:
    """Operands that are to be divided by the number of micro-batches.

    Raises:
        _Couples: one is a whole number.
    """
    if not all(types[name].is_floating for name in operands):
        raise _Couples("adds a whole number to a sum over the batch, which every micro-batch would do")
    return list(operands)


_ACROSS = "across"
"""Stands for a dimension of samples that the op does not let be cut."""

_Factor = tuple[str, Dim]
"""A named dimension of an op, and how many of its elements one sample spans."""


def _is_batched(value: Value) -> bool:
    return isinstance(batch_state(value.type), Along)


def _factor(tensor: tuple[DimNames, ...], dims: OpDims, state: Spread) -> _Factor | str | None:
    """Which factor of which named dimension the samples of an operand are; None for one without."""
    if not isinstance(state, Along):
        return None
    for name, offset in _offsets(tensor[state.dim], dims):
        relative = exact_quotient(state.inner, offset)
        if relative is not None and exact_quotient(dims.sizes[name], simplify_dim(relative * BATCH)) is not None:
            return _ACROSS if name in dims.indivisible or name in dims.spmd else (name, relative)
    return _ACROSS


def _place(tensor: tuple[DimNames, ...], dims: OpDims, factor: _Factor) -> Along | None:
    """Where a tensor has a factor."""
    name, relative = factor
    for dim, names in enumerate(tensor):
        for other, offset in _offsets(names, dims):
            if other == name:
                return Along(dim, simplify_dim(offset * relative))
    return None


def _offsets(names: DimNames, dims: OpDims) -> Iterator[tuple[str, Dim]]:
    """The named factors of a dimension, innermost first, with the product of those inside each."""
    offset: Dim = 1
    for name in reversed(names):
        yield name, offset
        offset = simplify_dim(offset * dims.sizes[name])


def coupling(program: Program) -> Coupling | None:
    """Why several micro-batches of a program of layers would not add up to the whole batch; None where they do.

    Of an epilogue it is the schedule that must see to it that all micro-batches are there.
    """
    states, problem = _followed(program.classes, program.all_layers, program.inputs)
    if problem is None and states[program.output] is not SUM:
        maker = _maker(program.classes, program.all_layers, program.output)
        return Coupling(maker, "makes a loss that every micro-batch would add once more")
    return problem


def spreads(program: Program) -> Mapping[str, Spread]:
    """The states of the values of a program of layers without couplings, up to its epilogue, by their names."""
    return _followed(program.classes, program.all_layers, program.inputs)[0]


def adds_up(program: Program, layers: Iterable[Layer], results: Iterable[str]) -> bool:
    """Whether these results of layers, computed of parts of the samples that the layers read of the batch, are terms of
    what they are of all samples."""
    states: dict[str, Spread] = {value.name: batch_state(value.type) for value in program.inputs}
    for seen in layers_seen_whole(program.classes, layers, program.inputs):
        formals = [value.name for value in seen.graph.inputs]
        given = (states[name] for name in seen.layer.operands)
        found = flow(seen.graph, dict(zip(formals, given, strict=True)))
        if found.couplings or found.once:
            return False
        states.update(zip(seen.layer.results, (found.states[name] for name in seen.graph.outputs), strict=True))
    return all(states[name] is SUM for name in results)


def why_not_repeated(program: Program) -> str:
    """Why the loss of a batch in which every sample stands several times, divided by how often, is not the loss of the
    batch; empty where it is. What a step computes of the whole batch, and the number of samples, are those of the batch
    itself."""
    found, problem = _followed(program.classes, program.all_layers, program.inputs)
    if problem is None and found[program.output] is not SUM:
        return "the loss is no sum over samples"
    if problem is not None or any(layer.kind is LayerKind.EPILOGUE for layer in program.all_layers):
        return f"the loss couples samples ({problem or epilogue_coupling(program)})"
    closings = (layer for layer in program.all_layers if layer.kind is LayerKind.CLOSING)
    written = {name for layer in closings for name in layer.operands} | {update.value for update in program.updates}
    if any(found.get(name) is SUM for name in written):
        return "forward adds up what it writes into the model's state over samples"
    return ""


@derived(maxsize=16)
def _followed(
    classes: tuple[LayerClass, ...], layers: tuple[Layer, ...], inputs: tuple[Value, ...]
) -> tuple[Mapping[str, Spread], Coupling | None]:
    """The states of values up to the first coupling, which comes second."""
    states: dict[str, Spread] = {value.name: batch_state(value.type) for value in inputs}
    flows: dict[Hashable, Flow] = {}
    whole = {value.name for value in inputs}
    trained: set[str] = set()
    for seen in layers_seen_whole(classes, layers, inputs):
        layer, graph = seen.layer, seen.graph
        if layer.kind in _BEHIND:
            # It runs once: a share would stand for the whole.
            if share := next(filter(counts, graph.ops), None):
                return states, Coupling(share, _COUNTS)
            if problem := _collected_problem(graph, [states[name] for name in layer.operands], layer, whole):
                return states, problem
            states.update(dict.fromkeys(layer.results, _BEHIND[layer.kind]))
            continue
        once = layer.kind is LayerKind.STEP
        whole.update(layer.results if once else ())
        # Of the inputs a layer that runs once reads all samples.
        given = tuple(SAME if once and isinstance(states[name], Along) else states[name] for name in layer.operands)
        formals = [value.name for value in graph.inputs]
        differentiable = tuple(f for name, f in zip(layer.operands, formals, strict=True) if name in trained)
        key = layer.cls, seen.samples, given, differentiable, once
        if key not in flows:
            states_given = dict(zip(formals, given, strict=True))
            flows[key] = flow(graph, states_given, once=once, differentiable=differentiable)
        found = zip(layer.results, graph.outputs, strict=True)
        trained.update(name for name, formal in found if formal in flows[key].differentiable)
        if problem := _problem(graph, flows[key]):
            return states, problem
        made = (flows[key].states[formal] for formal in graph.outputs)
        states.update(zip(layer.results, made, strict=True))
    return states, None


_BEHIND = {LayerKind.EPILOGUE: SUM, LayerKind.CLOSING: SAME}
"""Layers that run behind all micro-batches, and what their results are: of the loss there is one in each step."""


def _maker(classes: tuple[LayerClass, ...], layers: tuple[Layer, ...], output: str) -> Op:
    """The op that makes the loss; before it is summed up, where it is in a local graph."""
    layer = next(layer for layer in layers if output in layer.results)
    graph = next(cls.graph for cls in classes if cls.name == layer.cls)
    op = graph.producers[graph.outputs[layer.results.index(output)]]
    while op.namespace == "comm" and op.operands[0] in graph.producers:
        op = graph.producers[op.operands[0]]
    return op


def _collected_problem(graph: Graph, given: list[Spread], layer: Layer, whole: set[str]) -> Coupling | None:
    """The first op of a layer behind all micro-batches that reads what these cannot make up: laid end to end what has
    samples, added up what has none. What is `whole` is there once per step already."""
    for value, name, state in zip(graph.inputs, layer.operands, given, strict=True):
        if name in whole:
            fits = state is not SUM
        else:
            standard = batch_state(value.type)
            fits = state is not SAME and standard in (state, SAME)
        if not fits and graph.consumers[value.name]:
            return Coupling(graph.consumers[value.name][0], f"reads %{name}, which micro-batches do not make up")
    return None


def epilogue_coupling(program: Program) -> Coupling | None:
    """What makes the epilogue of a program of layers necessary; None for one without."""
    whole = {name for layer in program.layers if layer.kind is LayerKind.STEP for name in layer.results}
    whole |= {value.name for value in program.inputs}
    for layer in (layer for layer in program.layers if layer.kind is LayerKind.EPILOGUE):
        graph = program.class_of[layer.cls].graph
        given: dict[str, Spread] = {}
        for value, name in zip(graph.inputs, layer.operands, strict=True):
            state = batch_state(value.type)
            given[value.name] = SUM if state is SAME and name not in whole else state
        found = flow(graph, given).couplings
        return next((found[op.results[0].name] for op in graph.ops if op.results[0].name in found), None)
    return None


def _problem(graph: Graph, found: Flow) -> Coupling | None:
    """The first op of a graph that micro-batches would do wrong."""
    for op in graph.ops:
        name = op.results[0].name
        if name in found.couplings:
            return found.couplings[name]
        if name in found.once:
            return Coupling(op, "adds what has no samples in it, which every micro-batch would add once more")
    return None
