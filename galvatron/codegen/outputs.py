"""What a stage says of the model's outputs that it computes: how the parts of ranks and micro-batches make up each."""

from __future__ import annotations

from collections.abc import Iterator

import sympy

from galvatron.codegen.bindings import Bindings
from galvatron.codegen.expressions import print_expression, print_shard
from galvatron.codegen.layout import Brackets, Text, call, lines, prefixed, tuple_of
from galvatron.codegen.names import literal
from galvatron.codegen.sizes import MICRO_BATCH, numbers_of_step
from galvatron.ir.layout import PARTIAL, Layout, Shard
from galvatron.ir.micro_batches import SUM, Along, spreads
from galvatron.ir.padding import whole_sizes
from galvatron.ir.program import Layer, When
from galvatron.ir.types import BATCH, LOCAL_BATCH, Dim, TensorType, exact_quotient, simplify_dim
from galvatron.ir.whole import layers_seen_whole


def give_outputs(bindings: Bindings) -> list[str]:
    """`self.gives(...)` for each output that the stage computes."""
    given = {layer.name: bindings.outputs(layer) for layer in bindings.stage.layers}
    if not any(given.values()):
        return []
    program, out = bindings.program, []
    seen = layers_seen_whole(program.classes, program.all_layers, program.inputs)
    types = {
        name: seen_layer.graph.values[formal].type
        for seen_layer in seen
        for name, formal in zip(seen_layer.layer.results, seen_layer.graph.outputs, strict=True)
    }
    for layer in bindings.stage.layers:
        for output, result in given[layer.name]:
            type_ = _without_filler(bindings, layer, result, types[output.value])
            sizes = (_in_samples(dim) for dim in type_.shape)
            shape = tuple_of(print_expression(size, numbers=numbers_of_step(size)) for size in sizes)
            arguments: list[Text] = [literal(output.name), literal(bindings.layers[layer.name]), str(result)]
            arguments += [prefixed("lambda n: ", shape), prefixed("lambda n: ", _places(bindings, layer, result))]
            arguments += _over_micro_batches(bindings, layer, output.value, type_)
            out += lines(call("self.gives", arguments), 2)
    return out


def _layout(bindings: Bindings, layer: Layer, result: int) -> Layout:
    graph = bindings.cls(layer).graph
    return graph.values[graph.outputs[result]].layout or ()


def _without_filler(bindings: Bindings, layer: Layer, result: int, type_: TensorType) -> TensorType:
    """The whole type of an output, given that of all that the ranks hold of it."""
    cls, shape = bindings.cls(layer), list(type_.shape)
    padded = [p.dim for p in _layout(bindings, layer, result) if isinstance(p, Shard) and p.padded]
    for dim in padded:
        shape[dim] = whole_sizes(bindings.program, cls)[cls.graph.outputs[result]][dim]
    return type_.with_shape(tuple(shape))


def _in_samples(dim: Dim) -> Dim:
    """A size in the samples of a micro-batch, or of all."""
    return dim.subs(BATCH, MICRO_BATCH) if isinstance(dim, sympy.Expr) else dim


def _places(bindings: Bindings, layer: Layer, result: int) -> Brackets:
    """Where the output of `n` samples lives."""

    def texts() -> Iterator[str]:
        divisor = bindings.sizes.divisors[layer.name]
        share = MICRO_BATCH / sympy.Rational(divisor.numerator, divisor.denominator)
        placed = zip(_layout(bindings, layer, result), bindings.cls(layer).mesh, strict=False)
        for placement, axis in placed:
            if isinstance(placement, Shard):
                outer = sympy.sympify(placement.outer).subs(LOCAL_BATCH, share)
                yield f"{bindings.axes[axis]}: {_shard(placement, simplify_dim(outer))}"
            elif placement == PARTIAL:
                yield f"{bindings.axes[axis]}: rt.PartialSum()"

    return Brackets("{", tuple(texts()), "}")


def _over_micro_batches(bindings: Bindings, layer: Layer, value: str, type_: TensorType) -> list[str]:
    """How the parts of the micro-batches make up the output; nothing where each of them has all of it."""
    if bindings.program.required_plan.micro_batches == 1 or layer.when is not When.MICRO_BATCH:
        return []
    spread = spreads(bindings.program)[value]
    if spread is SUM:
        return ["summed=True"]
    if not isinstance(spread, Along):
        return []
    outer = exact_quotient(type_.shape[spread.dim], simplify_dim(spread.inner * BATCH))
    assert outer is not None, f"%{value} has no samples along dimension {spread.dim}"
    return [f"along={_shard(Shard(spread.dim), outer)}"]


def _shard(shard: Shard, outer: Dim) -> str:
    return print_shard(shard, outer, numbers=numbers_of_step(outer))
