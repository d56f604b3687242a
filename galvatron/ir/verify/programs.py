"""Rules of whole programs, in any form."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator

import sympy

from galvatron.errors import did_you_mean
from galvatron.ir import limits, plan_rules
from galvatron.ir.cost import at_batch
from galvatron.ir.graph import Value
from galvatron.ir.micro_batches import coupling
from galvatron.ir.planned import tied_layers
from galvatron.ir.program import MASTER, PARTS, PRECISIONS, Form, Layer, LayerClass, LayerKind, Number, Program
from galvatron.ir.random import is_random
from galvatron.ir.types import BATCH, DTYPE_BYTES, NUMBER_KINDS, Length, TensorType, has_samples, lengths_in
from galvatron.ir.update_rule import UpdateRule
from galvatron.ir.verify.graphs import Violation, size_problem

Locus = tuple[Hashable, ...]


def layers_with_loci(program: Program) -> Iterator[tuple[Layer, Locus]]:
    for owner, layers in program.layer_groups:
        for index, layer in enumerate(layers):
            yield layer, ("layer", owner, index)


def form_fields(program: Program) -> Iterator[Violation]:
    """A form has the parts that it promises: a graph when captured, then classes and layers, a plan, at last stages."""
    form = program.form
    for name, part in PARTS.items():
        present = getattr(program, name) not in (None, ())
        if present and not part.first <= form <= part.kept:
            yield ("program",), f"a {form} program has no {name}"
        if not present and part.first <= form <= part.last:
            yield ("program",), f"a {form} program needs {name}"


def program_names(program: Program) -> Iterator[Violation]:
    """Inputs, state with its aliases, classes, and layers of one stage have names of their own.

    So have the layers of a plan in all stages: what a layer draws follows from its name.
    """
    groups: list[tuple[str, list[tuple[str, Locus]]]] = [
        ("input", [(v.name, ("input", "program", v.name)) for v in program.inputs]),
        ("number", [(n.name, ("number", n.name)) for n in program.numbers]),
        ("length", [(n.name, ("length",)) for n in (*program.lengths, *program.numbers)]),
        ("state", [(n, ("program state", None, s.name)) for s in program.state for n in (s.name, *s.aliases)]),
        ("rule", [(r.name, ("rule", r.name)) for r in program.rules]),
        ("class", [(c.name, ("class", c.name)) for c in program.classes]),
        ("function", [(f.name, ("function", f.name)) for f in program.functions]),
    ]
    for owner, layers in program.layer_groups:
        groups.append(("layer", [(layer.name, ("layer", owner, i)) for i, layer in enumerate(layers)]))
    named = [(layer.name, locus) for layer, locus in layers_with_loci(program) if layer.kind.is_single]
    groups.append(("layer", named))
    for kind, names in groups:
        counts = Counter(name for name, _ in names)
        for name, locus in names:
            if counts[name] > 1:
                yield locus, f"the {kind} name {name!r} stands for several"


def program_signature(program: Program) -> Iterator[Violation]:
    """State is a parameter, buffer or constant; only parameters train; types are known; the batch is not empty."""
    if program.batch_size < 1:
        yield ("program",), f"a batch of {program.batch_size} samples"
    for state in program.state:
        locus = ("program state", None, state.name)
        if state.kind not in ("parameter", "buffer", "constant"):
            yield locus, f"unknown kind of state {state.kind!r}"
        if state.trainable and state.kind != "parameter":
            yield locus, f"a {state.kind} does not train"
        if state.rule and (not state.trainable or state.rule not in {rule.name for rule in program.rules}):
            yield locus, f"there is no rule {state.rule!r} by which it is trained"
        if state.type.dtype not in DTYPE_BYTES or not all(type(d) is int and d >= 0 for d in state.type.shape):
            yield locus, f"{state.type} is no type of state: its element type is unknown or its shape is not fixed"
    if program.batch_size not in program.batch_sizes:
        yield ("program",), f"a batch of {program.batch_size} samples is outside {program.batch_sizes}"
    for rule in program.rules:
        if problem := _rule_problem(rule):
            yield ("rule", rule.name), problem
    for length in program.lengths:
        if problem := _length_problem(length):
            yield ("length",), problem
    for number in program.numbers:
        if problem := _number_problem(number):
            yield ("number", number.name), problem
    for value in program.inputs:
        if value.type.dtype not in DTYPE_BYTES:
            yield ("input", "program", value.name), f"unknown element type {value.type.dtype!r}"
        elif problem := _input_problem(value, cut=program.form > Form.CAPTURED):
            yield ("input", "program", value.name), f"%{value.name} is {value.type}: {problem}"


def _length_problem(length: Length) -> str:
    """What is wrong with a free size of the inputs."""
    if length.sizes.least < 2:
        return f"{length} may be {length.sizes.least}, but programs are traced for lengths of at least 2"
    if length.example not in length.sizes:
        return f"{length} is {length.example} in the example, which is outside of {length.sizes}"
    shortest, longest = length.extremes
    return "" if shortest < longest else f"{length} has one value, {shortest}, and so is none"


def _rule_problem(rule: UpdateRule) -> str:
    """What is wrong with a rule of the optimizer."""
    figures = rule.copies, rule.passes, rule.spare, rule.flop
    if not rule.name or not all(math.isfinite(figure) and 0 <= figure <= limits.PER_ELEMENT for figure in figures):
        return f"rule {rule.name!r} has figures that are no quantities of each element"
    if bool(rule.flop) != (rule.product_type in DTYPE_BYTES):
        return f"rule {rule.name!r} has products of type {rule.product_type!r}, which is none"
    return ""


def _number_problem(number: Number) -> str:
    """What is wrong with a number of the batch."""
    if number.kind not in NUMBER_KINDS:
        return f"unknown kind of number {number.kind!r}; {did_you_mean(number.kind, NUMBER_KINDS)}"
    if type(number.example).__name__ != number.kind or not math.isfinite(number.example):
        return f"the example {number.example!r} of {number.name} is no finite {number.kind}"
    return "" if number.name.isidentifier() else f"{number.name!r} is no name of an argument"


def _input_problem(value: Value, *, cut: bool) -> str:
    """What is wrong with the sizes of a batch input; what is `cut` into micro-batches are its `B` along dimension 0."""
    symbols = {s for dim in value.type.shape if isinstance(dim, sympy.Expr) for s in dim.free_symbols - {BATCH}}
    if strangers := [s for s in symbols if not isinstance(s, Length)]:
        return f"{', '.join(sorted(map(str, strangers)))} is no size of a batch"
    rest = value.type.shape[1:] if value.type.shape[:1] == (BATCH,) else value.type.shape
    if any(lengths_in(dim) and not isinstance(dim, Length) for dim in rest):
        return "a length is the size of a dimension, and no part of one"
    if cut and any(map(has_samples, rest)):
        return "its samples are not those of B along dimension 0 alone"
    return next(filter(None, map(size_problem, rest)), "")


def masters(program: Program) -> Iterator[Violation]:
    """A precision is bf16 or f16, and under it every real parameter trains in f32."""
    if program.precision is None:
        return
    if program.precision not in PRECISIONS:
        yield ("program",), f"unknown precision {program.precision!r}; {did_you_mean(program.precision, PRECISIONS)}"
    for state in program.state:
        if state.trainable and state.type.dtype in ("f64", "f16", "bf16"):
            yield ("program state", None, state.name), f"{state.name} trains in {state.type.dtype}, not in {MASTER}"


def graph_matches_program(program: Program) -> Iterator[Violation]:
    """A captured graph has the program's inputs, only state that the program has, and returns the loss and updates."""
    graph = program.graph
    if graph is None:
        return
    if graph.inputs != program.inputs:
        yield ("graph",), "the graph's inputs differ from the program's"
    for value in graph.state:
        state = program.state_of.get(value.name)
        type_ = state and state.compute_type(program.precision)
        if type_ != value.type:
            known = f"has it as {type_}" if state else "has no such state"
            yield ("state", None, value.name), f"the graph reads {value.name} as {value.type}, the program {known}"
    if graph.outputs != program.results:
        several = len(program.results) > 1
        more = f" and its other results, {_told(program.results)}" if several else f" %{program.output}"
        yield ("return", None), f"the graph must return the program's output{more}"


