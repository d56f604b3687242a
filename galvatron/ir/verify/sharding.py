"""Rules of sharded and staged programs: meshes, agreement of layouts along every edge, transfers between stages."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass

import sympy

from galvatron.errors import GalvatronError
from galvatron.ir.collectives import is_started
from galvatron.ir.gradients import gradients
from galvatron.ir.graph import Graph, Value
from galvatron.ir.layout import (
    PARTIAL,
    REPLICATE,
    Layout,
    Mesh,
    Partial,
    Shard,
    gradientless,
    joint_mesh,
    local_shape,
    on_mesh,
    uncut_mesh,
)
from galvatron.ir.ops.arguments import typed
from galvatron.ir.ops.sizes import same_shape
from galvatron.ir.ops.table import operator_of
from galvatron.ir.padding import whole_sizes
from galvatron.ir.planned import epilogue_strategy
from galvatron.ir.program import Form, LayerClass, LayerKind, Program, StateLayout
from galvatron.ir.strategy import SAMPLE_ROLES
from galvatron.ir.ties import kept_whole, zero_levels
from galvatron.ir.types import BATCH, LOCAL_BATCH, TensorType, has_samples
from galvatron.ir.verify.graphs import Violation, axes_problem, layout_problem
from galvatron.ir.verify.mending import border_mended
from galvatron.ir.verify.placed import Placed
from galvatron.ir.verify.placements import placement_problem, whole_problem
from galvatron.ir.verify.programs import layers_with_loci, state_problems
from galvatron.ir.whole import SeenWhole, in_samples, layers_seen_whole, whole_type
from galvatron.ir.zero import LEVELS, summed_axes


def same_distribution(
    mesh: Mesh, layout: Layout, other_mesh: Mesh, other: Layout, *, differentiable: bool = True
) -> bool:
    """Whether two layouts, perhaps on different meshes of the same devices, put the same data on every device.

    Without a gradient `R'` and `R` are one.
    """
    try:
        finer = joint_mesh(mesh, other_mesh)
    except GalvatronError:
        return all(p == REPLICATE for p in (*layout, *other))
    first, second = on_mesh(layout, mesh, finer), on_mesh(other, other_mesh, finer)
    return first == second if differentiable else gradientless(first) == gradientless(second)


def _describe(mesh: Mesh, layout: Layout | None) -> str:
    pairs = zip(mesh, layout or (), strict=True)
    return f"({', '.join(f'{axis}: {placement}' for axis, placement in pairs)})"


def meshes_fit(program: Program) -> Iterator[Violation]:
    """Every axis of a class mesh tiles the devices of a stage; a class with a strategy has the mesh of its strategy.

    Its axes may be cut into sub-axes.
    """
    plan = program.required_plan
    once = step_classes(program)
    for cls in program.classes:
        locus = ("class", cls.name)
        if cls.strategy is not None and uncut_mesh(cls.mesh) != cls.strategy.mesh:
            yield locus, f"the mesh of @{cls.name} is not that of its strategy {cls.strategy}"
        if cls.mesh and cls.name in once:
            yield locus, f"@{cls.name} runs once per step, on the whole batch: it has no mesh"
        for axis in cls.mesh:
            if plan.devices_per_stage % (axis.stride * axis.size):
                yield locus, f"the axis {axis} does not tile the {plan.devices_per_stage} devices of a stage"


def strategies_as_planned(program: Program) -> Iterator[Violation]:
    """Every planned layer calls a class that was sharded for its planned strategy, an epilogue for the last one's."""
    last = program.layer_groups[-1]
    for index, layer in enumerate(last[1]):
        strategy = program.class_of[layer.cls].strategy
        if layer.kind is LayerKind.EPILOGUE and strategy != epilogue_strategy(program.required_plan):
            told = f"the epilogue {layer.name} belongs under {epilogue_strategy(program.required_plan)}"
            yield ("layer", last[0], index), f"{told}, but @{layer.cls} is sharded for {strategy}"
    for (owner, layers), strategies in zip(program.layer_groups, program.required_plan.stages, strict=True):
        planned = [(i, layer) for i, layer in enumerate(layers) if layer.kind is LayerKind.PLANNED]
        for (index, layer), strategy in zip(planned, strategies, strict=True):
            cls = program.class_of[layer.cls]
            if cls.strategy != strategy:
                yield (
                    ("layer", owner, index),
                    f"{layer.name} is planned as {strategy}, but @{cls.name} is sharded for {cls.strategy}",
                )


