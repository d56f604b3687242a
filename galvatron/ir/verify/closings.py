"""Rules of what runs when a step ends, and of what it says of parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from galvatron.ir.program import LayerKind, Program
from galvatron.ir.random import is_random
from galvatron.ir.types import has_samples
from galvatron.ir.verify.graphs import Violation
from galvatron.ir.verify.programs import layers_with_loci


def closings_only_write(program: Program) -> Iterator[Violation]:
    """A closing layer makes new values of state, or says what has a gradient; nothing of it is read in the step.

    It reads what layers make without samples, statistics of the step, and state that every rank has whole, and draws
    nothing: it runs once, on every rank of its stage.
    """
    closings = {layer.name for layer in program.all_layers if layer.kind is LayerKind.CLOSING}
    if not closings:
        return
    read = {name for layer in program.all_layers for name in layer.operands}
    others = {program.output, *(result.value for result in (*program.outputs, *program.checks))}
    written = {result.value for result in (*program.updates, *program.reached)}
    kinds = (LayerKind.PLANNED, LayerKind.CONVERSION)
    made = {name for layer in program.all_layers if layer.kind in kinds for name in layer.results}
    once = {name for layer in program.all_layers if layer.kind is LayerKind.STEP for name in layer.results}
    values = program.values()
    for layer, locus in layers_with_loci(program):
        if layer.kind is not LayerKind.CLOSING:
            continue
        for name in layer.results:
            if name in read or name in others or name not in written:
                yield locus, f"the closing layer {layer.name} makes %{name}, which is not a new value of state alone"
        if made.isdisjoint(layer.operands):
            yield locus, f"the closing layer {layer.name} reads nothing that micro-batches make"
        for name in layer.operands:
            if name not in made and name not in once:
                yield locus, f"the closing layer {layer.name} reads %{name}, which no planned layer makes"
            elif any(map(has_samples, values[name].type.shape)):
                yield locus, f"the closing layer {layer.name} reads %{name}, which has samples"
        for name in layer.state:
            if program.state_of[name].trainable:
                yield locus, f"the closing layer {layer.name} reads the trainable state {name}"
        if drawing := next(filter(is_random, program.class_of[layer.cls].graph.ops), None):
            yield locus, f"the closing layer {layer.name} draws random numbers, in {drawing.target}"


def gradients_told(program: Program) -> Iterator[Violation]:
    """What says in which steps parameters have a gradient is a vector of truth values, known when the step ends.

    Each element stands for as many trained parameters as any other, and nothing else says it of these.
    """
    values = program.values() if program.graph is None else program.graph.values
    closings = {n for layer in program.all_layers if layer.kind is LayerKind.CLOSING for n in layer.results}
    counts = Counter(name for one in program.reached for name in one.states)
    for one in program.reached:
        locus = ("gradient", one.value)
        if one.value not in (values if program.graph is not None else closings):
            yield locus, f"no layer that runs when a step ends makes %{one.value}, which says what has a gradient"
            continue
        type_ = values[one.value].type
        size = type_.shape[0] if len(type_.shape) == 1 else 0
        if type_.dtype != "bool" or not isinstance(size, int) or not size or len(one.states) % size:
            yield locus, f"%{one.value} is {type_}: no vector of truth values for {len(one.states)} parameters"
        for name in one.states:
            if name not in program.trainable:
                yield locus, f"{name} is not trained, so that it has no gradient in any step"
            elif counts[name] > 1:
                yield locus, f"of {name} it is said several times when it has a gradient"