def known_classes(program: Program) -> Iterator[Violation]:
    """Every layer calls a class of the program, and every class is called."""
    called: set[str] = set()
    for layer, locus in layers_with_loci(program):
        called.add(layer.cls)
        if layer.cls not in program.class_of:
            yield locus, f"unknown class @{layer.cls}; {did_you_mean(layer.cls, program.class_of)}"
    for cls in program.classes:
        if cls.name not in called:
            yield ("class", cls.name), f"no layer calls @{cls.name}"


def layer_signatures(program: Program) -> Iterator[Violation]:
    """A layer binds as many operands, state and results as its class has inputs, state and outputs."""
    for layer, locus in layers_with_loci(program):
        graph = program.class_of[layer.cls].graph
        for kind, bound, formal in (
            ("operands", layer.operands, graph.inputs),
            ("state", layer.state, graph.state),
            ("results", layer.results, graph.outputs),
        ):
            if len(bound) != len(formal):
                yield locus, f"{layer.name} binds {len(bound)} {kind}, but @{layer.cls} has {len(formal)}"


def layers_in_order(program: Program) -> Iterator[Violation]:
    """Layers read batch inputs, what their stage receives and results of earlier layers; values are defined once.

    Until `split-stages` has said what a stage receives, it may read what any stage before it makes.
    """
    known = {v.name for v in program.inputs}
    defined: set[str] = set()
    # Each stage computes the statistics of a step for itself.
    once = {name for layer in program.all_layers if layer.kind is LayerKind.STEP for name in layer.results}
    for position, (owner, layers) in enumerate(program.layer_groups):
        if program.form is Form.STAGED:
            received = program.stages[position].receives
            known = {v.name for v in program.inputs} | {t.name for t in received}
        known -= once
        later = {name for layer in layers for name in layer.results}
        for index, layer in enumerate(layers):
            for name in layer.operands:
                if name not in known:
                    reason = "before it is defined" if name in later else f"undefined; {did_you_mean(name, known)}"
                    yield ("layer", owner, index), f"{layer.name} reads %{name} {reason}"
            for name in layer.results:
                if name in known or name in defined:
                    yield ("layer", owner, index), f"{layer.name} defines %{name} again"
                known.add(name)
                defined.add(name)