def state_shards(program: Program) -> Iterator[Violation]:
    """State divides evenly over its axes, and the class sees exactly the local part."""
    return state_problems(program, _shard_problem)


def _shard_problem(type: TensorType, formal: Value, cls: LayerClass) -> str:
    problem = _state_problem(type, formal, cls)
    return problem and f"as %{formal.name} of @{cls.name}: {problem}"


def _state_problem(type: TensorType, formal: Value, cls: LayerClass) -> str:
    if any(isinstance(p, Partial) for p in formal.layout or ()):
        return "state is never a partial sum"
    if len(type.shape) != len(formal.type.shape):
        return f"{type} is no {formal.type}"
    try:
        local = TensorType(type.dtype, local_shape(type.shape, formal.layout or (), cls.mesh))
    except GalvatronError as error:
        return str(error)
    if local == formal.type:
        return ""
    return f"{type} as {_describe(cls.mesh, formal.layout)} is {local}, not {formal.type}"


def ties_as_planned(program: Program) -> Iterator[Violation]:
    """Parameters that the plan keeps whole in all layers that share them are whole there."""
    whole = kept_whole(program)
    for layer, locus in layers_with_loci(program):
        cls = program.class_of[layer.cls]
        for name, formal in zip(layer.state, cls.graph.state, strict=True):
            if name in whole and any(isinstance(p, Shard) for p in formal.layout or ()):
                read = _describe(cls.mesh, formal.layout)
                yield locus, f"the plan keeps {name} whole, but {layer.name} reads it as {read}"


def ops_on_slices(program: Program) -> Iterator[Violation]:
    """Every op computes on slices what it computes on whole tensors, and gradients are placed as its operands say."""
    formals = gradients(program).formals
    for cls in program.classes:
        if cls.mesh:
            yield from _placement_problems(cls, formals[cls.origin_name], whole_sizes(program, cls))


def attention_waits_for_itself(program: Program) -> Iterator[Violation]:
    """A layer whose attention alone is computed again waits for every collective where it begins.

    The part that is computed again would wait a second time for what another part has started.
    """
    for cls in program.classes:
        if cls.strategy is not None and cls.strategy.recompute == "attention":
            for index, op in enumerate(cls.graph.ops):
                if is_started(op):
                    yield ("op", cls.name, index), f"{op.target} is started under recompute=attention"


def _placement_problems(
    cls: LayerClass, differentiable: set[str], whole: dict[str, dict[int, int]]
) -> Iterator[Violation]:
    """The violations of one class; `whole` has the whole sizes of padded dimensions by value. What would mend an op is
    told where it reads nothing that is wrong already: else it may be right as it is."""
    placed = placed_values(cls, differentiable, whole)
    doubtful: dict[str, str] = {}
    for index, op in enumerate(cls.graph.ops):
        first = next((doubtful[name] for name in op.operands if name in doubtful), "")
        if op.namespace != "comm":
            operands = tuple(placed[name] for name in op.operands)
            results = tuple(placed[value.name] for value in op.results)
            problem = placement_problem(op, operands, results, cls.mesh, mended=not first)
            if problem or (problem := whole_problem(op, operands, results)):
                told = f"{op.target}: {problem}"
                told += f" (this may follow from what is wrong with %{first})" if first else ""
                yield ("op", cls.name, index), told
                first = first or op.results[0].name
        doubtful |= dict.fromkeys((value.name for value in op.results), first) if first else {}


