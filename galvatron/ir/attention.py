"""The cores of attention in a layer, found by dataflow: what `recompute=attention` computes again.

Where attention is one op, that is its core. Where it is written out, the core is what lies between the products that
make the scores and the products that mix the values, these included: a softmax, of which the first are the nearest
products of two activations before it, and the second the nearest after it that sum over its dimension. A core that
would take in another product is none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from galvatron.ir.either import Ways
from galvatron.ir.graph import Graph, Op
from galvatron.ir.ops.table import op_dims, operator_of
from galvatron.ir.random import without_site


@dataclass(frozen=True)
class Core:
    """Ops of a graph that run as a function of their own, from the `inputs` that they read to the `outputs` that others
    read."""

    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def with_cores(graph: Graph, ops: Sequence[Op] | None = None) -> tuple[Op | Core, ...]:
    """Some ops of a graph in an order in which each core runs at once, and other ops as early as they did.

    Args:
        ops: default all. A core of which some ops are missing is none.
    """
    ops = graph.ops if ops is None else ops
    given = {id(op) for op in ops}
    cores = [core for core in _cores(graph) if all(id(op) in given for op in core.ops)]
    core_of = {id(op): core for core in cores for op in core.ops}
    missing = {value.name for op in ops for value in op.results}
    units: list[Op | Core] = []
    waiting: list[Op | Core] = []
    for op in ops:
        core = core_of.get(id(op))
        if core is not None and op is not core.ops[-1]:
            continue
        waiting.append(core or op)
        while (ready := next((unit for unit in waiting if missing.isdisjoint(_read(unit))), None)) is not None:
            waiting = [unit for unit in waiting if unit is not ready]
            units.append(ready)
            missing.difference_update(
                v.name for o in (ready.ops if isinstance(ready, Core) else (ready,)) for v in o.results
            )
    # Cores that need each other are none.
    return tuple(ops) if waiting else tuple(units)


def pieces(graph: Graph) -> tuple[tuple[Graph, bool], ...]:
    """A graph cut at its cores: graphs to run one after another, and whether each is a core."""
    found: list[tuple[Core, bool]] = []
    others: list[Op] = []
    for unit in (*with_cores(graph), None):
        if isinstance(unit, Op):
            others.append(unit)
            continue
        found += [(_part(graph, tuple(others)), False)] if others else []
        found += [(unit, True)] if unit else []
        others = []

    # What a layer's function computes, but not what is inside of a core, is there until it returns.
    read = {*graph.outputs, *(name for op in graph.ops for name in op.operands)}

    def graph_of(part: Core, is_core: bool) -> Graph:
        made = part.outputs if is_core else tuple(v.name for op in part.ops for v in op.results if v.name in read)
        return Graph(tuple(graph.values[name] for name in part.inputs), (), part.ops, made)

    return tuple((graph_of(*part), part[1]) for part in found)


def _part(graph: Graph, ops: tuple[Op, ...]) -> Core:
    made = {value.name for op in ops for value in op.results}
    inside = {id(op) for op in ops}
    read = {*graph.outputs, *(name for op in graph.ops if id(op) not in inside for name in op.operands)}
    inputs = dict.fromkeys(name for op in ops for name in op.operands if name not in made)
    return Core(ops, tuple(inputs), tuple(v.name for op in ops for v in op.results if v.name in read))


def _read(unit: Op | Core) -> Collection[str]:
    return unit.inputs if isinstance(unit, Core) else unit.operands


def _cores(graph: Graph) -> list[Core]:
    """The cores, of which no op is in two. What one makes for others, all kinds of steps need that need any of it."""
    ways = Ways(graph)
    cores = [_part(graph, tuple(graph.ops[i] for i in sorted(places))) for places in _places(graph)]
    needed = [{ways.only(graph.producers[name]) for name in core.outputs} for core in cores]
    return [core for core, kinds in zip(cores, needed, strict=True) if len(kinds) == 1]


def _places(graph: Graph) -> list[set[int]]:
    """The places of the ops of each core."""
    finder = _Finder(graph)
    whole: list[set[int]] = []
    written: list[tuple[set[int], set[int], set[int]]] = []
    for place, op in enumerate(graph.ops):
        if operator_of(op).attends:
            whole.append({place})
        elif operator_of(op).moves == "softmax" and op.get("dim") is not None:
            first, last = finder.scores(op), finder.mixtures(op)
            # Two softmaxes may be added before they mix values.
            for other in [o for o in written if o[2] & finder.between(first, last)]:
                written.remove(other)
                first, last = first | other[0], last | other[1]
            region = finder.between(first, last)
            if region and {i for i in region if finder.is_product(graph.ops[i])} == first | last:
                written.append((first, last, region))
    return [*whole, *(region for _, _, region in written)]


@dataclass(frozen=True)
class _Finder:
    graph: Graph

    def scores(self, softmax: Op) -> set[int]:
        """The nearest products before a softmax that are of two activations."""
        found: set[int] = set()
        names, places = {*softmax.operands}, {id(op): i for i, op in enumerate(self.graph.ops)}
        for op in reversed(self.graph.ops[: places[id(softmax)]]):
            if not any(value.name in names for value in op.results):
                continue
            if not self.is_product(op):
                names.update(op.operands)
            elif sum(not self._is_weight(name) for name in op.operands) > 1:
                found.add(places[id(op)])
        return found

    def mixtures(self, softmax: Op) -> set[int]:
        """The nearest products after a softmax that sum over its dimension."""
        dim, rank = softmax["dim"], len(softmax.results[0].type.shape)
        assert isinstance(dim, int)
        found: set[int] = set()
        along = {softmax.results[0].name: dim % rank}
        for place, op in enumerate(self.graph.ops):
            if along.keys().isdisjoint(op.operands) or op is softmax:
                continue
            if op.namespace == "comm":
                along[op.result.name] = along[op.operands[0]]
                continue
            dims = op_dims(without_site(op), self.graph.types)
            if dims is None:
                continue
            named = zip(op.operands, dims.operands, strict=True)
            names = {sizes[along[name]] for name, sizes in named if name in along} - {()}
            if self.is_product(op):
                kept = {name for result in dims.results for factors in result for name in factors}
                found |= {place} if any(kept.isdisjoint(factors) for factors in names) else set()
                continue
            for value, result in zip(op.results, dims.results, strict=True):
                along.update((value.name, i) for i, factors in enumerate(result) if factors in names)
        return found

    def between(self, first: set[int], last: set[int]) -> set[int]:
        """The places on ways from the first ops to the last, these included where there is a way."""
        below: set[int] = set()
        names: set[str] = set()
        for place, op in enumerate(self.graph.ops):
            if place in first or not names.isdisjoint(op.operands):
                below.add(place)
                names.update(value.name for value in op.results)
        above: set[int] = set()
        names = set()
        for place, op in reversed([*enumerate(self.graph.ops)]):
            if place in last or any(value.name in names for value in op.results):
                above.add(place)
                names.update(op.operands)
        return below & above

    def is_product(self, op: Op) -> bool:
        return operator_of(op).contracts

    def _is_weight(self, name: str) -> bool:
        """Whether a value is state, as it is or in another form."""
        while (op := self.graph.producers.get(name)) is not None:
            plain = operator_of(op).free or operator_of(op).casts or op.namespace == "comm"
            if not plain or len(op.operands) != 1:
                return False
            (name,) = op.operands
        return name not in {value.name for value in self.graph.inputs}
