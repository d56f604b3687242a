"""Layers that repeat another are traced once, and the program is that of a model of which all layers are traced."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from galvatron.errors import CaptureError
from galvatron.ir.capture import capture_graph, export
from galvatron.ir.capture.copies import _again
from galvatron.ir.text import print_program
from tests import models

Layer = Callable[..., Any]


class Holder:
    """What a model keeps beside its modules."""

    def __init__(self) -> None:
        self.value: Any = 0


class Block(nn.Module):
    """A layer; what it computes is a function of its own."""

    holder: Holder

    def __init__(self, index: int, compute: Layer) -> None:
        super().__init__()
        self.index: int = index
        self.compute, self.calls = compute, 0
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, *others: Any, **named: Any) -> Any:
        return self.compute(self, x, *others, **named)


class Stack(nn.Module):
    """Four layers and a loss; `forward` is the function it is given."""

    table: torch.Tensor

    def __init__(self, layer: Layer, forward: Callable[..., Any] | None = None, change: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(index, layer) for index in range(4))
        self.first, self.holder, self.run = nn.Linear(4, 4), Holder(), forward or in_turn
        self.register_buffer("table", torch.rand(4))
        for block in self.layers:
            block.holder = self.holder
        if change is not None:
            change(self)
        self.double()

    @property
    def layers(self) -> list[Block]:
        return [*self.blocks]  # type: ignore[list-item]  # what it was made of

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, self.first(x)).square().mean()


def in_turn(stack: Stack, x: torch.Tensor) -> torch.Tensor:
    for block in stack.layers:
        x = block(x)
    return x


def plain(block: Block, x: torch.Tensor) -> torch.Tensor:
    return x + block.down(F.gelu(block.up(block.norm(x))))


@pytest.fixture
def marks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many layers each trace has left out."""
    found: list[int] = []
    write = export.write_copies

    def counted(exported: Any) -> Any:
        found.append(sum(node.target is _again.default for node in exported.graph.nodes))
        return write(exported)

    monkeypatch.setattr(export, "write_copies", counted)
    yield found