def placed_values(
    cls: LayerClass, differentiable: Collection[str], whole: Mapping[str, dict[int, int]]
) -> dict[str, Placed]:
    """Every value of a class seen whole, by name; `whole` has the whole sizes of padded dimensions by value."""
    state = {value.name for value in cls.graph.state}
    return {
        name: Placed(
            name,
            whole_type(value, cls.mesh, whole.get(name, {})),
            value.layout or (),
            name in differentiable,
            name in state,
        )
        for name, value in cls.graph.values.items()
    }


def operands_fit(program: Program) -> Iterator[Violation]:
    """Seen whole, an operand is the very tensor that the class reads, and `b` counts the same samples in all of them.

    Where it is placed otherwise, layers that redistribute it are still to come.
    """
    inputs = {value.name for value in program.inputs}
    for seen, locus in _seen_with_loci(program):
        cls = program.class_of[seen.layer.cls]
        for name, given, formal in zip(seen.layer.operands, seen.operands, seen.graph.inputs, strict=True):
            wanted = formal.type
            if given and (given.dtype != wanted.dtype or not same_shape(given.shape, wanted.shape)):
                yield locus, f"%{name} is part of {given}, but %{formal.name} of @{cls.name} of {wanted}"
            if name in inputs and any(isinstance(p, Partial) for p in cls.graph.values[formal.name].layout or ()):
                yield locus, f"%{name} as %{formal.name} of @{cls.name}: a batch input is never a partial sum"


def _seen_with_loci(program: Program) -> Iterator[tuple[SeenWhole, tuple[Hashable, ...]]]:
    """Every layer, seen whole, with the line that has it."""
    seen = layers_seen_whole(program.classes, program.all_layers, program.inputs)
    return ((one, locus) for one, (_, locus) in zip(seen, layers_with_loci(program), strict=True))


@dataclass(frozen=True)
class Edge:
    """A value that a layer reads: who makes it (None for a batch input), in which layout, and in which one it is read.

    `locus` is the line of the reader, `formal` what its class calls the value.
    """

    name: str
    locus: tuple[Hashable, ...]
    maker: SeenWhole | None
    reader: SeenWhole
    formal: str
    given: Layout
    asked: Layout
    meshes: tuple[Mesh, Mesh]
    differentiable: bool

    @property
    def given_in_samples(self) -> Layout:
        """The layout in which it is made, in samples of the whole batch."""
        return in_samples(self.given, self.maker.samples) if self.maker else self.given

    @property
    def asked_in_samples(self) -> Layout:
        """The layout in which it is read, in samples of the whole batch."""
        return in_samples(self.asked, self.reader.samples)

    @property
    def agrees(self) -> bool:
        """Whether what is read is what is made, on every device. (Of a batch input each takes what it needs.)"""
        made, read = self.meshes
        given, asked = self.given_in_samples, self.asked_in_samples
        return self.maker is None or same_distribution(made, given, read, asked, differentiable=self.differentiable)


def edges(program: Program) -> Iterator[Edge]:
    """What the layers of a sharded program read, in order."""
    producers: dict[str, tuple[SeenWhole, Layout]] = {}
    differentiable = gradients(program).values
    for seen, locus in _seen_with_loci(program):
        cls = program.class_of[seen.layer.cls]
        for name, formal in zip(seen.layer.operands, cls.graph.inputs, strict=True):
            source, given = producers.get(name, (None, ()))
            mesh = program.class_of[source.layer.cls].mesh if source else ()
            asked = formal.layout or ()
            yield Edge(name, locus, source, seen, formal.name, given, asked, (mesh, cls.mesh), name in differentiable)
        for name, formal in zip(seen.layer.results, cls.graph.outputs, strict=True):
            producers[name] = (seen, cls.graph.values[formal].layout or ())


