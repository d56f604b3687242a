"""Edits of programs at a random place: of one op, value, layer or stage among those that an edit could change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import TypeVar

from galvatron.ir.graph import Graph, Op, Value
from galvatron.ir.program import Layer, LayerClass, Program, Stage

T = TypeVar("T")


class Impossible(Exception):
    """There is nothing in the program that an edit of this kind could change."""


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
