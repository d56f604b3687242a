"""Convolutions, and what else works on windows of images and sequences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from sympy import Expr

from galvatron.ir.graph import Op
from galvatron.ir.ops.call import Call, by_line, known, whole
from galvatron.ir.ops.notation import DimNames, OpDims
from galvatron.ir.ops.operator import Operator, alike
from galvatron.ir.ops.work import Work, convolution, product
from galvatron.ir.types import exact_quotient


def _channels(call: Call) -> OpDims:
    """Channels are (groups, channels of a group); the number of groups is an argument, so that groups stay whole.

    An unbatched convolution stays whole, and so does space.
    """
    shape, weight, groups = call.shape("input"), call.shape("weight"), call["groups"]
    assert isinstance(groups, (int, Expr))
    if len(shape) != len(weight):
        return whole(call)
    transposed = _is_transposed(call.op)
    inside, outside = (exact_quotient(weight[0], groups), weight[1])[:: 1 if transposed else -1]
    assert inside is not None and outside is not None
    sizes = {"n": shape[0], "g": groups, "c": inside, "o": outside}
    sizes = {name: size for name, size in sizes.items() if size != 1}

    def dim(*names: str) -> DimNames:
        return known(sizes, *names)

    space = ((),) * (len(shape) - 2)
    channels, filters = dim("g", "c"), dim("g", "o")
    matrix = (channels, dim("o")) if transposed else (filters, dim("c"))
    has_bias = call.has("bias")
    bias = ((filters,),) if has_bias else ()
    return OpDims(
        ((dim("n"), channels, *space), (*matrix, *space), *bias),
        ((dim("n"), filters, *space),),
        sizes,
        frozenset({"g"} & sizes.keys()),
        products=frozenset({0, 1}),
        sums=frozenset({2}) if has_bias else frozenset(),
    )


def _is_transposed(op: Op) -> bool:
    return "transpose" in op.name or bool(op.get("transposed"))


def _op_work(op: Op, tensors: Sequence[Any], _dims: OpDims | None) -> Work | None:
    """None of an unbatched one."""
    (input_, weight, *_, output), groups = tensors, op["groups"]
    assert isinstance(groups, (int, Expr))
    if len(input_) != len(weight):
        return None
    return convolution(input_, weight, output, groups, transposed=_is_transposed(op))


def _grid_samples(call: Call) -> OpDims:
    """Each point of the grid is looked up by itself in the whole of space."""
    space = len(call.shape("input")) - 2
    inside = " ".join(f"x{i}!" for i in range(space))
    points = " ".join(f"y{i}" for i in range(space))
    return by_line(call, f"n c {inside}, n {points} w! -> n c {points}")


def _work(out: Any, input_: Any, weight: Any, *settings: Any) -> Work:
    _bias, _stride, _padding, _dilation, transposed, _output_padding, groups = settings
    return convolution(input_.shape, weight.shape, out.shape, groups, transposed=transposed)


def _backward_work(_out: Any, gradient: Any, input_: Any, weight: Any, *settings: Any) -> Work:
    """As many such products as factors have a gradient."""
    *same, mask = settings
    count, *sizes = _work(gradient, input_, weight, *same).sizes
    return product(sum(mask[:2]) * count, *sizes)


_POOL_1D = "b* l! -> b* x!"
_POOL_2D = "b* h! w! -> b* x! y!"
_POOL_3D = "b* d! h! w! -> b* x! y! z!"

_convolution = partial(Operator, _channels, contracts=True, kept=True, op_work=_op_work)

OPERATORS: dict[str, Operator] = {
    "convolution": _convolution(anchored=True, work=_work),
    "convolution_backward": Operator(work=_backward_work),
    "conv1d": _convolution(
        written="F.conv1d(input, weight, bias, stride=, padding=, dilation=, groups=)", anchored=True
    ),
    "conv2d": _convolution(
        written="F.conv2d(input, weight, bias, stride=, padding=, dilation=, groups=)", anchored=True
    ),
    "conv3d": _convolution(anchored=True),
    **alike("conv_transpose1d conv_transpose2d conv_transpose3d", _convolution()),
    **alike("max_pool1d avg_pool1d adaptive_avg_pool1d upsample_nearest1d upsample_linear1d", Operator(_POOL_1D)),
    "adaptive_max_pool1d": Operator(f"{_POOL_1D}, b* x!"),
    **alike(
        "max_pool2d avg_pool2d adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa",
        Operator(_POOL_2D),
    ),
    **alike("max_pool2d_with_indices adaptive_max_pool2d", Operator(f"{_POOL_2D}, b* x! y!")),
    **alike("max_pool3d avg_pool3d adaptive_avg_pool3d upsample_nearest3d upsample_trilinear3d", Operator(_POOL_3D)),
    **alike("max_pool3d_with_indices adaptive_max_pool3d", Operator(f"{_POOL_3D}, b* x! y! z!")),
    "pixel_shuffle": Operator("b* (c r!) h! w! -> b* c x! y!"),
    "pixel_unshuffle": Operator("b* c h! w! -> b* (c r!) x! y!"),
    "channel_shuffle": Operator("n c! d* -> n c! d*"),
    "im2col": Operator("n c h! w! -> n (c k!) l!"),
    "col2im": Operator("n (c k!) l! -> n c h! w!"),
    "grid_sampler": Operator(_grid_samples),
    "_convolution": Operator(contracts=True, anchored=True),
}