def edges_agree(program: Program) -> Iterator[Violation]:
    """Along every edge, also across stages, the consumer reads the layout that the producer gives.

    So it reads the same local tensor, since `operands_fit` holds.
    """
    for edge in edges(program):
        if not edge.agrees:
            made, read = edge.meshes
            told = f"is {_describe(made, edge.given)}, but is read as {_describe(read, edge.asked)}"
            if made == read:
                told += border_mended(edge.name, made, edge.given, edge.asked, differentiable=edge.differentiable)
            yield edge.locus, f"%{edge.name} as %{edge.formal} of @{edge.reader.layer.cls}: {told}"


def loss_is_whole(program: Program) -> Iterator[Violation]:
    """The loss is replicated (R) or a partial sum (P) on every axis: its gradient is one on every rank."""
    for layer, locus in layers_with_loci(program):
        graph = program.class_of[layer.cls].graph
        for name, formal in zip(layer.results, graph.outputs, strict=True):
            layout = graph.values[formal].layout or ()
            if name == program.output and any(p not in (REPLICATE, PARTIAL) for p in layout):
                yield locus, f"the loss %{name} is ({', '.join(map(str, layout))})"


def updates_are_whole(program: Program) -> Iterator[Violation]:
    """The new value of state is, on every rank, the part that it would keep of the state, and never a partial sum."""
    for layer, locus in layers_with_loci(program):
        for update, value in program.updates_in(layer):
            problem = _state_problem(program.state_of[update.state].type, value, program.class_of[layer.cls])
            if problem:
                yield locus, f"%{update.value}, the new value of {update.state}: {problem}"


def copies_agree(program: Program) -> Iterator[Violation]:
    """What several stages or strategies have a copy of is in each of them the same function of the same values."""
    first: dict[tuple[str, ...], Hashable] = {}
    for seen, locus in _seen_with_loci(program):
        layer = seen.layer
        if layer.kind in (LayerKind.PREAMBLE, LayerKind.STEP):
            values, computed = layer.origin or layer.results, (layer.kind, layer.state, _function(seen.graph))
            if first.setdefault(values, computed) != computed:
                told = ", ".join(f"%{name}" for name in values)
                yield locus, f"{layer.name} computes {told} otherwise than another copy"


def _function(graph: Graph) -> Hashable:
    """What a graph that is seen whole computes, whatever its values are called; of sizes that say how large a result
    is, its type tells all."""
    numbers = {name: str(number) for number, name in enumerate(graph.values)}
    ops = tuple(
        (op.target, tuple(value.type for value in op.results), *(
            (name, typed(arg)) for name, arg in op.map_refs(numbers.__getitem__).arguments.items()
            if name not in operator_of(op).sizes
        ))
        for op in graph.ops
    )  # fmt: skip
    return tuple(v.type for v in (*graph.inputs, *graph.state)), ops, tuple(numbers[name] for name in graph.outputs)


def epilogue_slices(program: Program) -> Iterator[Violation]:
    """What an epilogue is given of several micro-batches is, laid end to end, the rank's shard of the batch.

    Each micro-batch has a stretch of every data-parallel shard, so samples are sharded on just the `SAMPLE_ROLES`.
    """
    inputs = {value.name for value in program.inputs}
    for layer, locus in layers_with_loci(program):
        if layer.kind is not LayerKind.EPILOGUE or program.required_plan.micro_batches == 1:
            continue
        cls = program.class_of[layer.cls]
        for name, formal in zip(layer.operands, cls.graph.inputs, strict=True):
            along = next((i for i, dim in enumerate(formal.type.shape) if has_samples(dim)), None)
            if name in inputs or along is None:
                continue
            for axis, placement in zip(cls.mesh, formal.layout or (), strict=True):
                cuts = isinstance(placement, Shard) and placement.dim == along and not has_samples(placement.outer)
                if cuts != (axis.parent in SAMPLE_ROLES) or (cuts and placement != Shard(along)):
                    yield locus, f"%{name} is {placement} on {axis}: its micro-batches are no shard of the batch"


