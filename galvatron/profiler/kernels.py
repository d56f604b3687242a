"""What kernels are measured: products of matrices, kernels that memory bounds, and attention.

Each kind of kernel is a grid of sizes: every combination, less those that take too long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from galvatron.ir.types import DTYPE_BYTES
from galvatron.ir.update_rule import ADAMW
from galvatron.profiler.cases import Case, in_turn, random_tensor, sizes_of
from galvatron.profiler.grids import Grids
from galvatron.profiler.meter import Call


def kernel_cases(grids: Grids, device: torch.device) -> Iterator[Case]:
    """All kernels to measure on a device, those of a series from the smallest on."""
    for dtype, grid in grids.products.items():
        shapes = product(grid.counts, *(grid.sides,) * 3)
        yield from _by_amount(_product(dtype, shape, "nn", device) for shape in shapes if prod(shape) <= grid.most)
    first = next(iter(grids.products))
    for how in ("nt", "tn"):
        shapes = product((1,), *(grids.layouts,) * 3)
        yield from _by_amount(_product(first, shape, how, device) for shape in shapes)
    for side, elements in product(grids.odd, (1, 2, 4, 8)):
        yield _product(first, (1, side, side + elements, side), "odd columns", device)
        yield _product(first, (1, side, side, side + elements), "odd inner", device)
    for dtype, elements in grids.elements.items():
        for kernel in _MOVING:
            yield from (kernel.case(dtype, count, device) for count in elements)
        if dtype == "f32":
            yield from (_optimizer(count, device) for count in elements)
    for dtype, (counts, lengths, widths) in grids.attention.items():
        for causal, backward in product((False, True), repeat=2):
            shapes = product(counts, lengths, widths)
            yield from _by_amount(_attention(dtype, shape, causal, backward, device) for shape in shapes)


def _by_amount(cases: Iterator[Case]) -> list[Case]:
    return sorted(cases, key=lambda case: case.amount)


def _product(dtype: str, shape: tuple[int, ...], how: str, device: torch.device) -> Case:
    """`count` products `(rows, inner) @ (inner, columns)`; `how` says which factor is the transpose (`t`) of a
    contiguous matrix, or which size is odd."""
    count, rows, columns, inner = shape
    left, right = how if len(how) == 2 else "nn"

    def matrix(shape: tuple[int, int], layout: str) -> Tensor:
        whole = shape if layout == "n" else shape[::-1]
        made = random_tensor((count, *whole) if count > 1 else whole, dtype, device)
        return made if layout == "n" else made.mT

    function = torch.bmm if count > 1 else torch.mm
    amount = count * (rows * inner + inner * columns + rows * columns)
    return Case(
        name="product",
        how=how,
        dtype=dtype,
        sizes=sizes_of(count=count, rows=rows, columns=columns, inner=inner),
        amount=2 * count * rows * columns * inner,
        memory_bytes=2 * amount * DTYPE_BYTES[dtype],
        prepare=lambda: in_turn(function, (matrix((rows, inner), left), matrix((inner, columns), right))),
    )


def _attention(dtype: str, shape: tuple[int, ...], causal: bool, backward: bool, device: torch.device) -> Case:
    """Attention of `count` heads: as many as a sample and more samples make, four of a sample where there are."""
    count, length, width = shape
    heads = min(4, count)

    def operands() -> tuple[Tensor, ...]:
        return tuple(random_tensor((count // heads, heads, length, width), dtype, device) for _ in range(3))

    def prepare() -> Call:
        if not backward:
            return in_turn(partial(scaled_dot_product_attention, is_causal=causal), operands())
        inputs = query, key, value = tuple(x.requires_grad_() for x in operands())
        result = scaled_dot_product_attention(query, key, value, is_causal=causal)
        gradient = torch.randn_like(result)
        return lambda: torch.autograd.grad(result, inputs, gradient, retain_graph=True)

    return Case(
        name="attention",
        how=("causal " if causal else "") + ("backward" if backward else "forward"),
        dtype=dtype,
        sizes=sizes_of(count=count, length=length, width=width),
        amount=4 * count * length**2 * width,
        memory_bytes=16 * count * length * width * DTYPE_BYTES[dtype] + 4 * count * length**2 * DTYPE_BYTES[dtype],
        prepare=prepare,
    )


_ROW = 1024
"""Elements of a row, in kernels that go through rows."""

_aten: Any = torch.ops.aten


@dataclass(frozen=True)
class _Moving:
    """A kernel that memory bounds.

    Attributes:
        name, how: see `Measurement`.
        operands: one letter each: `x` has all elements, in rows; `w` those of one row, `i` the
            number of a row for each row; `f` a statistic of each row, which a GPU keeps in 32 bits.
        passes: how often it goes over all elements, reading or writing; `on_gpu` where it is several kernels there.
    """

    name: str
    how: str
    operands: str
    passes: int
    function: Callable[..., object]
    on_gpu: int | None = None

    def case(self, dtype: str, elements: int, device: torch.device) -> Case:
        rows = elements // _ROW
        shapes = {"x": (rows, _ROW), "w": (_ROW,), "f": (rows, 1)}

        def operand(letter: str) -> Tensor:
            if letter == "i":
                return torch.randint(rows, (rows,), device=device)
            wide = letter == "f" and device.type == "cuda"
            return random_tensor(shapes[letter], "f32" if wide else dtype, device)

        passes = self.on_gpu or self.passes if device.type == "cuda" else self.passes
        touched = passes * elements * DTYPE_BYTES[dtype]
        return Case(
            name=self.name,
            how=self.how,
            dtype=dtype,
            sizes=sizes_of(bytes=touched),
            amount=touched,
            memory_bytes=(self.passes + 1) * elements * DTYPE_BYTES[dtype],
            prepare=lambda: in_turn(self.function, tuple(map(operand, self.operands))),
        )


def _layer_norm_backward(gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> Any:
    return _aten.native_layer_norm_backward(gradient, x, [_ROW], mean, rstd, weight, bias, [True] * 3)


_MOVING = (
    _Moving("copy", "same order", "xx", 2, Tensor.copy_),
    _Moving("copy", "transposed", "x", 2, lambda x: x.t().contiguous()),
    _Moving("pointwise", "add", "xx", 3, torch.add),
    _Moving("pointwise", "accumulate", "xx", 3, Tensor.add_),
    _Moving("pointwise", "gelu", "x", 2, _aten.gelu.default),
    _Moving("pointwise", "gelu backward", "xx", 3, _aten.gelu_backward.default),
    _Moving("pointwise", "silu", "x", 2, _aten.silu.default),
    _Moving("pointwise", "silu backward", "xx", 3, _aten.silu_backward.default),
    _Moving("norm", "forward", "xww", 2, lambda x, w, b: _aten.native_layer_norm(x, [_ROW], w, b, 1e-5)),
    _Moving("norm", "backward", "xxffww", 3, _layer_norm_backward, on_gpu=5),
    _Moving("softmax", "forward", "x", 2, lambda x: _aten._softmax(x, -1, False)),
    _Moving("softmax", "backward", "xx", 3, lambda g, y: _aten._softmax_backward_data(g, y, -1, y.dtype)),
    _Moving("reduction", "of rows", "x", 1, lambda x: x.sum(-1)),
    _Moving("reduction", "of columns", "x", 1, lambda x: x.sum(0)),
    _Moving("gather", "rows", "xi", 2, lambda table, rows: table.index_select(0, rows)),
    _Moving("scatter", "rows", "xi", 2, lambda g, rows: _aten.embedding_dense_backward(g, rows, len(rows), -1, False)),
)
"""The classes of kernels that memory bounds (`Operator.moves`), by what they reach of its bandwidth."""


def _optimizer(elements: int, device: torch.device) -> Case:
    """A step of AdamW on one tensor, on a GPU in the one kernel of `fused=True`."""
    touched = int(ADAMW.passes) * elements * DTYPE_BYTES["f32"]

    def prepare() -> Call:
        parameter = torch.nn.Parameter(random_tensor((elements,), "f32", device))
        parameter.grad = torch.ones_like(parameter)
        return torch.optim.AdamW([parameter], lr=1e-9, fused=device.type == "cuda").step

    return Case("optimizer", "adamw", "f32", sizes_of(bytes=touched), touched, 2 * touched, prepare)
