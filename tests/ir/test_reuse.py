"""Calls of siblings that are given tensors of the types that others were given show what they show without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from galvatron.ir.capture import capture_graph, repeat, reuse
from tests.ir.test_alike import BATCH, Block, Stack, drops, in_turn, outcome, plain


@contextmanager
def never(_: Any) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """In the place of `reusing`: every function runs."""
    yield lambda forward: forward()


def assert_as_without(make: Callable[[], nn.Module]) -> Any:
    """The outcome, which does not depend on what stands in for what."""
    with_it = outcome(make(), BATCH, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeat, "reusing", never)
        without = outcome(make(), BATCH, None)
    assert with_it == without
    return with_it


def test_functions_run_for_the_first_of_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the five calls of a forward, all but the trace."""
    handed_out: list[Any] = []
    again = reuse._Step.again
    monkeypatch.setattr(reuse._Step, "again", lambda step: handed_out.append(step) or again(step))
    calls: list[bool] = []

    def noting(block: Block, x: torch.Tensor) -> torch.Tensor:
        calls.append(block.training)
        return plain(block, x)

    capture_graph(Stack(noting), BATCH)
    assert calls == [True] * 4 + [True] + [True] * 4 + [True] * 4 + [False] * 4
    inside = 3  # of a layer's functions, all but the one whose result it returns, and views of what it is given
    assert len(handed_out) >= 4 * 3 * inside


def keeps_for_the_next(block: Block, x: torch.Tensor) -> torch.Tensor:
    """Every layer calls the same functions, of the same types; the first finds nothing, and takes its own."""
    value = block.down(block.up(x))
    before = block.holder.value if block.index else value
    block.holder.value = value
    return plain(block, x) + value * before


def keeps_for_the_next_in_evaluation(block: Block, x: torch.Tensor) -> torch.Tensor:
    value = block.down(block.up(x))
    before = value if block.training or not block.index else block.holder.value
    block.holder.value = value
    return plain(block, x) + value * before


def marks_tensors(block: Block, x: torch.Tensor) -> torch.Tensor:
    value = block.up(x)
    seen = getattr(value, "of", None)
    setattr(value, "of", block.index)  # noqa: B010  # a tensor has no such attribute, to the type checker
    return x + block.down(value if seen is None else value.relu())


def otherwise_late(block: Block, x: torch.Tensor) -> torch.Tensor:
    value = block.up(block.norm(x))
    return x + block.down(value.relu() if block.index % 2 else value)


def writes_late(block: Block, x: torch.Tensor) -> torch.Tensor:
    value = block.up(block.norm(x)) * 2
    if block.index == 2:
        value += 1
    return x + block.down(value)


def writes_each(block: Block, x: torch.Tensor) -> torch.Tensor:
    value = block.up(block.norm(x)) * 2
    value.mul_(0.5)
    return x + block.down(value)


def writes_what_layers_gave(stack: Stack, x: torch.Tensor) -> torch.Tensor:
    for block in stack.layers:
        x = block(x)
        if block.index == 1:
            x += 1
    return x


def gives_a_view(block: Block, x: torch.Tensor) -> torch.Tensor:
    value = block.up(x)
    return x + block.down(value) if block.index < 2 else value[..., :4]


def asks_for_leaves(block: Block, x: torch.Tensor) -> torch.Tensor:
    value = block.up(x)
    return x + block.down(value.relu() if value.is_leaf else value)


