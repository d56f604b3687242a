"""Fingerprints of local graphs: names mean nothing, everything else does."""

from __future__ import annotations

from dataclasses import replace

from galvatron.ir.fingerprints import local_fingerprint
from galvatron.ir.graph import Graph, Op, Value
from galvatron.ir.layout import Axis
from tests.ir.programs import clustered, sharded

BLOCK = clustered().class_of["block"].graph


def renamed(graph: Graph) -> Graph:
    def other(name: str) -> str:
        return f"other_{name}"

    def value(v: Value) -> Value:
        return replace(v, name=other(v.name))

    def op(one: Op) -> Op:
        return replace(one.map_refs(other), results=tuple(map(value, one.results)), source=None)

    return Graph(
        tuple(map(value, graph.inputs)),
        tuple(map(value, graph.state)),
        tuple(map(op, graph.ops)),
        tuple(map(other, graph.outputs)),
    )


def test_names_mean_nothing() -> None:
    differentiable = {v.name for v in BLOCK.inputs}
    first = local_fingerprint(BLOCK, (), differentiable)
    assert local_fingerprint(renamed(BLOCK), (), {f"other_{name}" for name in differentiable}) == first
    assert len(first) == 16 and int(first, 16) >= 0


def test_everything_else_does() -> None:
    found = {local_fingerprint(BLOCK, (), ())}
    found.add(local_fingerprint(BLOCK, (), {BLOCK.inputs[0].name}))
    found.add(local_fingerprint(BLOCK, (), (), "full"))
    wide = replace(BLOCK.state[0], type=replace(BLOCK.state[0].type, dtype="bf16"))
    found.add(local_fingerprint(replace(BLOCK, state=(wide, *BLOCK.state[1:])), (), ()))
    found.add(local_fingerprint(replace(BLOCK, ops=BLOCK.ops[:-1], outputs=(BLOCK.ops[-2].result.name,)), (), ()))
    assert len(found) == 5


def test_of_an_axis_the_size_counts() -> None:
    (cls, *_) = (cls for cls in sharded().classes if any(op.namespace == "comm" for op in cls.graph.ops))
    (axis,) = {axis for axis in cls.mesh if axis.name in {op.kwarg("axis") for op in cls.graph.ops}}

    def of(*axes: Axis) -> str:
        return local_fingerprint(cls.graph, axes, ())

    assert of(replace(axis, stride=8)) == of(axis)
    assert of(replace(axis, size=2 * axis.size)) != of(axis)
