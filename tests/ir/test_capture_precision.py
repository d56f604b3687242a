"""Capture under a precision: what is rounded, what stays in 32 bits, and that the model stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from galvatron.errors import CaptureError
from galvatron.ir.capture import Captured, capture_graph
from galvatron.ir.graph import Graph, Op
from galvatron.ir.inlined import inlined
from galvatron.ir.program import Program
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.types import TORCH_DTYPE_NAMES
from galvatron.ir.verify import verify
from galvatron.passes import FRONT_END
from galvatron.passes.pipeline import Pipeline
from tests import models
from tests.marks import some_slow

PRECISIONS = ("bf16", "f16")


class Net(nn.Module):
    """Two linear layers, one of them frozen, and a buffer; `forward` is the function it is given."""

    table: torch.Tensor

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.frozen, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.frozen.requires_grad_(False)
        self.register_buffer("table", torch.rand(8))
        self.function = forward
        self.forward = lambda x, y: self.function(self, x, y)  # type: ignore[method-assign]  # one forward per test


def batch_of(size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    return {name: torch.randn(size, 8, generator=generator) for name in ("x", "y")}


def captured(forward: Callable[..., Any], precision: str = "bf16") -> tuple[Program, Graph]:
    program = capture_graph(Net(forward), batch_of(4), precision=precision).program
    verify(program)
    assert program.graph is not None
    return program, program.graph


def ops_called(graph: Graph, name: str) -> list[Op]:
    return [op for op in graph.ops if op.target.split(".")[1] == name]


def types_read(graph: Graph, op: Op) -> list[str]:
    return [graph.values[name].type.dtype for name in op.operands]


def regression(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(net.norm(net.frozen(net.first(x))), y)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_parameters_are_read_in_the_compute_type_and_kept_in_single(precision: str) -> None:
    program, graph = captured(regression, precision)
    assert program.precision == precision
    assert {s.name: s.type.dtype for s in program.state} == {
        "first.weight": "f32",
        "first.bias": "f32",
        "frozen.weight": precision,  # what does not train needs no master
        "frozen.bias": precision,
        "norm.weight": "f32",
        "norm.bias": "f32",
        "table": "f32",
    }
    assert {value.type.dtype for value in graph.state} == {precision}


def test_batch_inputs_keep_their_type_and_are_cast_where_they_meet_a_weight() -> None:
    program, graph = captured(regression)
    assert [v.type.dtype for v in program.inputs] == ["f32", "f32"]
    for op in (*ops_called(graph, "linear"), *ops_called(graph, "layer_norm")):
        assert set(types_read(graph, op)) == {"bf16"}
    (loss,) = ops_called(graph, "mse_loss")
    assert types_read(graph, loss) == ["f32", "f32"]
    assert not any("y" in op.operands for op in ops_called(graph, "_to_copy"))  # a target that meets no weight


def test_what_is_computed_from_inputs_alone_is_cast_too() -> None:
    _, graph = captured(lambda net, x, y: F.mse_loss(net.first((x * 2 + net.table).relu()), y))
    assert [op.result.type.dtype for op in ops_called(graph, "relu")] == ["f32"]
    assert [op.result.type.dtype for op in ops_called(graph, "linear")] == ["bf16"]


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": lambda x, y: F.cross_entropy(x, y.argmax(1)),
    "log_softmax": lambda x, y: -x.log_softmax(1).gather(1, y.argmax(1, keepdim=True)).mean(),
    "logsumexp": lambda x, y: x.logsumexp(1).square().mean(),
    "l1_loss": lambda x, y: F.l1_loss(x, y.to(x.dtype)),
    "sum": lambda x, y: ((x - y.to(x.dtype)) ** 2).sum() / 7,
    "mean": lambda x, y: (x.abs()).mean() * 2,
    "max": lambda x, y: x.max(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_computed_in_single(name: str) -> None:
    program, graph = captured(lambda net, x, y: LOSSES[name](net.first(x), y))
    assert graph.values[program.output].type.dtype == "f32"
    for op in graph.ops:
        if "loss" in op.target or "log_softmax" in op.target or "logsumexp" in op.target:
            assert "bf16" not in types_read(graph, op)


def test_a_model_that_computes_its_loss_in_single_gets_no_further_cast() -> None:
    _, graph = captured(lambda net, x, y: F.cross_entropy(net.first(x).float(), y.argmax(1)))
    assert [op.result.type.dtype for op in ops_called(graph, "_to_copy")] == ["bf16", "f32"]


def test_buffers_keep_their_type_where_the_model_can_take_it() -> None:
    program, graph = captured(lambda net, x, y: F.mse_loss((net.first(x).float() * net.table).to(y.dtype), y))
    assert program.state_of["table"].type.dtype == "f32"
    assert [types_read(graph, op) for op in ops_called(graph, "mul")] == [["f32", "f32"]]


def test_buffers_are_rounded_where_they_would_carry_the_stream_to_single() -> None:
    program, graph = captured(lambda net, x, y: F.mse_loss(net.frozen(net.first(x) + net.table), y))
    assert program.state_of["table"].type.dtype == "bf16"
    assert [op.result.type.dtype for op in ops_called(graph, "linear")] == ["bf16", "bf16"]


def test_products_of_unequal_types_are_refused_at_their_line() -> None:
    def forward(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(net.frozen(net.first(x).float()), y)

    with pytest.raises(
        CaptureError, match=r"test_capture_precision.py:\d+: .*net.frozen.*linear of tensors of several types"
    ):
        captured(forward)


def test_the_model_stays_as_it_is() -> None:
    for forward in (regression, lambda net, x, y: F.mse_loss(net.first(x).double() @ x, y)):
        net = Net(forward)
        before = dict(net.named_parameters()) | dict(net.named_buffers())
        values = deepcopy(before)
        try:
            capture_graph(net, batch_of(4), precision="f16")
        except CaptureError:
            assert forward is not regression
        after = dict(net.named_parameters()) | dict(net.named_buffers())
        assert list(after) == list(before) and all(after[name] is before[name] for name in before)
        assert all(torch.equal(after[name], values[name]) for name in before)
        assert all(p.grad is None and p.device.type == "cpu" for p in net.parameters())


def test_a_model_on_meta() -> None:
    with torch.device("meta"):
        net = Net(regression)
    program = capture_graph(net, batch_of(4), precision="bf16").program
    assert replace(program, name="") == replace(captured(regression)[0], name="")


def test_the_precision_is_part_of_what_a_plan_belongs_to() -> None:
    net = Net(regression)
    plain = capture_graph(net, batch_of(4)).program
    prints = {plain.fingerprint, *(captured(regression, precision)[0].fingerprint for precision in PRECISIONS)}
    assert len(prints) == 3


# Whole models


def single(name: str) -> tuple[nn.Module, dict[str, Any]]:
    case = models.hugging_face(name)
    batch = case.batch(4, 0)
    return case.model.float(), {n: v.float() if v.is_floating_point() else v for n, v in batch.items()}


def compute_values(captured: Captured, model: nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The values that the captured graph reads: rounded copies of what the program keeps."""
    program = captured.program
    values = models.tensors_of(program, model, batch, captured.constants)
    for state in program.state:
        dtype = getattr(torch, TORCH_DTYPE_NAMES[state.compute_type(program.precision).dtype])
        values[state.name] = values[state.name].detach().to(dtype).requires_grad_(state.trainable)
    return values


