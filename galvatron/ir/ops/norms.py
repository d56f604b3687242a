"""Normalisation."""

from __future__ import annotations

from functools import partial

from galvatron.ir.layout import REPLICATE
from galvatron.ir.ops import shapes
from galvatron.ir.ops.arguments import Ref
from galvatron.ir.ops.call import Call, by_line, whole
from galvatron.ir.ops.notation import DimNames, OpDims, parse_notation
from galvatron.ir.ops.operator import OnSlices, Operator, alike


def _batch_norm(call: Call) -> OpDims:
    """With statistics that are given, element by element; with those of the batch, each channel sees all samples."""
    if not call["training"]:
        return by_line(call, "n c d*, c?, c?, c?, c? -> n c d*")
    if call.has("running_mean"):
        return whole(call)
    return by_line(call, "n! c d*!, c?, c? -> n! c d*!")


def _updating_batch_norm(call: Call) -> OpDims:
    """With statistics of the batch, of which it makes new running ones."""
    if not call["training"]:
        return whole(call)
    return by_line(call, "n^ c d*!, c?, c?, c, c -> n^ c d*!, c, c, c, c")


def _instance_norm(call: Call) -> OpDims:
    """Statistics of each sample and channel; running ones mix samples."""
    if call.has("running_mean"):
        return whole(call)
    return by_line(call, "n c d*!, c?, c? -> n c d*!")


def _group_norm(call: Call) -> OpDims:
    """The number of groups is an argument, so that channels stay whole."""
    present = [name for name in ("weight", "bias") if call.has(name)]
    sample = ((),) * (len(call.shape("input")) - 1)
    size = call.shape("input")[0]
    name: DimNames = () if size == 1 else ("n",)
    operands = ((name, *sample), *(((),) for _ in present))
    return OpDims(operands, ((name, *sample),), {} if size == 1 else {"n": size})


def _normalisation(call: Call, *affine: str) -> OpDims:
    """The trailing `normalized_shape` dims are whole."""
    normalized = call["normalized_shape"]
    assert isinstance(normalized, tuple)
    inner = " ".join(f"h{i}!" for i in range(len(normalized)))
    present = [name for name in affine if isinstance(call[name], Ref)]
    line = f"b* {inner}{f', {inner}' * len(present)} -> b* {inner}"
    return parse_notation(line).resolve(call.operand_shapes(), call.results)


_norm = partial(Operator, shapes=shapes.like_first, moves="norm")
_statistics = ("running_mean", "running_var")

OPERATORS: dict[str, Operator] = {
    "batch_norm": Operator(_batch_norm, updated=_statistics, updates="training", moves="norm"),
    "_native_batch_norm_legit_functional": Operator(
        _updating_batch_norm,
        written="rt.batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)",
        in_training="training",
        on_slices=OnSlices(
            REPLICATE,
            forward=(("all_gather", 2),),
            backward=(("all_reduce", 2),),
            channels=True,
            function="batch_norm",
        ),
        short="batch_norm",
        moves="norm",
    ),
    "instance_norm": Operator(_instance_norm, updated=_statistics, updates="use_input_stats", moves="norm"),
    "group_norm": _norm(_group_norm, written="F.group_norm(input, num_groups, weight, bias, eps)"),
    "layer_norm": _norm(
        lambda call: _normalisation(call, "weight", "bias"),
        written="F.layer_norm(input, normalized_shape, weight, bias, eps)",
        shapes=shapes.normalised("weight", "bias"),
        dtype="shared",
    ),
    "rms_norm": _norm(
        lambda call: _normalisation(call, "weight"),
        written="F.rms_norm(input, normalized_shape, weight, eps)",
        shapes=shapes.normalised("weight"),
        dtype="shared",
    ),
    **alike(
        "native_layer_norm _fused_rms_norm native_group_norm native_batch_norm _native_batch_norm_legit "
        "cudnn_batch_norm",
        Operator(moves="norm"),
    ),
}
