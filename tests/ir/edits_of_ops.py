"""Edits of ops, each of another kind, at a random place."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import sympy

from galvatron.ir.graph import Arg, Const, Graph, Op, Ref
from galvatron.ir.layout import nameable_axes
from galvatron.ir.ops.schemas import operators, schema_of
from galvatron.ir.ops.table import operator_of
from galvatron.ir.program import LayerClass, Program
from galvatron.ir.random import without_site
from galvatron.ir.spmd import spmd_target, without_axis
from galvatron.ir.types import LOCAL_BATCH
from tests.ir.edits import Impossible, has_axis, is_aten, is_comm, one_of, other, swapped, with_graph, with_op


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
