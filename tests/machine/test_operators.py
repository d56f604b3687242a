"""What an op is said to do, against the kernels that torch runs for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from galvatron.ir.interpreter import run_graph
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.table import kernel_work, op_dims
from galvatron.ir.types import evaluate
from galvatron.machine.operators import LocalTensor, op_kernels
from tests.partition import every_sample  # noqa: F401  # it fills CASES
from tests.partition.samples import CASES, Draw, Sample, below, real, sample

PRODUCTS = [
    "linear", "mm", "bmm", "addmm", "baddbmm", "matmul", "convolution", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
]  # fmt: skip


class Counter(TorchDispatchMode):
    """Adds up the FLOP of the kernels that run."""

    flop = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        work = kernel_work(func, args, kwargs or {}, out)
        self.flop += work.flop if work else 0.0
        return out


def run(call: Sample) -> tuple[float, float]:
    """FLOP of the kernels of a forward and of a backward."""
    forward, backward = Counter(), Counter()
    tensors = {n: t.detach().requires_grad_(n in call.differentiable) for n, t in call.tensors.items()}
    with forward:
        (result,) = run_graph(call.graph, tensors, batch=1).values()
    with backward:
        result.backward(torch.ones_like(result))
    return forward.flop, backward.flop


def dims_of(call: Sample) -> OpDims | None:
    return op_dims(call.op, {name: value.type for name, value in call.graph.values.items()})


def of_vectors(call: Sample) -> bool:
    """Whether a factor is a vector: a product that memory bounds is none to the kernels."""
    dims = dims_of(call)
    return dims is not None and any(call.tensors[call.op.operands[i]].dim() < 2 for i in dims.products)


def said(call: Sample) -> tuple[float, float]:
    """FLOP of the op on one rank, forward and backward."""
    values, dims = call.graph.values, dims_of(call)
    sizes = {n: float(evaluate(size, 1)) for n, size in dims.sizes.items()} if dims else {}
    tensors = [
        LocalTensor(values[n].type.dtype, tuple(evaluate(d, 1) for d in values[n].type.shape))
        for n in (*call.op.operands, *(v.name for v in call.op.results))
    ]
    differentiable = {*call.differentiable, *(v.name for v in call.op.results)}
    forward, *backward = op_kernels(call.op, dims, sizes, tensors, differentiable)
    return forward.flop, sum(kernel.flop for kernel in backward)


@pytest.mark.parametrize("rule", PRODUCTS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_an_op_does_the_arithmetic_of_its_kernels(rule: str, data: st.DataObject) -> None:
    call = data.draw(st.sampled_from(CASES[rule]))(Draw(data, 2))
    assume(not of_vectors(call))
    expected = said(call)
    assume(expected[0])  # a sum over one element is no product to the rules, but may be one to a kernel
    assert expected == pytest.approx(run(call))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_one_kernel_forward_and_one_backward(causal: bool) -> None:
    query, key, value = (torch.randn(2, 3, 6, 4) for _ in range(3))
    call = sample("scaled_dot_product_attention.default", query, key, value, None, 0.0, causal)
    assert said(call) == run(call) == (4 * 2 * 3 * 6 * 6 * 4 / (1 + causal), 10 * 2 * 3 * 6 * 6 * 4 / (1 + causal))


def test_a_rank_with_some_of_the_matrices_multiplies_the_rows_that_choose_one_of_these() -> None:
    """As many as choose each where all choose evenly."""
    rows, matrices, own, columns, inner = 12, 4, 2, 3, 5
    call = sample(
        "galvatron.grouped_linear.default", real(rows, inner), real(matrices, columns, inner), below(matrices, rows)
    )
    dims, shapes = dims_of(call), ((rows, inner), (own, columns, inner), (rows,), (rows, columns))
    sizes = {"t": rows, "e": own, "n": columns, "k": inner}
    tensors = [LocalTensor("i64" if len(shape) == 1 else "f64", shape) for shape in shapes]
    differentiable = {*call.op.operands[:2], *(value.name for value in call.op.results)}
    forward, *backward = op_kernels(call.op, dims, sizes, tensors, differentiable)
    assert forward.flop == 2 * (rows * own / matrices) * columns * inner
    assert sum(kernel.flop for kernel in backward) == 2 * forward.flop