def operand_types(program: Program) -> Iterator[Violation]:
    """Before sharding, an operand has the very type of the class input it is bound to."""
    values = program.values()
    for layer, locus in layers_with_loci(program):
        for name, formal in zip(layer.operands, program.class_of[layer.cls].graph.inputs, strict=True):
            if values[name].type != formal.type:
                yield locus, f"%{name} is {values[name].type}, but %{formal.name} of @{layer.cls} is {formal.type}"


def state_is_bound(program: Program) -> Iterator[Violation]:
    """A layer binds state that the program has, under its first name; before sharding with the type of the class."""
    for layer, locus in layers_with_loci(program):
        for name in layer.state:
            if name not in program.state_of:
                yield locus, f"{layer.name} binds unknown state {name!r}; {did_you_mean(name, program.state_of)}"
    if program.form < Form.SHARDED and all(s in program.state_of for layer in program.all_layers for s in layer.state):
        yield from state_problems(program, _bound_problem)


def _bound_problem(type_: TensorType, formal: Value, cls: LayerClass) -> str:
    return "" if type_ == formal.type else f"is {type_}, but %{formal.name} of @{cls.name} is {formal.type}"


def state_problems(program: Program, problem_of: Callable[[TensorType, Value, LayerClass], str]) -> Iterator[Violation]:
    """What is wrong with state that layers bind: at the layer's line or, where no layer is right, at that of the class.

    Args:
        problem_of: given the type in which state is read, what a class has it as, and that class, how a message goes on
            that begins with the name of the state; empty if nothing is wrong.
    """
    right: set[tuple[str, str]] = set()
    wrong: list[tuple[tuple[str, str], Violation]] = []
    for layer, locus in layers_with_loci(program):
        cls = program.class_of[layer.cls]
        for name, formal in zip(layer.state, cls.graph.state, strict=True):
            place = cls.name, formal.name
            if problem := problem_of(program.state_of[name].compute_type(program.precision), formal, cls):
                wrong.append((place, (locus, f"{name} {problem}")))
            else:
                right.add(place)
    yield from ((("state", *place), told) for place, (_, told) in dict(reversed(wrong)).items() if place not in right)
    yield from (violation for place, violation in wrong if place in right)


