"""What forward does besides computing is kept or refused: it never gets lost in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from galvatron.errors import CaptureError
from galvatron.ir.capture import capture_graph
from galvatron.ir.program import Program


class Net(nn.Module):
    """Two linear layers; `how` makes of the first one's output what the second one reads."""

    def __init__(self, how: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.how = nn.Linear(8, 8), nn.Linear(8, 8), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.how(self, self.first(x))).square().mean()


def captured(how: Callable[[Any, torch.Tensor], Any]) -> Program:
    return capture_graph(Net(how), {"x": torch.zeros(4, 8)}).program


class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.clamp(-1, 1)


class Doubled(Clipped):
    """Of the form that `torch.vmap` takes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # without a context, which torch allows
        return x * 2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


clipped, doubled = Clipped.apply, Doubled.apply


@pytest.mark.parametrize(
    "how",
    [
        lambda net, h: Clipped.apply(h),
        lambda net, h: clipped(h),
        lambda net, h: doubled(h),
        lambda net, h: torch.vmap(doubled)(h),
    ],
)
def test_a_backward_of_its_own_is_refused_however_it_is_reached(how: Any) -> None:
    with pytest.raises(CaptureError, match=r"test_capture_effects.py:\d+: .* has a backward of its own, which"):
        captured(how)


def test_a_function_that_no_gradient_reaches_is_captured() -> None:
    def how(net: Net, h: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            scale = clipped(h.abs())
        return h * scale.mean()

    assert captured(how).graph is not None


@pytest.mark.parametrize(
    ("register", "who"),
    [
        (lambda net, hook: net.first.weight.register_hook(hook), "parameter 'first.weight'"),
        (lambda net, hook: net.first.bias.register_post_accumulate_grad_hook(hook), "parameter 'first.bias'"),
        (lambda net, hook: net.second.register_full_backward_hook(hook), "module 'second'"),
        (lambda net, hook: net.register_full_backward_pre_hook(hook), "the model"),
        (lambda net, hook: nn.modules.module.register_module_full_backward_hook(hook), "every module"),
    ],
)
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_a_hook_on_the_backward_is_refused_until_it_is_removed(register: Any, who: str, precision: Any) -> None:
    net = Net(lambda net, h: h)
    handle = register(net, lambda *_: None)
    try:
        with pytest.raises(CaptureError, match=f"{who} has a hook on its backward, which would be lost: remove it"):
            capture_graph(net, {"x": torch.zeros(4, 8)}, precision=precision)
    finally:
        handle.remove()
    assert capture_graph(net, {"x": torch.zeros(4, 8)}, precision=precision).program.graph is not None


def test_a_hook_on_the_forward_is_part_of_it() -> None:
    net = Net(lambda net, h: h)
    net.first.register_forward_hook(lambda module, args, output: output.tanh())
    graph = capture_graph(net, {"x": torch.zeros(4, 8)}).program.captured_graph
    assert "aten.tanh.default" in [op.target for op in graph.ops]