def stages_in_order(program: Program) -> Iterator[Violation]:
    """Stages are numbered from 0, as many as the plan has; what passes between them comes with the staged form."""
    for position, stage in enumerate(program.stages):
        if stage.index != position:
            yield ("stage", stage.index), f"stage {stage.index} stands where stage {position} should"
        if program.form is Form.SHARDED and (stage.receives or stage.sends or stage.state):
            yield ("stage", stage.index), f"what stage {stage.index} receives, sends or keeps is for a staged program"
    if len(program.stages) != len(program.required_plan.stages):
        yield ("program",), f"{len(program.stages)} stages, but the plan has {len(program.required_plan.stages)}"


def transfers_pair(program: Program) -> Iterator[Violation]:
    """What a stage sends is what the next one receives, by name, type and order; the ends are closed."""
    sent: tuple = ()
    for stage in program.stages:
        if stage.receives != sent:
            known = set(sent)
            odd = next((t for t in stage.receives if t not in known), None)
            names = ", ".join(f"%{t.name}: {t.type}" for t in sent) or "nothing"
            locus = ("receive", stage.index, odd.name) if odd else ("stage", stage.index)
            yield locus, f"stage {stage.index} must receive what the stage before sends: {names}"
        sent = stage.sends
    if sent:
        last = program.stages[-1].index
        yield ("send", last, sent[0].name), "the last stage sends, but nobody receives"


def transfers_defined(program: Program) -> Iterator[Violation]:
    """A stage sends values that it computes or passes on, with their local type; the last one computes the loss.

    Of those that have a gradient it comes back.
    """
    differentiable = gradients(program).values
    for stage in program.stages:
        types = {t.name: t.type for t in stage.receives}
        for layer in stage.layers:
            graph = program.class_of[layer.cls].graph
            types.update((n, graph.values[f].type) for n, f in zip(layer.results, graph.outputs, strict=True))
        for transfer in stage.sends:
            locus = ("send", stage.index, transfer.name)
            if types.get(transfer.name) != transfer.type:
                found = types.get(transfer.name, "not defined here")
                yield locus, f"%{transfer.name} is {found}, but sent as {transfer.type}"
            elif transfer.differentiable != (transfer.name in differentiable):
                told = "has a gradient that comes back" if not transfer.differentiable else "has no gradient"
                yield locus, f"%{transfer.name} {told}"
    results = {name for layer in program.stages[-1].layers for name in layer.results}
    if program.output not in results:
        yield ("stage", program.stages[-1].index), f"the last stage does not compute the loss %{program.output}"


def state_is_kept(program: Program) -> Iterator[Violation]:
    """A stage keeps all state its layers bind, once, laid out as every one of them reads it."""
    for stage in program.stages:
        kept = {k.state: k for k in stage.state}
        if len(kept) < len(stage.state):
            yield ("stage", stage.index), f"stage {stage.index} keeps a piece of state twice"
        problems = {name: problem for name, k in kept.items() if (problem := _kept_problem(program, k))}
        for name, problem in problems.items():
            yield ("keep", stage.index, name), f"{name}: {problem}"
        for index, layer in enumerate(stage.layers):
            cls = program.class_of[layer.cls]
            for name, formal in zip(layer.state, cls.graph.state, strict=True):
                if name not in kept:
                    yield ("layer", stage.index, index), f"stage {stage.index} does not keep {name}"
                elif name not in problems and not _kept_as_read(program, kept[name], cls, formal):
                    described = _describe(kept[name].mesh, kept[name].layout)
                    read = _describe(cls.mesh, formal.layout)
                    told = f"{name} is kept as {described}, but {layer.name} reads it as {read}{_SUMMED}"
                    yield ("keep", stage.index, name), told