def output_is_loss(program: Program) -> Iterator[Violation]:
    """The output is a floating-point scalar computed by the program."""
    for layer, locus in layers_with_loci(program):
        graph = program.class_of[layer.cls].graph
        made = {name for name, formal in zip(layer.results, graph.outputs, strict=True) if formal in graph.producers}
        if program.output in layer.results and program.output not in made:
            yield locus, f"{layer.name} gives as the loss %{program.output} what it is given"
    values = program.values() if program.graph is None else program.graph.values
    output = values.get(program.output)
    if output is None:
        yield ("output",), f"nothing defines %{program.output}"
    elif output.type.shape != () or not output.type.is_floating:
        yield ("output",), f"%{program.output} is {output.type}, but a loss is a floating-point scalar"


def updates_fit(program: Program) -> Iterator[Violation]:
    """An update is of state that is not trained, once, of its very type, and is made by a layer that is there once."""
    values = program.values() if program.graph is None else program.graph.values
    made = set(program.graph.producers) if program.graph is not None else _made_once(program)
    counts = Counter(update.state for update in program.updates)
    for update in program.updates:
        locus, state = ("update", update.state), program.state_of.get(update.state)
        if state is None:
            yield locus, f"an update of unknown state {update.state!r}; {did_you_mean(update.state, program.state_of)}"
        elif counts[update.state] > 1:
            yield locus, f"{update.state} is updated several times"
        elif state.trainable or state.kind == "constant":
            yield locus, f"{update.state} is {'trained' if state.trainable else 'a constant'}, so forward writes no new"
        elif update.value not in made:
            yield locus, f"no layer computes %{update.value}, the new value of {update.state}"
        elif program.form < Form.SHARDED and (type_ := values[update.value].type) != state.type:
            yield locus, f"%{update.value} is {type_}, but {update.state} is {state.type}"
        elif update.adds and state.type.dtype == "bool":
            yield locus, f"nothing can be added to {update.state}, which holds truth values"


def outputs_fit(program: Program) -> Iterator[Violation]:
    """An output has a name of its own, and is made by a layer that is there once."""
    made = set(program.graph.producers) if program.graph is not None else _made_once(program)
    counts = Counter(output.name for output in program.outputs)
    for output in program.outputs:
        if counts[output.name] > 1:
            yield ("result", output.name), f"the result name {output.name!r} stands for several"
        elif output.value not in made:
            yield ("result", output.name), f"no layer computes %{output.value}, the result {output.name!r}"


def checks_fit(program: Program) -> Iterator[Violation]:
    """What must hold nowhere is a truth value, and is made by a layer that is there once."""
    values = program.values() if program.graph is None else program.graph.values
    made = set(program.graph.producers) if program.graph is not None else _made_once(program)
    for check in program.checks:
        locus = ("check", check.value)
        if check.value not in made:
            yield locus, f"no layer computes %{check.value}, which {check} asks for"
        elif (dtype := values[check.value].type.dtype) != "bool":
            yield locus, f"%{check.value} is of {dtype}, but {check} asks for truth values"


def _made_once(program: Program) -> set[str]:
    """What ops of layers compute that are there once, in whatever form."""
    made: set[str] = set()
    for layer in program.all_layers:
        graph = program.class_of[layer.cls].graph
        if layer.kind.is_single:
            pairs = zip(layer.results, graph.outputs, strict=True)
            made.update(name for name, formal in pairs if formal in graph.producers)
    return made


def cheap_layers(program: Program) -> Iterator[Violation]:
    """Step and preamble layers read batch inputs and each other, and no trainable state; statistics hold no samples.

    They draw nothing, since each stage that reads them would draw for itself. Those of a step are there before any
    micro-batch is, so they read no preamble.
    """
    once = {v.name for v in program.inputs}
    cheap = set(once)
    for layer, locus in layers_with_loci(program):
        if layer.kind not in (LayerKind.STEP, LayerKind.PREAMBLE):
            continue
        for name in layer.operands:
            if name not in (once if layer.kind is LayerKind.STEP else cheap):
                yield locus, f"the {layer.kind} layer {layer.name} reads %{name}, which a micro-batch layer computes"
        graph = program.class_of[layer.cls].graph
        if drawing := next(filter(is_random, graph.ops), None):
            yield locus, f"the {layer.kind} layer {layer.name} draws random numbers, in {drawing.target}"
        for name in layer.state:
            if program.state_of[name].trainable:
                yield locus, f"the {layer.kind} layer {layer.name} reads the trainable state {name}"
        if layer.kind is LayerKind.STEP:
            for name, formal in zip(layer.results, graph.outputs, strict=True):
                type_ = graph.values[formal].type
                if any(map(has_samples, type_.shape)):
                    yield locus, f"the step layer {layer.name} makes %{name}, a {type_} with samples"
            once.update(layer.results)
        cheap.update(layer.results)


