"""Edits of programs that change what they say, each of a named kind, at a random place.

`KINDS` tells which kinds give another valid program, and why; an edit of any other kind must be refused by the
verifier, or leave the generated code as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

import sympy

from galvatron.ir.graph import Arg, Const, Graph, Op, Ref, Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Axis, Shard, nameable_axes
from galvatron.ir.ops.schemas import operators, schema_of
from galvatron.ir.ops.table import operator_of
from galvatron.ir.program import Form, Layer, LayerClass, LayerKind, Program, Stage, StateLayout, Transfer, Update
from galvatron.ir.random import without_site
from galvatron.ir.spmd import spmd_target, without_axis
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import LOCAL_BATCH, Dim, TensorType

T = TypeVar("T")


class Impossible(Exception):
    """There is nothing in the program that an edit of this kind could change."""


@dataclass(frozen=True)
class Kind:
    """A kind of edit; `valid` says why its result is another valid program, empty for one that must be refused."""

    edit: Callable[[Program, Random], Program]
    first: Form
    last: Form
    valid: str = ""


# Places


def one_of(random: Random, options: Sequence[T]) -> T:
    if not options:
        raise Impossible
    return random.choice(options)


def other(random: Random, options: Sequence[T], than: T) -> T:
    return one_of(random, [option for option in options if option != than])


def with_graph(program: Program, random: Random, edit: Callable[[Graph, LayerClass | None], Graph]) -> Program:
    """The program with the graph of one class, or its only one, changed."""
    if program.graph is not None:
        return replace(program, graph=edit(program.graph, None))
    order = random.sample(program.classes, len(program.classes))
    for cls in order:
        try:
            changed = replace(cls, graph=edit(cls.graph, cls))
        except Impossible:
            continue
        return replace(program, classes=tuple(changed if c is cls else c for c in program.classes))
    raise Impossible


def with_op(
    program: Program, random: Random, wanted: Callable[[Op], bool], edit: Callable[[Op, Graph, LayerClass | None], Op]
) -> Program:
    """The program with one op for which `wanted` holds changed."""

    def changed(graph: Graph, cls: LayerClass | None) -> Graph:
        candidates = [i for i, op in enumerate(graph.ops) if wanted(op)]
        for i in random.sample(candidates, len(candidates)):
            try:
                op = edit(graph.ops[i], graph, cls)
            except Impossible:
                continue
            return replace(graph, ops=(*graph.ops[:i], op, *graph.ops[i + 1 :]))
        raise Impossible

    return with_graph(program, random, changed)


def with_value(
    program: Program, random: Random, wanted: Callable[[Value], bool], edit: Callable[[Value, LayerClass | None], Value]
) -> Program:
    """The program with one value, of an input, state or result, changed where it is defined."""

    def changed(graph: Graph, cls: LayerClass | None) -> Graph:
        old = one_of(random, [v for v in graph.values.values() if wanted(v)])
        new = edit(old, cls)

        def put(values: tuple[Value, ...]) -> tuple[Value, ...]:
            return tuple(new if v.name == old.name else v for v in values)

        ops = tuple(replace(op, results=put(op.results)) for op in graph.ops)
        return replace(graph, inputs=put(graph.inputs), state=put(graph.state), ops=ops)

    return with_graph(program, random, changed)


def with_layer(program: Program, random: Random, edit: Callable[[Layer], Layer]) -> Program:
    layers = program.layers or tuple(layer for stage in program.stages for layer in stage.layers)
    for old in random.sample(layers, len(layers)):
        try:
            new = edit(old)
        except Impossible:
            continue

        def put(group: tuple[Layer, ...], old: Layer = old, new: Layer = new) -> tuple[Layer, ...]:
            return tuple(new if layer is old else layer for layer in group)

        stages = tuple(replace(stage, layers=put(stage.layers)) for stage in program.stages)
        return replace(program, layers=put(program.layers), stages=stages)
    raise Impossible


def with_stage(program: Program, random: Random, edit: Callable[[Stage], Stage]) -> Program:
    for old in random.sample(program.stages, len(program.stages)):
        try:
            new = edit(old)
        except Impossible:
            continue
        return replace(program, stages=tuple(new if stage is old else stage for stage in program.stages))
    raise Impossible


def swapped(random: Random, items: tuple[T, ...]) -> tuple[T, ...]:
    """The items with two unequal ones exchanged."""
    pairs = [(i, j) for i in range(len(items)) for j in range(i) if items[i] != items[j]]
    i, j = one_of(random, pairs)
    listed = list(items)
    listed[i], listed[j] = listed[j], listed[i]
    return tuple(listed)


def is_comm(op: Op) -> bool:
    return op.target.startswith("comm.")


def is_aten(op: Op) -> bool:
    return op.target.startswith("aten.")


def has_axis(op: Op) -> bool:
    return op.kwarg("axis") is not None


# Edits of ops


def drop_communication(program: Program, random: Random) -> Program:
    def edit(graph: Graph, cls: LayerClass | None) -> Graph:
        dropped = one_of(random, [op for op in graph.ops if is_comm(op)])
        names = {dropped.result.name: dropped.operands[0]}
        ops = tuple(op.map_refs(lambda n: names.get(n, n)) for op in graph.ops if op is not dropped)
        return replace(graph, ops=ops, outputs=tuple(names.get(n, n) for n in graph.outputs))

    return with_graph(program, random, edit)


def drop_computation(program: Program, random: Random) -> Program:
    def edit(graph: Graph, cls: LayerClass | None) -> Graph:
        def unary(op: Op) -> bool:
            alike = [n for n in op.operands if graph.values[n] == replace(op.results[0], name=n)]
            return not is_comm(op) and len(op.results) == 1 and bool(alike)

        dropped = one_of(random, [op for op in graph.ops if unary(op)])
        source = next(n for n in dropped.operands if graph.values[n] == replace(dropped.result, name=n))
        names = {dropped.result.name: source}
        ops = tuple(op.map_refs(lambda n: names.get(n, n)) for op in graph.ops if op is not dropped)
        return replace(graph, ops=ops, outputs=tuple(names.get(n, n) for n in graph.outputs))

    return with_graph(program, random, edit)


def axis_of_an_op(program: Program, random: Random) -> Program:
    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        names = [axis.name for axis in nameable_axes(cls.mesh if cls else ())] + ["ep"]
        chosen = other(random, names, str(op.kwarg("axis")))
        return replace(op, kwargs=tuple((k, chosen if k == "axis" else v) for k, v in op.kwargs))

    return with_op(program, random, has_axis, edit)


def size_of_a_sharded_dimension(program: Program, random: Random) -> Program:
    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        size = op.kwarg("size")
        assert isinstance(size, (int, sympy.Expr))
        chosen = random.choice([size + 1, size - 1, 2 * size, size // 2, 0, -size])
        return replace(op, kwargs=tuple((k, chosen if k == "size" else v) for k, v in op.kwargs))

    return with_op(program, random, lambda op: op.target.startswith("spmd."), edit)


def keyword_of_a_collective(program: Program, random: Random) -> Program:
    choices: dict[str, tuple[Arg, ...]] = {
        "dim": (0, 1, 2), "split_dim": (0, 1, 2), "concat_dim": (0, 1, 2), "outer": (1, 2, 3, LOCAL_BATCH),
        "split_outer": (1, 2, 3), "concat_outer": (1, 2, 3), "folded": (False, 1),
        "split_folded": (False, 1), "concat_folded": (False, 1),
        "grad": ("identity", "all_reduce", "slice", "reduce_scatter", "all_gather", "pad", "first"),
    }  # fmt: skip

    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        name = one_of(random, [k for k, _ in op.kwargs if k in choices])
        chosen = other(random, choices[name], op.kwarg(name))
        return replace(op, kwargs=tuple((k, chosen if k == name else v) for k, v in op.kwargs))

    return with_op(program, random, is_comm, edit)


def retarget_a_collective(program: Program, random: Random) -> Program:
    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        names = ["copy", "all_reduce", "all_gather", "reduce_scatter", "slice", "all_to_all", "first", "pad"]
        return replace(op, target=other(random, [f"comm.{name}" for name in names], op.target))

    return with_op(program, random, is_comm, edit)


def retarget_to_an_op_on_slices(program: Program, random: Random) -> Program:
    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        axis = one_of(random, nameable_axes(cls.mesh if cls else ()))
        shape = graph.values[op.operands[0]].type.shape
        keywords = (*op.kwargs, ("axis", axis.name), ("size", one_of(random, shape)))
        return replace(op, target=spmd_target(op), kwargs=keywords)

    return with_op(program, random, lambda op: is_aten(op) and operator_of(op).on_slices is not None, edit)


def retarget_to_no_operator(program: Program, random: Random) -> Program:
    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        _, name, overload = op.target.split(".")
        wrong = [f"aten.{name}_.{overload}", f"aten.{name}x.{overload}", f"aten.{name}.out", "aten.zero_.default"]
        return replace(op, target=random.choice([*wrong, "aten.from_file.default", f"prim.{name}.{overload}"]))

    return with_op(program, random, is_aten, edit)


def retarget_to_another_operator(program: Program, random: Random) -> Program:
    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        return replace(op, target=other(random, [f"aten.{name}" for name in operators()], op.target))

    return with_op(program, random, is_aten, edit)


def read_another_value(program: Program, random: Random) -> Program:
    """An operand that is placed or typed otherwise than the one in its place."""

    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        before = [*graph.inputs, *graph.state]
        for earlier in graph.ops[: graph.ops.index(op)]:
            before += earlier.results
        old = graph.values[one_of(random, op.operands)]
        new = one_of(random, [v for v in before if (v.type, v.layout) != (old.type, old.layout)])
        return op.map_refs(lambda n: new.name if n == old.name else n)

    return with_op(program, random, lambda op: bool(op.operands), edit)


def read_an_equal_value(program: Program, random: Random) -> Program:
    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        before = [*graph.inputs, *graph.state]
        for earlier in graph.ops[: graph.ops.index(op)]:
            before += earlier.results
        old = graph.values[one_of(random, op.operands)]
        alike = [v for v in before if v.name != old.name and (v.type, v.layout) == (old.type, old.layout)]
        new = one_of(random, alike)
        return op.map_refs(lambda n: new.name if n == old.name else n)

    return with_op(program, random, lambda op: bool(op.operands), edit)


def swap_operands(program: Program, random: Random) -> Program:
    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        places = [i for i, a in enumerate(op.args) if isinstance(a, Ref)]
        refs = swapped(random, tuple(op.args[i] for i in places))
        args = list(op.args)
        for place, ref in zip(places, refs, strict=True):
            args[place] = ref
        return replace(op, args=tuple(args))

    return with_op(program, random, lambda op: len(op.operands) > 1, edit)


def literal_argument(program: Program, random: Random) -> Program:
    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        place = one_of(random, [i for i, a in enumerate(op.args) if isinstance(a, (int, float, bool, tuple, str))])
        args = list(op.args)
        args[place] = _changed(args[place], random)
        return replace(op, args=tuple(args))

    return with_op(program, random, lambda op: not is_comm(op), edit)


def _changed(arg: Arg, random: Random) -> Arg:
    if isinstance(arg, tuple):
        place = one_of(random, range(len(arg)))
        return (*arg[:place], _changed(arg[place], random), *arg[place + 1 :])
    if isinstance(arg, bool):
        return not arg
    if isinstance(arg, int):
        return arg + random.choice([-1, 1, 2])
    if isinstance(arg, float):
        return arg * 2 + 1
    raise Impossible


def argument_too_many(program: Program, random: Random) -> Program:
    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        if random.random() < 0.5:
            return replace(op, kwargs=(*op.kwargs, ("odd", 1)))
        plain = without_axis(without_site(op))
        room = 1
        if is_aten(plain):
            room += sum(not p.keyword_only for p in schema_of(plain.target).parameters) - len(op.args)
        return replace(op, args=(*op.args, *(one_of(random, [1, None, Ref(graph.outputs[0])]) for _ in range(room))))

    return with_op(program, random, lambda op: True, edit)


def argument_too_few(program: Program, random: Random) -> Program:
    """Without an argument that the operator needs."""

    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        return replace(op, args=op.args[1:] if random.random() < 0.5 else ())

    return with_op(program, random, lambda op: bool(op.operands) and is_aten(op), edit)


def argument_of_another_kind(program: Program, random: Random) -> Program:
    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        args = list(op.args)
        place = one_of(random, range(len(args)))
        odd: list[Arg] = ["odd", Const("memory_format", "load"), Const("dtype", "f33"), (("x",),)]
        args[place] = one_of(random, odd)
        return replace(op, args=tuple(args))

    return with_op(program, random, lambda op: bool(op.args), edit)


def keyword_of_a_draw(program: Program, random: Random) -> Program:
    def edit(op: Op, graph: Graph, cls: LayerClass | None) -> Op:
        name = random.choice(["axes", "per_step"])
        old = op.kwarg(name)
        axes = other(random, [(), ("dp",), ("tp",), ("dp", "tp")], old)
        new = axes if name == "axes" else not old
        return replace(op, kwargs=tuple((k, new if k == name else v) for k, v in op.kwargs))

    return with_op(program, random, lambda op: op.target.startswith("random."), edit)


# Edits of values


def element_type(program: Program, random: Random) -> Program:
    def edit(value: Value, cls: LayerClass | None) -> Value:
        dtype = other(random, ["f64", "f32", "f16", "i64", "bool"], value.type.dtype)
        return replace(value, type=TensorType(dtype, value.type.shape))

    return with_value(program, random, lambda v: True, edit)


def shape(program: Program, random: Random) -> Program:
    def edit(value: Value, cls: LayerClass | None) -> Value:
        place = random.randrange(len(value.type.shape))
        size: Dim = value.type.shape[place]
        new = one_of(random, [size + 1, 2 * size, 1 if size != 1 else 3])
        sizes = (*value.type.shape[:place], new, *value.type.shape[place + 1 :])
        return replace(value, type=value.type.with_shape(sizes))

    return with_value(program, random, lambda v: bool(v.type.shape), edit)


def placement(program: Program, random: Random) -> Program:
    def edit(value: Value, cls: LayerClass | None) -> Value:
        layout = list(value.layout or ())
        place = one_of(random, range(len(layout)))
        dims = range(len(value.type.shape))
        shards = [Shard(d, outer, folded=folded) for d in dims for outer in (1, 2) for folded in (False, True)]
        layout[place] = other(random, [REPLICATE, BROADCAST, PARTIAL, *shards], layout[place])
        return replace(value, layout=tuple(layout))

    return with_value(program, random, lambda v: bool(v.layout), edit)


def placement_and_shape(program: Program, random: Random) -> Program:
    """Another placement with the local shape that belongs to it."""

    def edit(value: Value, cls: LayerClass | None) -> Value:
        assert cls is not None and value.layout is not None
        place = one_of(random, range(len(value.layout)))
        old, axis = value.layout[place], cls.mesh[place]
        sizes = list(value.type.shape)
        if isinstance(old, Shard):
            sizes[old.dim] = sizes[old.dim] * axis.size
        fitting = [d for d, size in enumerate(sizes) if not isinstance(size, int) or size % axis.size == 0]
        shards = [Shard(d, folded=folded) for d in fitting for folded in (False, True)]
        new = other(random, [REPLICATE, BROADCAST, PARTIAL, *shards], old)
        if isinstance(new, Shard):
            size = sizes[new.dim]
            sizes[new.dim] = size // axis.size if isinstance(size, int) else size / axis.size
        layout = (*value.layout[:place], new, *value.layout[place + 1 :])
        return replace(value, type=value.type.with_shape(tuple(sizes)), layout=layout)

    return with_value(program, random, lambda v: bool(v.layout), edit)


def swap_outputs(program: Program, random: Random) -> Program:
    return with_graph(program, random, lambda g, _: replace(g, outputs=swapped(random, g.outputs)))


# Edits of updates


def drop_an_update(program: Program, random: Random) -> Program:
    one = one_of(random, program.updates)
    updates = tuple(update for update in program.updates if update is not one)
    if program.graph is not None:
        graph = replace(program.graph, outputs=replace(program, updates=updates).results)
        return replace(program, updates=updates, graph=graph)
    return replace(program, updates=updates)


def _with_update(program: Program, random: Random, edit: Callable[[Update], Update]) -> Program:
    one = one_of(random, program.updates)
    return replace(program, updates=tuple(edit(u) if u is one else u for u in program.updates))


def value_of_an_update(program: Program, random: Random) -> Program:
    """Another value, of another type or with other placements, or none."""
    values = program.values() if program.graph is None else program.graph.values

    def edit(update: Update) -> Update:
        old = values[update.value]
        unlike = [n for n, v in values.items() if v.type != old.type or _is_cut(v)]
        return replace(update, value=one_of(random, ["none", *unlike]))

    return _with_update(program, random, edit)


def _is_cut(value: Value) -> bool:
    return any(placement not in (REPLICATE, BROADCAST) for placement in value.layout or ())


def state_of_an_update(program: Program, random: Random) -> Program:
    """State of another type, or what is trained."""

    def edit(update: Update) -> Update:
        type_ = program.state_of[update.state].type
        return replace(update, state=one_of(random, [s.name for s in program.state if s.trainable or s.type != type_]))

    return _with_update(program, random, edit)


# Edits of classes, layers and stages


def mesh(program: Program, random: Random) -> Program:
    def edit(cls: LayerClass) -> LayerClass:
        place = one_of(random, range(len(cls.mesh)))
        old = cls.mesh[place]
        new = other(random, [Axis(old.name, 2, 1), Axis(old.name, 2, 2), Axis(old.name, 4, 1), Axis("cp", 2, 1)], old)
        return replace(cls, mesh=(*cls.mesh[:place], new, *cls.mesh[place + 1 :]))

    old = one_of(random, [c for c in program.classes if c.mesh])
    new = edit(old)
    return replace(program, classes=tuple(new if c is old else c for c in program.classes))


def class_of_a_layer(program: Program, random: Random) -> Program:
    def edit(layer: Layer) -> Layer:
        return replace(layer, cls=other(random, [c.name for c in program.classes] + ["none"], layer.cls))

    return with_layer(program, random, edit)


def operand_of_a_layer(program: Program, random: Random) -> Program:
    values = program.values()

    def edit(layer: Layer) -> Layer:
        place = one_of(random, range(len(layer.operands)))
        old = values.get(layer.operands[place])
        fitting = [n for n, v in values.items() if old is None or (v.type, v.layout) != (old.type, old.layout)]
        new = one_of(random, fitting)
        return replace(layer, operands=(*layer.operands[:place], new, *layer.operands[place + 1 :]))

    return with_layer(program, random, edit)


def state_of_a_layer(program: Program, random: Random) -> Program:
    def edit(layer: Layer) -> Layer:
        place = one_of(random, range(len(layer.state)))
        type_ = program.state_of[layer.state[place]].type
        new = one_of(random, [s.name for s in program.state if s.type != type_])
        return replace(layer, state=(*layer.state[:place], new, *layer.state[place + 1 :]))

    return with_layer(program, random, edit)


def equal_state_of_a_layer(program: Program, random: Random) -> Program:
    def edit(layer: Layer) -> Layer:
        place = one_of(random, range(len(layer.state)))
        old = program.state_of[layer.state[place]]
        new = other(random, [s.name for s in program.state if replace(s, name=old.name) == old], old.name)
        return replace(layer, state=(*layer.state[:place], new, *layer.state[place + 1 :]))

    return with_layer(program, random, edit)


def kind_of_a_layer(program: Program, random: Random) -> Program:
    def edit(layer: Layer) -> Layer:
        kind = other(random, list(LayerKind), layer.kind)
        copies = kind in (LayerKind.CONVERSION, LayerKind.PREAMBLE, LayerKind.STEP)
        return replace(layer, kind=kind, origin=layer.origin if copies else ())

    return with_layer(program, random, edit)


def drop_a_layer(program: Program, random: Random) -> Program:
    names = [layer.name for layer in (*program.layers, *(x for stage in program.stages for x in stage.layers))]
    gone = one_of(random, names)

    def kept(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        return tuple(layer for layer in layers if layer.name != gone)

    stages = tuple(replace(s, layers=kept(s.layers)) for s in program.stages)
    return replace(program, layers=kept(program.layers), stages=stages)


def strategy_of_a_layer(program: Program, random: Random) -> Program:
    plan = program.plan
    assert plan is not None
    stage = random.randrange(len(plan.stages))
    strategies = list(plan.stages[stage])
    place = random.randrange(len(strategies))
    texts = ["dp4", "tp4", "dp2-tp2", "tp2-dp2", "dp2-tp2-zero3", "tp2+sp-dp2", "dp2", "tp2", "dp2-tp2-recompute"]
    strategies[place] = other(random, [Strategy.parse(text) for text in texts], strategies[place])
    stages = (*plan.stages[:stage], tuple(strategies), *plan.stages[stage + 1 :])
    return replace(program, plan=replace(plan, stages=stages))


def way_to_keep_a_tie(program: Program, random: Random) -> Program:
    """Another way, of which most are no way of these layers; a tie that there is not; or no word about it."""
    plan = program.plan
    assert plan is not None
    name, kept = one_of(random, plan.ties)
    ways = [None, *dict.fromkeys(s.keeping for s in plan.strategies if s.keeping), Strategy.parse("tp2-zero3")]
    changes = [((name, other(random, ways, kept)),), ((name + ".x", kept),), ((name, kept), (name, None)), ()]
    new = random.choice(changes[:1] * 3 + changes)
    ties = tuple(x for tie in plan.ties for x in (new if tie[0] == name else (tie,)))
    return replace(program, plan=replace(plan, ties=ties))


def kept_layout(program: Program, random: Random) -> Program:
    def edit(stage: Stage) -> Stage:
        old = one_of(random, stage.state)
        new = one_of(random, _other_layouts(old))
        return replace(stage, state=tuple(new if k is old else k for k in stage.state))

    return with_stage(program, random, edit)


def _other_layouts(kept: StateLayout) -> list[StateLayout]:
    options = [replace(kept, zero=level) for level in range(5) if level != kept.zero]
    for place in range(len(kept.layout)):
        for new in (REPLICATE, BROADCAST, PARTIAL, Shard(0), Shard(1), Shard(0, folded=True)):
            if new != kept.layout[place]:
                options.append(replace(kept, layout=(*kept.layout[:place], new, *kept.layout[place + 1 :])))
    return options


def drop_kept_state(program: Program, random: Random) -> Program:
    def edit(stage: Stage) -> Stage:
        gone = one_of(random, stage.state)
        return replace(stage, state=tuple(k for k in stage.state if k is not gone))

    return with_stage(program, random, edit)


def transfer(program: Program, random: Random) -> Program:
    def edit(stage: Stage) -> Stage:
        side = random.choice(["sends", "receives"])
        transfers: tuple[Transfer, ...] = getattr(stage, side)
        old = one_of(random, transfers)
        changes = [
            (), (old, old), (replace(old, name="other"),), (replace(old, differentiable=not old.differentiable),),
            (replace(old, type=TensorType("f64", old.type.shape)),),
        ]  # fmt: skip
        new = random.choice(changes)
        return replace(stage, **{side: tuple(x for t in transfers for x in (new if t is old else (t,)))})

    return with_stage(program, random, edit)


def transfer_on_both_sides(program: Program, random: Random) -> Program:
    boundary = one_of(random, range(len(program.stages) - 1))
    sent = program.stages[boundary].sends
    old = one_of(random, sent)
    flipped = replace(old, differentiable=not old.differentiable)
    typed = replace(old, type=TensorType("f64", old.type.shape))
    new = random.choice([(), (flipped,), (typed,)])
    crossing = tuple(x for t in sent for x in (new if t is old else (t,)))
    stages = list(program.stages)
    stages[boundary] = replace(stages[boundary], sends=crossing)
    stages[boundary + 1] = replace(stages[boundary + 1], receives=crossing)
    return replace(program, stages=tuple(stages))


_ANY = (Form.CAPTURED, Form.STAGED)
_LAYERED = (Form.CLUSTERED, Form.STAGED)
_LOCAL = (Form.SHARDED, Form.STAGED)
_STAGED = (Form.STAGED, Form.STAGED)
_MODEL = "another model: the program itself says what is computed"

KINDS: dict[str, Kind] = {
    "drop-communication": Kind(drop_communication, *_LOCAL),
    "axis-of-an-op": Kind(axis_of_an_op, *_LOCAL),
    "size-of-a-sharded-dimension": Kind(size_of_a_sharded_dimension, *_LOCAL),
    "keyword-of-a-collective": Kind(keyword_of_a_collective, *_LOCAL),
    "retarget-a-collective": Kind(retarget_a_collective, *_LOCAL),
    "retarget-to-an-op-on-slices": Kind(retarget_to_an_op_on_slices, *_LOCAL),
    "keyword-of-a-draw": Kind(keyword_of_a_draw, *_LOCAL),
    "placement": Kind(placement, *_LOCAL),
    "placement-and-shape": Kind(placement_and_shape, *_LOCAL),
    "mesh": Kind(mesh, *_LOCAL),
    "retarget-to-no-operator": Kind(retarget_to_no_operator, *_ANY),
    "argument-too-many": Kind(argument_too_many, *_ANY),
    "argument-too-few": Kind(argument_too_few, *_ANY),
    "argument-of-another-kind": Kind(argument_of_another_kind, *_ANY),
    "element-type": Kind(element_type, *_ANY),
    "shape": Kind(shape, *_ANY),
    "class-of-a-layer": Kind(class_of_a_layer, *_LAYERED),
    "operand-of-a-layer": Kind(operand_of_a_layer, *_LAYERED),
    "state-of-a-layer": Kind(state_of_a_layer, *_LAYERED),
    "kind-of-a-layer": Kind(kind_of_a_layer, *_LOCAL),
    "drop-a-layer": Kind(drop_a_layer, *_LAYERED),
    "strategy-of-a-layer": Kind(strategy_of_a_layer, *_LOCAL),
    "way-to-keep-a-tie": Kind(way_to_keep_a_tie, *_LOCAL),
    "kept-layout": Kind(kept_layout, *_STAGED),
    "value-of-an-update": Kind(value_of_an_update, *_ANY),
    "state-of-an-update": Kind(state_of_an_update, *_ANY),
    "drop-an-update": Kind(drop_an_update, *_ANY, valid=_MODEL),
    "drop-kept-state": Kind(drop_kept_state, *_STAGED),
    "transfer": Kind(transfer, *_STAGED),
    "transfer-on-both-sides": Kind(transfer_on_both_sides, *_STAGED),
    "strategy-in-a-plan": Kind(strategy_of_a_layer, Form.PLANNED, Form.PLANNED, valid="another plan"),
    "way-to-keep-a-tie-in-a-plan": Kind(way_to_keep_a_tie, Form.PLANNED, Form.PLANNED, valid="another plan"),
    "equal-state-of-a-layer": Kind(equal_state_of_a_layer, *_LAYERED, valid=_MODEL),
    "read-another-value": Kind(read_another_value, *_ANY, valid="a value that broadcasts alike: " + _MODEL),
    "drop-computation": Kind(drop_computation, *_ANY, valid=_MODEL),
    "retarget-to-another-operator": Kind(retarget_to_another_operator, *_ANY, valid=_MODEL),
    "read-an-equal-value": Kind(read_an_equal_value, *_ANY, valid=_MODEL),
    "swap-operands": Kind(swap_operands, *_ANY, valid=_MODEL),
    "literal-argument": Kind(literal_argument, *_ANY, valid=_MODEL),
    "swap-outputs": Kind(swap_outputs, *_ANY, valid=_MODEL),
}
