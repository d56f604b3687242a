"""Edits of values and updates, each of another kind, at a random place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from galvatron.ir.graph import Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Shard
from galvatron.ir.program import LayerClass, Program, Update
from galvatron.ir.types import Dim, TensorType
from tests.ir.edits import one_of, other, swapped, with_graph, with_value


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