def copies_say_what_they_are(program: Program) -> Iterator[Violation]:
    """Once there are stages, copies and conversions say which values they are; what is made once has no copies."""
    single = {name for layer in program.all_layers if layer.kind.is_single for name in layer.results}
    single.update(value.name for value in program.inputs)
    for layer, locus in layers_with_loci(program):
        converts = layer.kind is LayerKind.CONVERSION
        if not (converts or layer.origin):
            continue
        if program.form < Form.SHARDED:
            yield locus, f"{layer.name} is a copy or a conversion, but a {program.form} program has none"
        elif layer.kind.is_single:
            yield locus, f"{layer.name} makes values of its own, it has no origin"
        elif len(layer.origin) != len(layer.results):
            yield locus, f"{layer.name} has {len(layer.results)} results, of {len(layer.origin)} values"
        elif not converts and not single.isdisjoint(layer.origin):
            yield locus, f"{layer.name} is a copy of %{layer.origin[0]}, which is made once"


def conversions_change_layout_only(program: Program) -> Iterator[Violation]:
    """A conversion takes one value to another layout and computes nothing.

    Its class was sharded from none, and that of every other layer from one.
    """
    origin = program.origin_of
    for layer, locus in layers_with_loci(program):
        cls = program.class_of[layer.cls]
        converts = layer.kind is LayerKind.CONVERSION
        if converts and not (len(layer.operands) == len(layer.results) == 1 and not layer.state):
            yield locus, f"the conversion {layer.name} takes one value to another layout"
        elif converts and any(op.namespace != "comm" for op in cls.graph.ops):
            yield locus, f"the conversion {layer.name} computes something"
        elif converts and layer.origin != (origin.get(layer.operands[0], layer.operands[0]),):
            yield locus, f"the conversion {layer.name} reads %{layer.operands[0]}, which is not %{layer.origin[0]}"
        elif converts != cls.converts:
            base = f"@{cls.base}" if cls.base else "no class"
            yield locus, f"{layer.name} is a {layer.kind}, but @{cls.name} was sharded from {base}"


def shared_layers_are_one(program: Program) -> Iterator[Violation]:
    """What several stages compute for themselves comes from one class, of the same values, in all of them."""
    origin = program.origin_of
    shared: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    bases: dict[tuple[str, ...], str] = {}
    for layer, locus in layers_with_loci(program):
        if layer.kind not in (LayerKind.PREAMBLE, LayerKind.STEP):
            continue
        base = program.class_of[layer.cls].base
        values, read = layer.origin or layer.results, tuple(origin.get(name, name) for name in layer.operands)
        if shared.setdefault(base, (values, read)) != (values, read) or bases.setdefault(values, base) != base:
            yield locus, f"{layer.name} computes {_told(values)} otherwise than another stage"


def _told(names: tuple[str, ...]) -> str:
    return ", ".join(f"%{name}" for name in names)


def epilogue_ends(program: Program) -> Iterator[Violation]:
    """An epilogue comes last and makes the loss, perhaps other results; it reads samples, sums over them, statistics.

    Values that are the same for all samples it computes for itself, since nothing says which micro-batch's it would be.
    """
    found = [(layer, locus) for layer, locus in layers_with_loci(program) if layer.kind is LayerKind.EPILOGUE]
    groups = program.layer_groups
    for layer, locus in found:
        makes = program.output in layer.results and set(layer.results) <= set(program.results)
        if groups[-1][1][-1:] != (layer,) or not makes:
            told = "and no other value than results" if len(program.results) > 1 else "alone"
            yield locus, f"the epilogue {layer.name} must come last and make the loss %{program.output} {told}"
    free = {name for layer in program.all_layers if layer.kind is LayerKind.PREAMBLE for name in layer.results}
    for layer, locus in found:
        for name in layer.operands:
            if name in free:
                yield locus, f"the epilogue {layer.name} reads %{name} of the preamble, which it must compute itself"


