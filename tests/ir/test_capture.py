"""Capture: what a program says about a model, and what capture leaves alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from galvatron.errors import CaptureError
from galvatron.ir.capture import capture_graph
from galvatron.ir.types import BATCH, TensorType
from tests import models
from tests.ir.nets import Net, assert_equals_eager, batch_of, in_place_on_input, many_results, targets

# What a program says.


def test_program_describes_inputs_state_and_sources() -> None:
    def forward(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(net.first(x) * net.scale, y)

    program = capture_graph(Net(forward), batch_of(4)).program
    assert [(v.name, v.type) for v in program.inputs] == [(n, TensorType("f64", (BATCH, 8))) for n in ("x", "y")]
    assert [(s.name, s.kind, s.trainable) for s in program.state] == [
        ("first.weight", "parameter", True),
        ("first.bias", "parameter", True),
        ("second.weight", "parameter", True),
        ("second.bias", "parameter", True),
        ("scale", "buffer", False),
        ("calls", "buffer", False),
    ]
    assert program.graph is not None
    assert [v.name for v in program.graph.state] == ["first.weight", "first.bias", "scale"]
    assert (program.name, program.batch_size, program.output) == ("Net", 4, program.graph.ops[-1].result.name)
    linear = next(op for op in program.graph.ops if op.target == "aten.linear.default")
    assert linear.source is not None
    assert linear.source.file.endswith("test_capture.py")
    assert linear.source.line == inspect.getsourcelines(forward)[1] + 1
    assert linear.source.code == "return F.mse_loss(net.first(x) * net.scale, y)"
    assert linear.source.scope == "first"


def test_frozen_parameters_are_not_trainable() -> None:
    net = Net(lambda net, x, y: F.mse_loss(net.second(net.first(x)), y))
    net.first.weight.requires_grad_(False)
    state = capture_graph(net, batch_of(4)).program.state_of
    assert not state["first.weight"].trainable
    assert state["first.bias"].trainable
    assert_equals_eager(net)


@pytest.mark.parametrize("head_first", [False, True])
def test_tied_parameters_are_one(head_first: bool) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts: dict[str, Any] = {"embedding": nn.Embedding(10, 8), "head": nn.Linear(8, 10, bias=False)}
            parts["head"].weight = parts["embedding"].weight
            for name in reversed(parts) if head_first else parts:
                self.add_module(name, parts[name])

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            embedding, head = self.get_submodule("embedding"), self.get_submodule("head")
            return F.cross_entropy(head(embedding(tokens)), tokens)

    program = capture_graph(Tied(), {"tokens": torch.zeros(4, dtype=torch.long)}).program
    (state,) = program.state
    names = ["embedding.weight", "head.weight"]
    assert [state.name, *state.aliases] == (names[::-1] if head_first else names)
    assert program.graph is not None
    assert [v.name for v in program.graph.state] == [state.name]
    assert len(program.graph.consumers[state.name]) == 2


def test_tied_parameters_of_hugging_face() -> None:
    case = models.hugging_face("gpt2")
    program = capture_graph(case.model, case.batch(2, 0)).program
    assert program.state_of["transformer.wte.weight"].aliases == ("lm_head.weight",)
    assert program.graph is not None
    assert len(program.graph.consumers["transformer.wte.weight"]) == 2


def test_capture_is_deterministic() -> None:
    net = Net(many_results)
    assert capture_graph(net, batch_of(4, seed=0)) == capture_graph(net, batch_of(4, seed=1))


def test_example_batch_of_one_sample() -> None:
    net = Net(many_results)
    one, four = (capture_graph(net, batch_of(size)).program for size in (1, 4))
    assert (one.batch_size, one.graph) == (1, four.graph)


# Inputs.


def test_positional_inputs_are_named_by_forward() -> None:
    net, batch = Net(in_place_on_input), batch_of(4)
    assert capture_graph(net, tuple(batch.values())) == capture_graph(net, batch)


def test_one_tensor_given_twice_is_two_inputs() -> None:
    x = batch_of(4)["x"]
    graph = capture_graph(Net(lambda net, x, y: F.mse_loss(net.first(x), y)), {"x": x, "y": x}).program.graph
    assert graph is not None
    assert [v.name for v in graph.inputs] == ["x", "y"]
    assert all(graph.consumers[v.name] for v in graph.inputs)


def test_inputs_without_batch_dim_and_flags() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(16, 8)

        def forward(self, x: torch.Tensor, positions: torch.Tensor, square: bool, unused: Any = None) -> torch.Tensor:
            return (self.table(positions) * x if square else x).square().sum()

    inputs = {"x": torch.zeros(4, 6, 8), "positions": torch.arange(6)[None], "square": True, "unused": None}
    program = capture_graph(Positions(), inputs).program
    assert [(v.name, v.type.shape) for v in program.inputs] == [("x", (BATCH, 6, 8)), ("positions", (1, 6))]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(4, 8), "give a mapping of forward keyword arguments or a tuple"),
        ({"x": torch.zeros(4, 8)}, "do not fit Net.forward.* missing a required argument: 'y'"),
        ({"x": torch.zeros(4, 8), "y": None, "labels": None}, "what only the loss needs, such as labels, must be an"),
        ({"x": torch.zeros(4, 8), "y": [torch.zeros(4, 8)]}, "example input 'y' is a list"),
        ({"x": 1.0, "y": None}, "hold no tensor with a batch dimension"),
        ({"x": torch.zeros(0, 8), "y": None}, "a batch of 0 samples"),
    ],
)
def test_unusable_inputs(inputs: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture_graph(Net(lambda net, x, y: net.first(x).sum()), inputs)


def test_input_named_like_a_parameter() -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.ones(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.x).sum()

    with pytest.raises(CaptureError, match="'x' is the name of an input and of a parameter"):
        capture_graph(Clash(), {"x": torch.zeros(4, 8)})


# The loss.


def test_loss_function_sees_output_and_batch() -> None:
    net = Net(lambda net, x, y: net.first(x))
    program = capture_graph(net, batch_of(4), loss_fn=lambda output, batch: F.mse_loss(output, batch["y"])).program
    assert program.graph is not None
    assert targets(program.graph) == ["aten.linear.default", "aten.broadcast_tensors.default", "aten.mse_loss.default"]


@pytest.mark.parametrize("output", [lambda loss: loss, lambda loss: {"loss": loss, "other": loss * 2}])
def test_own_loss(output: Callable[[torch.Tensor], Any]) -> None:
    graph = capture_graph(Net(lambda net, x, y: output(F.mse_loss(net.first(x), y))), batch_of(4)).program.graph
    assert graph is not None
    assert targets(graph) == ["aten.linear.default", "aten.broadcast_tensors.default", "aten.mse_loss.default"]


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda net, x, y: net.first(x), "returned no loss but a float64 tensor with 2 dimensions: pass loss_fn"),
        (lambda net, x, y: {"loss": None}, "returned no loss but a dict"),
        (lambda net, x, y: {"loss": net.first(x)}, "the loss is a float64 tensor with 2 dimensions"),
        (lambda net, x, y: net.first(x).sum().long(), "the loss is a int64 tensor with 0 dimensions"),
    ],
)
def test_missing_loss(forward: Callable[..., Any], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture_graph(Net(forward), batch_of(4))


# What capture leaves alone.


def test_model_and_random_state_stay_as_they_are() -> None:
    net = Net(lambda net, x, y: F.mse_loss(F.dropout(net.first(x), 0.5, net.training), y))
    net.second.eval()
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    before = {name: (t.data_ptr(), t.clone(), t.requires_grad) for name, t in tensors.items()}
    random_state = torch.get_rng_state()
    inputs = batch_of(4)
    with torch.no_grad():
        captured = capture_graph(net, inputs)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert net.training and net.first.training and not net.second.training
    assert captured.program.graph is not None
    assert "aten.native_dropout.default" in targets(captured.program.graph)
    for name, tensor in tensors.items():
        pointer, value, requires_grad = before[name]
        assert (tensor.data_ptr(), tensor.requires_grad, tensor.grad) == (pointer, requires_grad, None)
        assert torch.equal(tensor, value)
    assert type(net.first.weight) is nn.Parameter


def test_meta_model_gives_the_same_program() -> None:
    net, on_meta = Net(many_results), Net(many_results).to("meta")
    batch = batch_of(4)
    meta_batch = {name: t.to("meta") for name, t in batch.items()}
    expected = capture_graph(net, batch)
    assert capture_graph(on_meta, batch) == expected
    assert capture_graph(on_meta, meta_batch) == expected
    assert capture_graph(net, meta_batch) == expected


def test_llama_2_7b_on_meta_allocates_nothing() -> None:
    """Llama-2-7B with two of its layers: 1.7 GB of weights that must never exist."""
    resource = pytest.importorskip("resource")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(intermediate_size=11008, num_hidden_layers=2, use_cache=False)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
        tokens = torch.zeros(8, 2048, dtype=torch.long)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    program = capture_graph(model, {"input_ids": tokens, "labels": tokens}).program
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 500 * 1024
    assert program.state_of["lm_head.weight"].type == TensorType("f32", (32000, 4096))


def test_batch_norm_updates_its_statistics_in_training_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    batch = (torch.zeros(4, 8),)

    def loss(output: torch.Tensor, _: Any) -> torch.Tensor:
        return output.sum()

    updates = capture_graph(model, batch, loss_fn=loss).program.updates
    assert {update.state for update in updates} == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert capture_graph(model.eval(), batch, loss_fn=loss).program.updates == ()


class Chosen(nn.Module):
    """One matrix only chooses, another is looked at without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.chooses, self.looks, self.trains = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        choice = F.one_hot(self.chooses(x).argmax(-1), 4).to(x.dtype)
        return (self.trains(x) * choice * self.looks(x).detach()).pow(2).mean()


def test_parameters_that_no_gradient_reaches_do_not_train() -> None:
    program = capture_graph(Chosen(), {"x": torch.zeros(4, 4)}).program
    assert {s.name for s in program.state if s.trainable} == {"trains.weight", "trains.bias"}
