"""From the ops of each layer to layers that call shared classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from galvatron.ir.gradients import spread
from galvatron.ir.graph import Graph, Op, Value
from galvatron.ir.names import Names, base_name
from galvatron.ir.program import Form, Layer, LayerClass, LayerKind, Program
from galvatron.passes.frontend.cluster_layers.naming import name_state, op_name, value_name
from galvatron.passes.frontend.cluster_layers.placement import Part


@dataclass(frozen=True)
class _Call:
    """One layer: the canonical graph that it computes, and the captured graph's names bound to the formals."""

    part: Part
    kind: str
    name: str
    graph: Graph
    operands: tuple[str, ...]
    state: tuple[str, ...]
    results: tuple[str, ...]


def assemble(program: Program, graph: Graph, parts: Sequence[Part], names: Sequence[tuple[str, str]]) -> Program:
    """A program, whose ops `graph` holds, in classes and layers; `names` are the kind and the name of every part.

    The class that most layers of a kind share is called after the kind, any other one after its first layer.

    Layers share a class when their graphs are equal up to names, their state is alike (trainable or not), and no
    parameter trains before the same of what they read: the first layer with adapters, behind an embedding that is
    frozen, computes and keeps less than others.
    """
    untrained = _untrained(program, graph)
    calls = _calls(graph, parts, names)
    members: dict[object, list[_Call]] = {}
    for call in calls:
        state = tuple(_likeness(program, name) for name in call.state)
        key = (call.part.kind, call.graph, state, tuple(name in untrained for name in call.operands))
        members.setdefault(key, []).append(call)
    groups = list(members.values())
    classes: dict[int, LayerClass] = {}
    unique = Names(reserved=())
    kinds: set[str] = set()
    for number in sorted(range(len(groups)), key=lambda n: -len(groups[n])):
        first = groups[number][0]
        # `block_1` would look like a layer of that number.
        name = unique.fresh(first.name if first.kind in kinds else first.kind)
        kinds.add(first.kind)
        classes[number] = LayerClass(name, _readable(graph, calls, groups[number]))
    class_of = {call.name: classes[number] for number, group in enumerate(groups) for call in group}
    bound = _bound_names(program, graph, calls)
    layers = tuple(
        Layer(
            name=call.name,
            cls=class_of[call.name].name,
            operands=tuple(bound[n] for n in call.operands),
            state=call.state,
            results=tuple(bound[n] for n in call.results),
            kind=call.part.kind,
        )
        for call in calls
    )
    return replace(
        program,
        form=Form.CLUSTERED,
        graph=None,
        classes=tuple(classes[n] for n in range(len(groups))),
        layers=layers,
        updates=tuple(replace(update, value=bound[update.value]) for update in program.updates),
        outputs=tuple(replace(output, value=bound[output.value]) for output in program.outputs),
        checks=tuple(replace(check, value=bound[check.value]) for check in program.checks),
        reached=tuple(replace(one, value=bound[one.value]) for one in program.reached),
    )


def _untrained(program: Program, graph: Graph) -> set[str]:
    """The values that follow from parameters, of which none trains, so that they have no gradient."""
    trained, every = set(program.trainable), {state.name for state in program.state if state.kind == "parameter"}
    for values in (trained, every):
        spread(graph, values)
    return every - trained


def _likeness(program: Program, state: str) -> tuple[str, bool]:
    return program.state_of[state].kind, program.state_of[state].trainable


def _calls(graph: Graph, parts: Sequence[Part], names: Sequence[tuple[str, str]]) -> list[_Call]:
    state = {v.name for v in graph.state}
    defined = [{v.name for op in part.ops for v in op.results} for part in parts]
    outside: Counter[str] = Counter(graph.outputs)
    reads = [
        dict.fromkeys(n for op in p.ops for n in op.operands if n not in d) for p, d in zip(parts, defined, strict=True)
    ]
    for read in reads:
        outside.update(read.keys())
    calls = []
    given: set[str] = set()
    for part, read, (kind, name) in zip(parts, reads, names, strict=True):
        operands = tuple(n for n in read if n not in state)
        held = tuple(n for n in read if n in state)
        # An epilogue makes again what it can make itself.
        results = tuple(n for n in part.gives if outside[n] and n not in given)
        given.update(results)
        calls.append(
            _Call(part, kind, name, _canonical(graph, part.ops, operands, held, results), operands, held, results)
        )
    return calls


def _canonical(
    graph: Graph, ops: Sequence[Op], operands: Sequence[str], state: Sequence[str], results: Sequence[str]
) -> Graph:
    """The graph of some ops under names that say nothing."""
    formal = {name: f"i{n}" for n, name in enumerate(operands)} | {name: f"s{n}" for n, name in enumerate(state)}
    for op in ops:
        formal.update((v.name, f"v{len(formal)}") for v in op.results)
    inner = Graph(
        tuple(graph.values[n] for n in operands), tuple(graph.values[n] for n in state), tuple(ops), tuple(results)
    )
    return rename_graph(inner, formal.__getitem__)


def rename_graph(graph: Graph, name: Callable[[str], str]) -> Graph:
    """The graph with every value renamed."""

    def renamed(values: Sequence[Value]) -> tuple[Value, ...]:
        return tuple(replace(v, name=name(v.name)) for v in values)

    ops = tuple(replace(op.map_refs(name), results=renamed(op.results)) for op in graph.ops)
    return Graph(renamed(graph.inputs), renamed(graph.state), ops, tuple(name(n) for n in graph.outputs))


def _readable(graph: Graph, calls: Sequence[_Call], group: Sequence[_Call]) -> Graph:
    """The graph of a class under names for readers, taken from its first layer."""
    first = group[0]
    state = name_state(list(zip(*(call.state for call in group), strict=True)))
    names = Names(state)
    formal = dict(zip((v.name for v in first.graph.state), state, strict=True))
    given = {n: _value_name(graph, call, n) for call in calls for n in call.results}
    flowing = {n for call in calls if call.part.kind is LayerKind.PLANNED for n in call.results}
    for value, operand in zip(first.graph.inputs, first.operands, strict=True):
        is_stream = operand in flowing and "x" not in formal.values()
        formal[value.name] = names.fresh("x" if is_stream else given.get(operand, operand))
    for op in first.graph.ops:
        formal.update((v.name, names.fresh(base_name(op.target))) for v in op.results)
    return rename_graph(first.graph, formal.__getitem__)


def _bound_names(program: Program, graph: Graph, calls: Sequence[_Call]) -> dict[str, str]:
    """Names in the program for the batch inputs and for all values that pass from layer to layer.

    A layer's last result that another layer reads is its `out`; the loss keeps its name.
    """
    read = {name for call in calls for name in call.operands} | {program.output}
    names = {v.name: v.name for v in program.inputs} | {program.output: program.output}
    unique = Names([*names, *(n for s in program.state for n in (s.name, *s.aliases))], reserved=())
    for call in calls:
        out = next((name for name in reversed(call.results) if name in read), None)
        for result in call.results:
            is_out = call.part.kind is LayerKind.PLANNED and result == out
            wish = f"{call.name}.{'out' if is_out else _value_name(graph, call, result)}"
            names.setdefault(result, result if result in names else unique.fresh(wish))
    return names


def _value_name(graph: Graph, call: _Call, value: str) -> str:
    """The name of a result; per-step values come from the line that computes the loss, which says nothing of them."""
    return op_name(graph, value) if call.part.kind is LayerKind.STEP else value_name(graph, value)
