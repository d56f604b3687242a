"""Edits of classes, layers, plans and stages, each of another kind, at a random place."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Axis, Shard
from galvatron.ir.program import Layer, LayerClass, LayerKind, Program, Stage, StateLayout, Transfer
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import TensorType
from tests.ir.edits import one_of, other, with_layer, with_stage


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
