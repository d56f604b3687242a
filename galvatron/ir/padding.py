"""Filler: what stands at the end of a padded shard, and which ops may run beside it.

A dimension that a mesh axis does not divide (a vocabulary of 50257 on two ranks) is sharded in slices that are rounded
up; the last rank's ends in filler. Three things hold for it everywhere:

- filler of a value is finite and never counted: no op sums over it, no collective on its axis moves it, no layer
  reads it from another one (what the model returns is cut to size once it is whole);
- filler of a gradient is zero;
- filler of a parameter is zero, at first and, since its gradient is, after any step of an optimizer.

So only ops whose entry in the table of operators says so (`Operator.padded`) read a padded shard, and collectives on
other axes, to which filler is like any other element. Those of ATen keep its dimension in the result and have a finite
value and derivative at filler, so that the gradient's zeros remain. Those of `ir.spmd` know the whole size of the
dimension: they leave filler out, and give it a gradient of zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from galvatron.ir.graph import Op, Value
from galvatron.ir.layout import Shard
from galvatron.ir.ops.table import operator_of
from galvatron.ir.program import LayerClass, Program


def paddable(op: Op) -> range:
    """The positions of the operands of an op that may be padded shards."""
    return operator_of(op).padded


def whole_sizes(program: Program, cls: LayerClass) -> dict[str, dict[int, int]]:
    """The whole sizes of the padded dimensions of the values of a class, by name: those of state, passed on by ops."""
    whole, values = _sizes_of_state(program, cls), cls.graph.values
    for op in cls.graph.ops:
        whole.update(_passed_on([(values[name], whole.get(name, {})) for name in op.operands], op.results))
    return whole


def _sizes_of_state(program: Program, cls: LayerClass) -> dict[str, dict[int, int]]:
    """The whole sizes of the padded dimensions of the state of a class, by formal name."""
    sizes: dict[str, dict[int, int]] = {}
    for layer in program.layers_of[cls.name]:
        for name, formal in zip(layer.state, cls.graph.state, strict=True):
            shape = program.state_of[name].type.shape
            padded = [p.dim for p in formal.layout or () if isinstance(p, Shard) and p.padded]
            sizes[formal.name] = {dim: size for dim in padded if isinstance(size := shape[dim], int)}
    return sizes


def _passed_on(
    read: Iterable[tuple[Value, Mapping[int, int]]], results: tuple[Value, ...]
) -> dict[str, dict[int, int]]:
    """The whole sizes of the padded dimensions of results: on each axis that of the padded operand."""
    by_axis: dict[int, int] = {}
    for value, sizes in read:
        for axis, placement in enumerate(value.layout or ()):
            if isinstance(placement, Shard) and placement.padded and placement.dim in sizes:
                by_axis.setdefault(axis, sizes[placement.dim])
    return {
        value.name: {
            placement.dim: by_axis[axis]
            for axis, placement in enumerate(value.layout or ())
            if isinstance(placement, Shard) and placement.padded and axis in by_axis
        }
        for value in results
    }