def slope_of_all(stack: Stack, x: torch.Tensor) -> torch.Tensor:
    y = in_turn(stack, x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y + slope


def slope_of_late_layers(block: Block, x: torch.Tensor) -> torch.Tensor:
    y = block.down(block.up(x))
    if block.index == 2:
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return plain(block, x) + y + slope
    return plain(block, x) + y


def by_its_own_batch_size(block: Block, x: torch.Tensor) -> torch.Tensor:
    return plain(block, x) if x.shape[0] < 10 - block.index else x


def by_batch_size_in_evaluation(block: Block, x: torch.Tensor) -> torch.Tensor:
    return plain(block, x) if block.training or block.index != 2 or x.shape[0] < 10 else x


def otherwise_in_evaluation(block: Block, x: torch.Tensor) -> torch.Tensor:
    return plain(block, x.relu() if block.index == 2 and not block.training else x)


def counts_in_evaluation(block: Block, x: torch.Tensor) -> torch.Tensor:
    block.holder.value += not block.training
    return plain(block, x) * (2 if block.holder.value == 3 else 1)


def squeezes_late(block: Block, x: torch.Tensor) -> torch.Tensor:
    return plain(block, x) + (x[:, 0].squeeze().sum(0) if block.index == 2 else 0)


def with_a_stride(block: Block, x: torch.Tensor) -> torch.Tensor:
    stride = int(block.get_buffer("stride"))
    return plain(block, x) + block.up(x)[:, ::stride].sum()


def has_strides(stack: Stack) -> None:
    for block in stack.layers:
        block.register_buffer("stride", torch.tensor(1 + block.index % 2), persistent=False)


def drops_by_layer(block: Block, x: torch.Tensor) -> torch.Tensor:
    return x + F.dropout(block.down(F.dropout(block.up(x), 0.1)), 0.1 * block.index, block.training)


def chunks(block: Block, x: torch.Tensor) -> torch.Tensor:
    first, second = block.up(x).chunk(2, -1)
    low, high = block.up(x).aminmax(dim=-1, keepdim=True)
    return plain(block, x) + (first * second).sum(-1, keepdim=True) * (low + high)


@pytest.mark.one_in(10)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Stack(keeps_for_the_next),
        lambda: Stack(by_its_own_batch_size),
        lambda: Stack(keeps_for_the_next_in_evaluation),
        lambda: Stack(marks_tensors),
        lambda: Stack(otherwise_late),
        lambda: Stack(writes_late),
        lambda: Stack(writes_each),
        lambda: Stack(plain, writes_what_layers_gave),
        lambda: Stack(gives_a_view),
        lambda: Stack(asks_for_leaves),
        lambda: Stack(plain, slope_of_all),
        lambda: Stack(slope_of_late_layers),
        lambda: Stack(by_batch_size_in_evaluation),
        lambda: Stack(otherwise_in_evaluation),
        lambda: Stack(counts_in_evaluation),
        lambda: Stack(squeezes_late),
        lambda: Stack(with_a_stride, change=has_strides),
        lambda: Stack(drops),
        lambda: Stack(drops_by_layer),
        lambda: Stack(chunks),
    ],
)
def test_programs_are_those_without(make: Callable[[], nn.Module]) -> None:
    assert not isinstance(assert_as_without(make), str)


def every_other_time(block: Block, x: torch.Tensor) -> torch.Tensor:
    block.holder.value += block.index == 0
    return plain(block, x.relu() if block.holder.value % 2 else x)


def every_third_time(block: Block, x: torch.Tensor) -> torch.Tensor:
    block.holder.value += block.index == 0
    return plain(block, x.relu() if block.holder.value % 3 == 0 else x)


def once_a_last_layer_has_run(block: Block, x: torch.Tensor) -> torch.Tensor:
    block.holder.value += block.index == 3
    return plain(block, x.relu() if block.holder.value > 1 else x)


def says_its_size(block: Block, x: torch.Tensor) -> torch.Tensor:
    return plain(block, x) * float(f"{x.shape[0]}") if block.index == 2 else plain(block, x)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("layer", [every_third_time, every_other_time, once_a_last_layer_has_run, says_its_size])
def test_steps_that_are_unlike_are_refused(layer: Callable[..., Any]) -> None:
    assert "a second forward computes something else" in assert_as_without(lambda: Stack(layer))