def updates_are_kept(program: Program) -> Iterator[Violation]:
    """The stage that makes the new value of a piece of state keeps it so laid out."""
    for stage in program.stages:
        kept = {k.state: k for k in stage.state}
        for index, layer in enumerate(stage.layers):
            mesh = program.class_of[layer.cls].mesh
            for update, value in program.updates_in(layer):
                name, layout = update.state, value.layout or ()
                if (keep := kept.get(name)) is None:
                    yield ("layer", stage.index, index), f"stage {stage.index} updates {name}, which it does not keep"
                elif not same_distribution(keep.mesh, keep.layout, mesh, layout, differentiable=False):
                    told = f"is kept as {_describe(keep.mesh, keep.layout)}, but made as {_describe(mesh, layout)}"
                    yield ("keep", stage.index, name), f"{name} {told}"


_SUMMED = "; its gradient is summed over the axes on which it is R', and over no others"


def _kept_as_read(program: Program, kept: StateLayout, cls: LayerClass, formal: Value) -> bool:
    trainable = program.state_of[kept.state].trainable
    return same_distribution(kept.mesh, kept.layout, cls.mesh, formal.layout or (), differentiable=trainable)


def _kept_problem(program: Program, kept: StateLayout) -> str:
    if kept.state not in program.state_of:
        return "the program has no such state"
    if len(kept.mesh) != len(kept.layout):
        return f"{len(kept.layout)} placements on a mesh of {len(kept.mesh)} axes"
    if any(axis.size < 2 or axis.stride < 1 for axis in kept.mesh):
        return "its mesh has an axis of fewer than two devices"
    devices = program.required_plan.devices_per_stage
    problem = axes_problem(kept.mesh)
    if problem or any(devices % (axis.stride * axis.size) for axis in kept.mesh):
        told = f"{', '.join(map(str, kept.mesh))} are no axes of the {devices} devices of a stage"
        return f"{told}: {problem}" if problem else told
    if kept.zero not in range(len(LEVELS)):
        return f"there is no ZeRO level {kept.zero}"
    if kept.zero and not summed_axes(kept.layout, kept.mesh):
        return f"ZeRO level {kept.zero} without an axis on which its gradient is summed"
    return layout_problem(program.state_of[kept.state].type.shape, kept.layout, kept.mesh)


def zero_as_planned(program: Program) -> Iterator[Violation]:
    """State has the ZeRO level of its layers' strategies, or 0 where the plan keeps whole what layers share."""
    levels = zero_levels(program)
    for stage in program.stages:
        for kept in stage.state:
            wanted = levels.get(kept.state, 0) if summed_axes(kept.layout, kept.mesh) else 0
            if kept.zero != wanted:
                told = f"{kept.state} has ZeRO level {kept.zero}, but the plan says {wanted}"
                yield ("keep", stage.index, kept.state), told


def tied_state_agrees(program: Program) -> Iterator[Violation]:
    """State kept by several stages has one layout and one ZeRO level on all of them."""
    first: dict[str, StateLayout] = {}
    for stage in program.stages:
        for kept in stage.state:
            other = first.setdefault(kept.state, kept)
            trainable = program.state_of[kept.state].trainable
            if not same_distribution(kept.mesh, kept.layout, other.mesh, other.layout, differentiable=trainable):
                described = _describe(kept.mesh, kept.layout)
                told = f"{kept.state} is {described} here, but otherwise on another stage{_SUMMED}"
                yield ("keep", stage.index, kept.state), told
            elif kept.zero != other.zero:
                told = f"{kept.state} has ZeRO level {kept.zero} here, but {other.zero} on another stage"
                yield ("keep", stage.index, kept.state), told


def step_classes(program: Program) -> set[str]:
    """Names of the classes that run once per step, on the whole batch."""
    return {layer.cls for layer in program.all_layers if layer.kind.is_whole}


def batch_symbols(form: Form, *, once: bool) -> frozenset[sympy.Expr]:
    """The batch symbols a class may use: `B` before sharding, then `b`, and both where it runs on the whole batch.

    Args:
        once: the class runs once per step.
    """
    if form < Form.SHARDED:
        return frozenset((BATCH,))
    return frozenset((BATCH, LOCAL_BATCH)) if once else frozenset((LOCAL_BATCH,))
