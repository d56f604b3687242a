"""How big the values of a staged program are in samples of the whole micro-batch.

In the graph of a sharded class `b` is the rank's share of a micro-batch, and which share that is differs from layer to
layer: half of it under dp2, a quarter under dp4. Here every layer gets its divisor d, `b = n / d` with n the samples of
the micro-batch over all ranks, found by following the sizes of the batch inputs through the layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import sympy

from galvatron.codegen.expressions import share
from galvatron.codegen.names import literal
from galvatron.ir.layout import Layout, Shard
from galvatron.ir.program import Layer, LayerClass, Program
from galvatron.ir.types import BATCH, LOCAL_BATCH, Dim, TensorType, lengths_in, simplify_dim

MICRO_BATCH = sympy.Symbol("n", integer=True, positive=True)
"""Samples of one micro-batch over all ranks."""


@dataclass(frozen=True)
class Sizes:
    """Shapes in `n` of every program-level value, and the divisor of every layer."""

    shapes: dict[str, tuple[Dim, ...]]
    divisors: dict[str, Fraction]


def local_sizes(program: Program) -> Sizes:
    """Follows sizes through all stages in order."""
    shapes: dict[str, tuple[Dim, ...]] = {}
    divisors: dict[str, Fraction] = {}
    inputs = {value.name: value.type for value in program.inputs}
    for stage in program.stages:
        for layer in stage.layers:
            if layer.kind.is_whole:
                continue
            cls = program.class_of[layer.cls]
            divisor = _divisor(layer, cls, inputs, shapes)
            divisors.setdefault(layer.name, divisor)
            for result, output in zip(layer.results, cls.graph.outputs, strict=True):
                shapes[result] = in_micro_batches(cls.graph.values[output].type, divisors[layer.name])
    return Sizes(shapes, divisors)


def in_micro_batches(type_: TensorType, divisor: Fraction) -> tuple[Dim, ...]:
    """The shape with `b` replaced by `n / divisor`."""
    share = MICRO_BATCH / sympy.Rational(divisor.numerator, divisor.denominator)
    return tuple(d if isinstance(d, int) else simplify_dim(d.subs(LOCAL_BATCH, share)) for d in type_.shape)


def numbers_of_step(dim: Dim) -> dict[sympy.Symbol, str]:
    """How a stage names the lengths in a size: what they are in the running step."""
    return {length: f"self.numbers[{literal(length.name)}]" for length in lengths_in(dim)}


def batch_input_shape(type_: TensorType, layout: Layout, cls: LayerClass) -> tuple[Dim, ...]:
    """The shape of a batch input of global `type_` on one rank, under a layout on the class's mesh."""
    shape = [d if isinstance(d, int) else d.subs(BATCH, MICRO_BATCH) for d in type_.shape]
    for placement, axis in zip(layout, cls.mesh, strict=True):
        if isinstance(placement, Shard):
            shape[placement.dim] = sympy.sympify(shape[placement.dim]) / axis.size
    return tuple(simplify_dim(d) for d in shape)


def _divisor(
    layer: Layer, cls: LayerClass, inputs: dict[str, TensorType], shapes: dict[str, tuple[Dim, ...]]
) -> Fraction:
    for operand, formal in zip(layer.operands, cls.graph.inputs, strict=True):
        if operand in shapes:
            actual = shapes[operand]
        elif operand in inputs:
            actual = batch_input_shape(inputs[operand], formal.layout or (), cls)
        else:
            continue
        for size, formal_size in zip(actual, formal.type.shape, strict=True):
            whole, local = share(size, MICRO_BATCH), share(formal_size, LOCAL_BATCH)
            if whole and local:
                return local / whole
    if cls.strategy is not None:
        return Fraction(cls.strategy.sample_shards)
    layout = next((cls.graph.values[o].layout for o in cls.graph.outputs), None) or ()
    return Fraction(
        math.prod(a.size for p, a in zip(layout, cls.mesh, strict=False) if isinstance(p, Shard) and p.dim == 0)
    )