@pytest.mark.parametrize("family", some_slow(["vit"], models.FAMILIES))
def test_no_product_of_a_family_is_in_single(family: str) -> None:
    model, batch = single(family)
    found = capture_graph(model, batch, precision="bf16")
    program, graph = found.program, found.program.graph
    assert graph is not None and all(p.dtype == torch.float32 for p in model.parameters())
    clustered = Pipeline.of(FRONT_END).run(program)
    for each in (program, clustered):
        verify(each)
        assert parse_program(print_program(each)) == each
    fused = inlined(clustered)
    for op in (*graph.ops, *fused.ops):
        name = op.target.split(".")[1]
        if name in ("linear", "addmm", "conv2d", "bmm", "scaled_dot_product_attention"):
            assert op.result.type.dtype == "bf16", f"{op.source}: {op.target}"
        if name in ("mean", "rsqrt", "var_mean", "cross_entropy_loss", "logsumexp"):
            assert op.result.type.dtype == "f32", f"{op.source}: {op.target}"
    assert graph.values[program.output].type.dtype == "f32"

    values = compute_values(found, model, batch)
    loss = models.run(fused, values, 4)
    trained = {state.name: values[state.name] for state in program.state if state.trainable}
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    expected_loss = eager(model, trained, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected_loss.float(), rtol=2**-8, atol=0)
    expected = torch.autograd.grad(expected_loss, list(trained.values()), allow_unused=True)
    total = torch.stack([wanted.float().norm() for wanted in expected if wanted is not None]).norm()
    for name, gradient, wanted in zip(trained, gradients, expected, strict=True):
        assert (gradient is None) == (wanted is None)
        if gradient is not None and wanted is not None:
            # Gradients that cancel out, such as those of key biases, are but rounding of others.
            error = (gradient - wanted).float().norm()
            assert error < 2**-6 * wanted.float().norm() + 2**-8 * total, f"{name}: {error:.1e}"


def eager(model: nn.Module, trained: dict[str, torch.Tensor], batch: dict[str, Any]) -> torch.Tensor:
    """The loss of the model itself on the rounded parameters."""
    return torch.func.functional_call(model, trained, (), batch).loss
