"""The layers of a program for a report: their classes, what couples their samples, what they draw and share."""

from __future__ import annotations

from collections import Counter, defaultdict

from galvatron.checking.found import Draw, FoundClass, Samples, Tie
from galvatron.ir.micro_batches import coupling, epilogue_coupling
from galvatron.ir.program import Layer, Program
from galvatron.ir.random import is_random
from galvatron.ir.ties import tied_classes
from galvatron.ir.types import Length


def found_classes(program: Program) -> tuple[FoundClass, ...]:
    """The classes of a clustered program in the order of their first layers."""
    modules = _modules(program)
    order = dict.fromkeys(layer.cls for layer in program.layers)
    return tuple(
        FoundClass(
            name=name,
            kind=str(layers[0].kind),
            layers=tuple(layer.name for layer in layers),
            parameters=program.count_parameters(layers[0].state),
            modules=tuple(modules[layer.name] for layer in layers),
        )
        for name, layers in ((name, program.layers_of[name]) for name in order)
    )


def _modules(program: Program) -> dict[str, tuple[str, ...]]:
    """For each layer the outermost modules of which no other layer has anything, by the names of the state that it
    reads; of a module in several layers, the state itself."""
    readers: dict[str, set[str]] = defaultdict(set)
    for layer in program.layers:
        for name in layer.state:
            for path in _paths(name):
                readers[path].add(layer.name)

    def own(layer: Layer, name: str) -> str:
        return next((path for path in _paths(name) if readers[path] == {layer.name}), name)

    return {layer.name: tuple(dict.fromkeys(own(layer, name) for name in layer.state)) for layer in program.layers}


def _paths(name: str) -> list[str]:
    """A piece of state and the modules that it is in, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def found_samples(program: Program) -> Samples:
    coupled = coupling(program)
    ends = epilogue_coupling(program)
    return Samples(
        inputs=tuple(v.name for v in program.inputs if v.name in program.batched),
        others=tuple(v.name for v in program.inputs if v.name not in program.batched),
        sizes=str(program.batch_sizes),
        lengths=tuple(_said_of(length, program) for length in program.lengths),
        epilogue="" if ends is None else str(ends),
        coupled="" if coupled is None else str(coupled),
    )


def _said_of(length: Length, program: Program) -> str:
    """Such as `S (ids dim 1, labels dim 1) from 2 to 512`."""
    places = (f"{v.name} dim {dim}" for v in program.inputs for dim, size in enumerate(v.type.shape) if size == length)
    return f"{length.name} ({', '.join(places)}) {length.sizes}"


def found_draws(program: Program) -> tuple[Draw, ...]:
    counts = Counter(
        (cls.name, op.name, "" if op.source is None else f"{op.source}: `{op.source.code}`")
        for cls in program.classes
        for op in cls.graph.ops
        if is_random(op)
    )
    return tuple(Draw(cls, op, count, line) for (cls, op, line), count in counts.items())


def found_ties(program: Program) -> tuple[Tie, ...]:
    ties: list[Tie] = []
    for tie in tied_classes(program):
        layers = [layer for layer in program.layers if layer.cls in tie.classes]
        bound = [name for layer in layers for name in tie.bound(program, layer)]
        ties.append(Tie(tuple(dict.fromkeys(bound)), tuple(layer.name for layer in layers)))
    return tuple(ties)
