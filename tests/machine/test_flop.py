"""The arithmetic of every kernel that has a figure in the table of operators, against torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from galvatron.ir.interpreter import run_graph
from galvatron.ir.ops.table import kernel_work, named
from tests.machine.test_operators import PRODUCTS
from tests.partition.samples import CASES, Draw

aten = torch.ops.aten
WITH_FLOP = named(lambda operator: operator.work)


class Compared(TorchDispatchMode):
    """Notes, of each kernel that either side has a figure for, its name, ours, and torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, float, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        work, theirs = kernel_work(func, args, kwargs, out), flop_registry.get(func.overloadpacket)
        if func is aten.convolution_backward.default and args[9] > 1:
            return out  # torch counts the gradient of the weight as if there were no groups
        if work or theirs:
            flop = theirs(*args, **kwargs, out_val=out) if theirs else 0.0
            self.found.append((func.overloadpacket.__name__, work.flop if work else 0.0, flop))
        return out


def agree(compared: Compared) -> set[str]:
    """The kernels that were compared: each pair of figures is equal."""
    for name, ours, theirs in compared.found:
        assert ours == pytest.approx(theirs), name
    return {name for name, _, _ in compared.found}


@pytest.mark.parametrize("rule", PRODUCTS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_products_and_convolutions(rule: str, data: st.DataObject) -> None:
    call = data.draw(st.sampled_from(CASES[rule]))(Draw(data, 2))
    tensors = {n: t.detach().requires_grad_(n in call.differentiable) for n, t in call.tensors.items()}
    with Compared() as compared:
        (result,) = run_graph(call.graph, tensors, batch=1).values()
        result.backward(torch.ones_like(result))
    assume(agree(compared))  # of vectors, a product may be none to the kernels


@settings(max_examples=20, deadline=None)
@given(
    samples=st.integers(1, 3),
    heads=st.integers(1, 4),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    width=st.sampled_from([8, 32, 64]),
)
def test_attention(samples: int, heads: int, queries: int, keys: int, width: int) -> None:
    """Torch counts the scores that a causal mask hides, so there is none here."""

    def made(places: int) -> torch.Tensor:
        shape = (samples, heads, places, width)
        return torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)

    query, key, value = made(queries), made(keys), made(keys)
    with Compared() as compared:
        flash = aten._scaled_dot_product_flash_attention(query, key, value)[0]
        efficient = aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[0]
        (flash + efficient).sum().backward()
    assert agree(compared) == KERNELS_OF_GPUS


KERNELS_OF_GPUS = {name for name in WITH_FLOP if "attention" in name and "_for_cpu" not in name}


def test_every_kernel_with_a_figure_is_compared_or_has_none_in_torch() -> None:
    known = {packet.__name__ for packet in flop_registry}
    assert set(WITH_FLOP) - known == {
        "_grouped_mm",
        "grouped_linear",
        "grouped_outer",
        *(name for name in WITH_FLOP if "_for_cpu" in name),
    }