def costs_present(program: Program) -> Iterator[Violation]:
    """From costed to planned, every class has a cost."""
    for cls in program.classes:
        if cls.cost is None:
            yield ("class", cls.name), f"@{cls.name} has no cost"


def costs_in_batch(program: Program) -> Iterator[Violation]:
    """Each figure of a cost is a number, finite and not negative, for the number of samples of the batch."""
    for cls in program.classes:
        for name, figure in () if cls.cost is None else vars(cls.cost).items():
            try:
                fits = at_batch(figure, program.batch_size) >= 0
            except TypeError:
                fits = False
            if not fits:
                yield ("class", cls.name), f"the {name} of @{cls.name} are {figure}: no number for samples B"


def candidates_fit(program: Program) -> Iterator[Violation]:
    """Candidates name classes, once per pipeline degree, and use all devices of the cluster, if there is one."""
    seen: set[tuple[int, str]] = set()
    for c in program.candidates:
        locus = ("candidates", c.pipeline_degree, c.cls)
        if c.cls not in program.class_of:
            yield locus, f"unknown class @{c.cls}; {did_you_mean(c.cls, program.class_of)}"
        if (c.pipeline_degree, c.cls) in seen:
            yield locus, f"a second list for @{c.cls} at pipeline degree {c.pipeline_degree}"
        seen.add((c.pipeline_degree, c.cls))
        devices = {s.devices * c.pipeline_degree for s in c.strategies}
        used = f"strategies use {sorted(devices)} devices in all"
        if c.pipeline_degree < 1:
            yield locus, f"a pipeline degree is at least 1, not {c.pipeline_degree}"
        elif program.cluster is not None and not devices <= {program.cluster.world_size}:
            yield locus, f"{used}, the cluster has {program.cluster.world_size}"
        elif len(devices) > 1:
            yield locus, f"{used}; those of one list use the same number"


def plan_belongs(program: Program) -> Iterator[Violation]:
    """The plan was made for this program, with a known schedule and positive numbers."""
    plan = program.required_plan
    ends = any(layer.kind is LayerKind.EPILOGUE for layer in program.all_layers)
    yield from plan_rules.belongs(plan, program.fingerprint)
    yield from plan_rules.numbers(plan)
    if not (problems := list(plan_rules.schedule(plan, epilogue=ends))):
        yield from plan_rules.peaks(plan)
    yield from problems


def plan_covers_layers(program: Program) -> Iterator[Violation]:
    """The plan has one strategy for each layer that runs per micro-batch, and no empty stage."""
    plan = program.required_plan
    yield from plan_rules.layers(plan)
    counts = [sum(layer.kind is LayerKind.PLANNED for layer in layers) for _, layers in program.layer_groups]
    yield from plan_rules.covers(plan, counts)


def plan_settles_ties(program: Program) -> Iterator[Violation]:
    """The plan says of every tie how it is kept: whole, or as under the strategy that all its layers have."""
    names = [layer.name for layer in program.planned_layers]
    yield from plan_rules.ties(program.required_plan, names, tied_layers(program))


def plan_uses_devices(program: Program) -> Iterator[Violation]:
    """Pipeline degree times the devices of every strategy is the world size, and that of the cluster if known."""
    plan = program.required_plan
    yield from plan_rules.devices(plan)
    if program.cluster is not None and program.cluster.world_size != plan.world_size:
        yield ("plan", "world_size"), f"{plan.world_size} devices, but the cluster has {program.cluster.world_size}"


def plan_divides_batch(program: Program) -> Iterator[Violation]:
    """The program is for the global batch, which divides into micro-batches, and these into data-parallel shards."""
    plan = program.required_plan
    if plan.global_batch_size not in program.batch_sizes:
        told = f"a batch of {plan.global_batch_size} samples is outside {program.batch_sizes}"
        yield ("plan", "global_batch_size"), told
    yield from plan_rules.batch(plan, plan.global_batch_size)


def micro_batches_add_up(program: Program) -> Iterator[Violation]:
    """What the micro-batches of the plan compute adds up to what the whole batch does."""
    plan = program.required_plan
    if plan.micro_batches > 1 and (problem := coupling(program)):
        yield ("plan", "micro_batches"), f"{plan.micro_batches} micro-batches do not add up to the batch: {problem}"