def outcome(model: nn.Module, batch: dict[str, Any], precision: str | None) -> Any:
    """The program of a model with its constants, or why there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            captured = capture_graph(model, batch, precision=precision)
        except CaptureError as error:
            return str(error)
    constants = {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in captured.constants.items()}
    return print_program(captured.program), captured.program, constants, captured.fixed


def assert_as_whole(make: Callable[[], nn.Module], batch: dict[str, Any], precision: str | None = None) -> None:
    """The program does not depend on whether layers that are alike are traced once."""
    once = outcome(make(), batch, precision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "repeated_modules", lambda _: {})
        whole = outcome(make(), batch, precision)
    assert once == whole


BATCH = {"x": torch.rand(3, 5, 4, dtype=torch.float64)}


def by_index(block: Block, x: torch.Tensor) -> torch.Tensor:
    return plain(block, x.relu() if block.index == 2 else x)


def by_line(block: Block, x: torch.Tensor) -> torch.Tensor:
    if block.index < 2:
        return plain(block, x) * 2
    return plain(block, x) * 2


def counts_calls(block: Block, x: torch.Tensor) -> torch.Tensor:
    block.calls += 1
    return plain(block, x) * block.calls


def counts_elsewhere(block: Block, x: torch.Tensor) -> torch.Tensor:
    block.holder.value += block.index == 3
    return plain(block, x) * (2 if block.holder.value == 1 else 1)


def appends(block: Block, x: torch.Tensor, seen: list[Any]) -> torch.Tensor:
    seen.append(block.up(x))
    return plain(block, x)


def sums_what_was_seen(stack: Stack, x: torch.Tensor) -> torch.Tensor:
    seen: list[Any] = []
    for block in stack.layers:
        x = block(x, seen)
    return x * torch.stack(seen).mean()


def counts_what_was_seen(stack: Stack, x: torch.Tensor) -> torch.Tensor:
    seen: list[Any] = []
    for block in stack.layers:
        x = block(x, seen)
    return x * len(seen)


def several(block: Block, x: torch.Tensor, mask: torch.Tensor | None = None, *, scale: float = 1.0) -> Any:
    y = plain(block, x) * scale
    return {"x": y if mask is None else y * mask, "again": [x, mask], "up": block.up(x), "scale": scale}


def of_several(stack: Stack, x: torch.Tensor) -> torch.Tensor:
    mask, total = torch.rand_like(x) > 0.5, x.sum()
    for block in stack.layers:
        given = block(x, mask if block.index % 2 else None, scale=0.5)
        x, total = given["x"] + given["again"][0], total + (given["up"].sum() if block.index == 2 else 0)
    return x * total


def reads_what_others_made(block: Block, x: torch.Tensor) -> torch.Tensor:
    return plain(block, x) * block.holder.value


def gives_to_layers(stack: Stack, x: torch.Tensor) -> torch.Tensor:
    stack.holder.value = x.mean(-1, keepdim=True)
    return in_turn(stack, x)


def reads_a_table(stack: Stack, x: torch.Tensor) -> torch.Tensor:
    stack.holder.value = stack.table
    return in_turn(stack, x)


def writes_operand(block: Block, x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2.0) + plain(block, x)


def checks(block: Block, x: torch.Tensor) -> torch.Tensor:
    if x.isnan().any():
        raise ValueError("not a number")
    return plain(block, x)


def without_gradient(block: Block, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scale = block.up(x).mean()
    return plain(block, x) * scale


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient.clamp(-1, 1)


def own_backward(block: Block, x: torch.Tensor) -> torch.Tensor:
    return plain(block, Straight.apply(x))  # type: ignore[arg-type]


def with_constant(block: Block, x: torch.Tensor) -> torch.Tensor:
    return plain(block, x) * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype)


def gives_back(block: Block, x: torch.Tensor) -> torch.Tensor:
    return plain(block, x).transpose(0, 1) if block.index == 1 else x


def by_batch_size(block: Block, x: torch.Tensor) -> torch.Tensor:
    return plain(block, x) if x.shape[0] < 10 + block.index else x


def squeezes(block: Block, x: torch.Tensor) -> torch.Tensor:
    return plain(block, x) + x[:, :1].squeeze().mean(-1, keepdim=True).sum()


def drops(block: Block, x: torch.Tensor) -> torch.Tensor:
    return x + F.dropout(block.down(block.up(x)), 0.1 * (block.index // 2 + 1), block.training)


def differentiates(block: Block, x: torch.Tensor) -> torch.Tensor:
    y = plain(block, x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y + slope


def twice(stack: Stack, x: torch.Tensor) -> torch.Tensor:
    return in_turn(stack, in_turn(stack, x))


def in_eval(stack: Stack) -> None:
    stack.layers[2].eval()


def with_other_eps(stack: Stack) -> None:
    stack.layers[2].norm.eps = 1e-3


def shares_with_a_layer(stack: Stack) -> None:
    stack.layers[2].up.weight = stack.layers[0].up.weight


def shares_with_first(stack: Stack) -> None:
    for block in stack.layers:
        block.norm.weight = stack.first.bias


def freezes(stack: Stack) -> None:
    stack.layers[1].requires_grad_(False)


def with_statistics(stack: Stack) -> None:
    for block in stack.layers:
        block.norm = nn.BatchNorm1d(5)  # type: ignore[assignment]


@pytest.mark.one_in(12)
@pytest.mark.parametrize(
    ("make", "left_out"),
    [
        (lambda: Stack(plain), 3),
        (lambda: Stack(plain, twice), 7),
        (lambda: Stack(by_index), 2),
        (lambda: Stack(by_line), 2),
        (lambda: Stack(plain, change=with_other_eps), 2),
        (lambda: Stack(plain, change=freezes), 2),
        (lambda: Stack(drops), 2),
        (lambda: Stack(drops, change=in_eval), 1),
        (lambda: Stack(several, of_several), 2),
        (lambda: Stack(reads_what_others_made, reads_a_table), 3),
        (lambda: Stack(without_gradient), 3),
        (lambda: Stack(squeezes), 3),
        (lambda: Stack(by_batch_size), 3),
    ],
)
def test_layers_that_are_alike_are_left_out_of_the_trace(
    make: Callable[[], nn.Module], left_out: int, marks: list[int]
) -> None:
    assert_as_whole(make, BATCH)
    assert marks[0] == left_out


@pytest.mark.one_in(12)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Stack(plain, change=shares_with_a_layer),
        lambda: Stack(plain, change=shares_with_first),
        lambda: Stack(plain, change=with_statistics),
        lambda: Stack(counts_calls),
        lambda: Stack(counts_elsewhere),
        lambda: Stack(appends, sums_what_was_seen),
        lambda: Stack(appends, counts_what_was_seen),
        lambda: Stack(reads_what_others_made, gives_to_layers),
        lambda: Stack(writes_operand),
        lambda: Stack(checks),
        lambda: Stack(own_backward),
        lambda: Stack(with_constant),
        lambda: Stack(gives_back),
        lambda: Stack(differentiates),
    ],
)
def test_what_cannot_be_shown_to_be_alike_is_traced(make: Callable[[], nn.Module]) -> None:
    assert_as_whole(make, BATCH)


def test_layers_are_left_out_in_another_precision(marks: list[int]) -> None:
    assert_as_whole(lambda: Stack(several, of_several).float(), {"x": torch.rand(3, 5, 4)}, "bf16")
    assert marks[0] == 2


LAYERS = {"gpt2": "n_layer", "t5": "num_layers"}
SLIDING = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "use_sliding_window": True,
    "sliding_window": 4,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", models.FAMILIES)
def test_programs_of_families_are_those_of_whole_traces(name: str, marks: list[int]) -> None:
    layers: dict[str, Any] = {LAYERS.get(name, "num_hidden_layers"): 4}
    case = models.hugging_face(name, **layers)
    assert_as_whole(lambda: case.model, case.batch(4, 0))
    assert marks[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qwen3", SLIDING),
        ("llama", {"use_cache": True}),
        ("llama", {"attention_dropout": 0.1}),
        ("qwen3-moe", {"experts_implementation": "eager"}),
        ("deepseek-v3", {"experts_implementation": "batched_mm"}),
    ],
)
def test_programs_of_other_layers_are_those_of_whole_traces(name: str, changes: dict[str, Any]) -> None:
    case = models.hugging_face(name, **{"num_hidden_layers": 4, **changes})
    assert_as_whole(lambda: case.model, case.batch(4, 0))
