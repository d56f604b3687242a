"""Capture: what a program says about a model, what capture leaves alone, and the traps of tracing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.compiler import is_compiling
from torch.utils.checkpoint import checkpoint

from galvatron.errors import CaptureError
from galvatron.ir.capture import capture_graph
from galvatron.ir.graph import Graph
from galvatron.ir.types import BATCH, TensorType
from galvatron.passes.frontend.normalize import Normalize
from tests import models
from tests.ir import asserting


class Net(nn.Module):
    """Two linear layers and two buffers; `forward` is the function it is given."""

    scale: torch.Tensor
    calls: torch.Tensor

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("scale", torch.rand(8), persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.double()
        self.function = forward
        self.forward = lambda x, y: self.function(self, x, y)  # type: ignore[method-assign]  # one forward per test


def batch_of(size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, 8, generator=generator, dtype=torch.float64) for name in ("x", "y")}


def assert_equals_eager(model: nn.Module, tolerance: float = 1e-12) -> Graph:
    """The captured and the normalised graph of a model equal it at several batch sizes; gives the captured graph."""
    captured = capture_graph(model, batch_of(4))
    for program in (captured.program, Normalize().run(captured.program)):
        assert program.graph is not None
        for size in (4, 3):
            batch = batch_of(size, seed=size)
            values = models.tensors_of(program, model, batch, captured.constants)
            actual = models.loss_and_gradients(models.run(program.graph, values, size), model)
            models.assert_close(actual, models.loss_and_gradients(model(**batch), model), tolerance)
    assert captured.program.graph is not None
    return captured.program.graph


def targets(graph: Graph) -> list[str]:
    return [op.target for op in graph.ops]


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


# Traps of tracing.


def no_gradients(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        teacher = net.first(x).softmax(-1)
        scale = teacher.sum(-1, keepdim=True)
    return (net.second(net.first(x)) * teacher * scale).square().sum()


def gradients_within_no_gradients(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        h = net.first(x)
        with torch.enable_grad():
            z = net.second(h)
        w = z * 2
    return (z * w).sum()


def detached(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (net.first(x).detach() * net.first(x)).sum()


def in_place(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    h.mul_(2)
    h[:, :3] = 0.5
    h[:, 4].add_(net.second(x)[:, 0])
    return h.relu_().square().sum()


def in_place_on_input(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    y = y.clone()
    y[y > 1] = 0
    return F.mse_loss(net.first(x), y)


def checkpointed(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(checkpoint(lambda h: net.second(net.first(h).relu()), x, use_reentrant=False), y)


def autocast_off(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        h = net.first(x)
    return F.mse_loss(h, y)


def loss_in_a_region(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    with torch.autocast("cpu", enabled=False):
        return F.mse_loss(h, y)


def constants(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8], dtype=torch.float64)
    return (net.first(x) * weights / torch.tensor(3.0)).square().sum()


def counter(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    net.calls += 1
    return F.mse_loss(net.first(x), y)


def batch_size_as_a_number(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return net.first(x).square().sum() / (x.shape[0] * x.shape[1]) + x.shape[0]


def many_results(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    a, b = net.first(x).split([3, 5], dim=-1)
    values, _ = torch.cat([b, a], -1).chunk(2, -1)[1].max(-1)
    return values.flatten().sum(0, keepdim=True).view(()) + torch.stack(x.unbind(1), 1).mul(net.second(y)).sum()


def flattened_batch(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    pairs = torch.cat([x, y]).view(2, -1, 2, 4).transpose(0, 1).flatten(1, 2)
    return net.first(pairs.reshape(-1, 8)).square().mean()


def converted_to_what_it_is(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    net.first = net.first.to(x.device, net.first.weight.dtype)
    return F.mse_loss(net.first.to(x).double()(x), y)


def unlike_when_traced(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x) if torch.compiler.is_exporting() else net.second(x)
    return F.mse_loss(h if is_compiling() else h.tanh(), y)


def values_of_constants(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    mask, offsets = torch.ones(8, 8, device=x.device).triu(1), torch.zeros(3)
    offsets[1:].fill_(2)
    if torch.equal(mask, mask.triu()) and bool((mask == mask.T).any()):
        h = h.tanh()
    return F.mse_loss(h * int(offsets.sum()) + offsets.max().item() + torch.arange(3).tolist()[2], y)


@pytest.mark.parametrize(
    "forward",
    [
        no_gradients, detached, in_place, in_place_on_input, checkpointed, autocast_off, loss_in_a_region, constants,
        counter, batch_size_as_a_number, many_results, flattened_batch, gradients_within_no_gradients,
        converted_to_what_it_is, unlike_when_traced, values_of_constants,
    ],
    ids=lambda forward: forward.__name__,
)  # fmt: skip
def test_traps(forward: Callable[..., Any]) -> None:
    assert_equals_eager(Net(forward))


def test_autocast_becomes_casts() -> None:
    def forward(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = net.first(x.float())
        return F.mse_loss(h.double(), y)

    net = Net(forward)
    net.first.float()
    graph = assert_equals_eager(net)
    assert graph.producers["linear"].result.type.dtype == "bf16"


def test_constants_keep_their_data() -> None:
    captured = capture_graph(Net(constants), batch_of(4))
    data = {s.name: captured.constants[s.name] for s in captured.program.state if s.kind == "constant"}
    assert list(data) == ["constant.0"] == list(captured.constants)
    assert data["constant.0"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert captured.program.graph is not None
    fill = captured.program.graph.producers["full"]
    assert (fill.args, fill.result.type) == (((), 3.0), TensorType("f32", ()))


def test_region_keeps_the_line_of_its_ops() -> None:
    graph = capture_graph(Net(no_gradients), batch_of(4)).program.graph
    assert graph is not None
    source = graph.producers["softmax"].source
    assert source is not None
    assert source.code == "teacher = net.first(x).softmax(-1)"


# Models that cannot be captured.


def value_in_control_flow(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if x.sum() > 0:
        return net.first(x).sum()
    return net.second(x).sum()


def value_as_size(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    length = int(x.max().item())
    return net.first(x)[:length].sum()


def fixed_by_view(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    h = h.view(4, -1)
    return h.sum()


def fixed_by_comparison(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if x.shape[0] == 4:
        return net.first(x).sum()
    return net.second(x).sum()


def fixed_by_loop(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(())
    for i in range(x.shape[0]):
        total = total + net.first(x[i]).sum()
    return total


def even_batches_only(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    h = h.view(x.shape[0] // 2, 2, -1)
    return h.sum()


def data_dependent_shape(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    return h[x[:, 0] > 0].sum()


def power_of_batch_size(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    return h.sum() / 2.0 ** x.shape[0]


def mistaken(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x[:, :3])
    return h.sum()


def not_torch(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = torch.from_numpy(net.first(x).detach().numpy())
    return h.sum()


def written_without_gradients(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    with torch.no_grad():
        h.mul_(2)
    return h.sum()


class StraightThrough(torch.autograd.Function):
    """Straight through for what `how` computes of its operand."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, how: Callable[[Any, torch.Tensor], Any]) -> Any:
        return how(ctx, x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None


def function_in_place(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = StraightThrough.apply(net.first(x), lambda ctx, x: x.mul_(2))
    return F.mse_loss(h, y)


def function_marked_dirty(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = StraightThrough.apply(net.first(x), lambda ctx, x: (ctx.mark_dirty(x), x)[1])
    return F.mse_loss(h, y)


def function_that_draws(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = StraightThrough.apply(net.first(x), lambda ctx, x: x + torch.rand_like(x))
    return F.mse_loss(h, y)


def function_of_the_batch_size(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = StraightThrough.apply(net.first(x), lambda ctx, x: x * (1 / x.shape[0]))
    return F.mse_loss(h, y)


def function_of_used_results(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = StraightThrough.apply(net.first(x), lambda ctx, x: (ctx.set_materialize_grads(False), x, x * 2)[1:])
    return F.mse_loss(h[0], y)


@torch.library.custom_op("galvatron_test::double", mutates_args=("x",))
def double(x: torch.Tensor) -> None:
    x.mul_(2)


def backward_inside(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    h.square().sum().backward()
    return h.sum()


def equal_values(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    if torch.equal(h, x):
        h = h * 2
    return h.sum()


def own_generator(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x) + torch.randn(8, generator=torch.Generator())
    return h.sum()


def sparse(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x).to_sparse()
    return h.to_dense().sum()


def operator_in_place(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    double(h)
    return h.sum()


def converted(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    net.first.half()
    return net.first(x.half()).sum()


def constant_of_chance(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    rate = torch.full((1,), 0.5)
    if torch.bernoulli(rate) > 0:
        return net.first(x).sum()
    return net.second(x).sum()


def constant_written_through_a_view(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    counts = torch.zeros(8, dtype=x.dtype)
    counts[:4].add_(x[0, :4])
    return net.first(x).sum() * counts.sum().item()


def constant_of_the_batch(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return net.first(x).sum() * torch.arange(x.shape[0]).max().item()


@pytest.mark.parametrize(
    ("forward", "line", "reason"),
    [
        (value_in_control_flow, "if x.sum() > 0:", "depends on the values of a tensor"),
        (value_as_size, "length = int(x.max().item())", "depends on the values of a tensor"),
        (fixed_by_view, "h = h.view(4, -1)", "fixes the batch size at 4"),
        (fixed_by_comparison, "if x.shape[0] == 4:", "fixes the batch size at 4"),
        (fixed_by_loop, "for i in range(x.shape[0]):", "fixes the batch size at 4"),
        (even_batches_only, "h = h.view(x.shape[0] // 2, 2, -1)", "works only for batch sizes that divide"),
        (data_dependent_shape, "return h[x[:, 0] > 0].sum()", "a size depends on the values of a tensor"),
        (power_of_batch_size, "return h.sum() / 2.0 ** x.shape[0]", "computed from the batch size"),
        (mistaken, "h = net.first(x[:, :3])", "cannot be traced without running it: RuntimeError"),
        (not_torch, "h = torch.from_numpy(net.first(x).detach().numpy())", "cannot be traced without running it"),
        (written_without_gradients, "h.mul_(2)", "changed in place inside torch.no_grad()"),
        (
            operator_in_place,
            "double(h)",
            "galvatron_test::double changes its operands in place: use one that returns new tensors",
        ),
        (
            function_in_place,
            "h = StraightThrough.apply(net.first(x), lambda ctx, x: x.mul_(2))",
            "a tensor is changed in place inside torch.no_grad(), which would be lost: use a new tensor",
        ),
        (
            function_marked_dirty,
            "h = StraightThrough.apply(net.first(x), lambda ctx, x: (ctx.mark_dirty(x), x)[1])",
            "changes its operand in place",
        ),
        (
            function_that_draws,
            "h = StraightThrough.apply(net.first(x), lambda ctx, x: x + torch.rand_like(x))",
            "StraightThrough draws random numbers, which its backward could not draw again: draw them outside",
        ),
        (
            function_of_the_batch_size,
            "h = StraightThrough.apply(net.first(x), lambda ctx, x: x * (1 / x.shape[0]))",
            "StraightThrough computes with the size of the batch as a number: divide by it outside",
        ),
        (
            function_of_used_results,
            "h = StraightThrough.apply(net.first(x), lambda ctx, x: (ctx.set_materialize_grads(False), x, x * 2)[1:])",
            "asks which of its results are used",
        ),
        (backward_inside, "h.square().sum().backward()", "a gradient is computed inside forward"),
        (equal_values, "if torch.equal(h, x):", "depends on the values of a tensor"),
        (own_generator, "h = net.first(x) + torch.randn(8, generator=torch.Generator())", "random generator"),
        (sparse, "h = net.first(x).to_sparse()", "torch cannot trace aten._to_sparse.default"),
        (constant_of_chance, "if torch.bernoulli(rate) > 0:", "depends on the values of a tensor"),
        (constant_written_through_a_view, "return net.first(x).sum() * counts.sum().item()", "the values of a tensor"),
        (constant_of_the_batch, "return net.first(x).sum() * torch.arange(x.shape[0]).max().item()", "the values of a"),
        (converted, "net.first.half()", "a module is converted to another type or device in forward"),
    ],
    ids=lambda case: case.__name__ if callable(case) else "",
)
def test_refused(forward: Callable[..., Any], line: str, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError) as error:
        capture_graph(Net(forward), batch_of(4))
    source, first = inspect.getsourcelines(forward)
    (number,) = (first + i for i, text in enumerate(source) if text.strip() == line)
    assert f"test_capture.py:{number}: `{line}`: " in str(error.value)
    assert reason in str(error.value)
    assert capfd.readouterr() == ("", ""), "torch's own dumps stay off the screen"


def check_that_raises(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    if torch.isnan(h).any():
        raise ValueError("not a number")
    return h.square().sum()


def check_of_several_conditions(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    if net.training and (torch.isnan(h).any().item() or not torch.isfinite(h).all()):
        raise ValueError("not finite")
    return h.square().sum()


def check_with_another_branch(net: Net, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    h = net.first(x)
    if torch.isfinite(h).all():
        h = h.relu()
    else:
        raise ValueError("not finite")
    return h.square().sum()


@pytest.mark.parametrize(
    "forward", [check_that_raises, check_of_several_conditions, asserting.check_that_asserts, check_with_another_branch]
)
def test_checks_of_values_can_be_left_out_with_a_warning(forward: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match=r"\.py:\d+: `(if|assert) .*left out"):
        captured = capture_graph(Net(forward), batch_of(4), checks=False)
    assert not captured.program.checks


def caching(net: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if not hasattr(net, "ramp"):
        net.ramp = torch.arange(8, dtype=x.dtype)
        net.history = {}
    net.history["last"] = net.first(x)
    return (net.history["last"] * net.ramp).sum()


def test_what_forward_assigns_is_taken_back() -> None:
    net: Any = Net(caching)
    before = dict(net.__dict__)
    capture_graph(net, batch_of(4))
    assert net.__dict__ == before
    net.history, net.ramp = {}, torch.ones(8, dtype=torch.float64)
    capture_graph(net, batch_of(4))
    assert net.history == {}


def test_advice_about_a_line_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("galvatron.ir.capture.sources._is_of_library", lambda file: True)
    with pytest.raises(CaptureError, match="the line is in the library 'tests': choose an option of its configuration"):
        capture_graph(Net(value_in_control_flow), batch_of(4))


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


class Remembers(nn.Module):
    """A model that assigns something in forward; `how` says what, and what the loss reads of it."""

    def __init__(self, how: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(4, 4), how
        self.register_buffer("n", torch.zeros(()), persistent=False)
        self.register_buffer("mean", torch.zeros(()))
        self.count, self.cache, self.table = 0, None, {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(self, self.linear(x).square().mean())


def _counted(self: Any, loss: torch.Tensor) -> torch.Tensor:
    self.count += 1
    return loss * self.count


def _buffered(self: Any, loss: torch.Tensor) -> torch.Tensor:
    self.n = self.n + 1
    return loss * self.n


def _averaged(self: Any, loss: torch.Tensor) -> torch.Tensor:
    self.mean = 0.9 * self.mean + 0.1 * loss.detach()
    return loss


def _recalled(self: Any, loss: torch.Tensor) -> torch.Tensor:
    last, self.cache = self.cache, loss.detach()
    return loss if last is None else loss + last


def _made_once(self: Any, loss: torch.Tensor) -> torch.Tensor:
    if self.cache is None:
        self.cache = torch.ones(4, 4).triu()
    return loss * self.cache.sum()


def _logged(self: Any, loss: torch.Tensor) -> torch.Tensor:
    self.table["loss"], self.count = loss.detach(), self.count + 1
    return loss


@pytest.mark.parametrize(("how", "name"), [(_buffered, "n"), (_averaged, "mean")])
def test_what_forward_assigns_to_a_buffer_is_an_update(how: Any, name: str) -> None:
    program = capture_graph(Remembers(how), {"x": torch.zeros(4, 4)}).program
    assert [update.state for update in program.updates] == [name]


@pytest.mark.parametrize("how", [_counted, _recalled])
def test_what_forward_assigns_for_its_next_step_is_refused(how: Any) -> None:
    with pytest.raises(CaptureError, match="assigns .* in forward and reads it in the next step, which would be lost"):
        capture_graph(Remembers(how), {"x": torch.zeros(4, 4)})


@pytest.mark.parametrize("how", [_made_once, _logged])
def test_what_forward_assigns_and_never_needs_again_is_no_matter(how: Any) -> None:
    assert capture_graph(Remembers(how), {"x": torch.zeros(4, 4)}).program.graph is not None
