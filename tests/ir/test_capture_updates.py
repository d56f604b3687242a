"""What forward writes into the model's own state is in the program, or refused with its line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules._functions import SyncBatchNorm

from galvatron.errors import CaptureError
from galvatron.ir.capture import capture_graph
from galvatron.ir.interpreter import run_graph
from galvatron.ir.program import Program
from galvatron.ir.text import parse_program, print_program
from galvatron.passes import FRONT_END
from galvatron.passes.instrument import VerifyEach
from galvatron.passes.pipeline import Pipeline


class Net(nn.Module):
    """Two matrices; `how` makes of the first one's output what the second one reads, and writes."""

    seen: torch.Tensor
    steps: torch.Tensor
    fresh: torch.Tensor

    def __init__(self, how: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.how = nn.Linear(4, 4), nn.Linear(4, 4), how
        self.slow = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.register_buffer("seen", torch.ones(4))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("fresh", torch.ones(4), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.how(self, self.first(x))).square().mean()


def captured(how: Callable[[Any, torch.Tensor], Any]) -> Program:
    return capture_graph(Net(how).double(), {"x": torch.zeros(6, 4, dtype=torch.float64)}).program


def in_place(net: Net, h: torch.Tensor) -> torch.Tensor:
    net.seen += h.detach().sum(0)
    return h + net.seen


def without_gradients(net: Net, h: torch.Tensor) -> torch.Tensor:
    before = net.seen.clone()
    with torch.no_grad():
        net.seen[1:].mul_(0.5)
        net.seen.add_(h.sum(0), alpha=0.1)
        net.steps += 1
    return h + net.seen - before


def assigned(net: Net, h: torch.Tensor) -> torch.Tensor:
    scaled = h * net.seen
    net.seen, net.steps = 0.5 * net.seen + h.detach().mean(0), net.steps + 2
    return scaled


def not_trained(net: Net, h: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        net.slow.mul_(0.5).add_(net.first.bias)
    return h + net.slow


def of_another_type(net: Net, h: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        net.steps.copy_(h.abs().sum() * 100)
        net.seen.copy_((h > 0).sum(0))
    return h


def of_no_lasting_state(net: Net, h: torch.Tensor) -> torch.Tensor:
    scaled = h * net.fresh
    net.fresh = net.fresh + 1
    return scaled


@pytest.mark.parametrize(
    ("how", "names"),
    [
        (in_place, ["seen"]),
        (without_gradients, ["seen", "steps"]),
        (assigned, ["seen", "steps"]),
        (not_trained, ["slow"]),
        (of_no_lasting_state, ["fresh"]),
        (of_another_type, ["seen", "steps"]),
    ],
)
def test_updates_are_what_forward_writes(how: Any, names: list[str]) -> None:
    """And gradients are those of eager, which sees no new value of state that was made without one."""
    net = Net(how).double()
    batch = {"x": torch.randn(6, 4, dtype=torch.float64)}
    program = capture_graph(net, batch).program
    assert [update.state for update in program.updates] == names
    assert parse_program(print_program(program)) == program
    state = {**dict(net.named_parameters()), **{name: buffer.clone() for name, buffer in net.named_buffers()}}
    state["slow"] = net.slow.clone()
    found = run_graph(program.required_graph, {**batch, **state}, batch=6)
    parameters = [p for p in net.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(found[program.output], parameters)
    loss = net(**batch)
    torch.testing.assert_close(found[program.output], loss)
    for gradient, wanted in zip(gradients, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(gradient, wanted)
    after = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for update in program.updates:
        torch.testing.assert_close(found[update.value], after[update.state])
    Pipeline.of(FRONT_END).run(program, [VerifyEach()])


def test_a_batch_norm_over_ranks_is_one_over_the_whole_batch() -> None:
    """On one device `SyncBatchNorm` is a batch norm; this is what it calls where there are several."""

    def how(net: Net, h: torch.Tensor) -> torch.Tensor:
        return SyncBatchNorm.apply(h, None, None, net.seen, net.fresh, 1e-5, 0.1, None, 2)

    program = captured(how)
    assert [update.state for update in program.updates] == ["seen", "fresh"]
    assert "_native_batch_norm_legit_functional" in print_program(program)


def test_whole_numbers_are_added_to() -> None:
    def how(net: Net, h: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            net.steps += (h > 0).sum()
        return h

    program = Pipeline.of(FRONT_END).run(captured(how))
    assert [(update.state, update.adds) for update in program.updates] == [("steps", True)]


def trained(net: Net, h: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        net.first.weight.clamp_(-1, 1)
    return h


def unseen(net: Net, h: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.instance_norm(h[:, :, None].expand(-1, -1, 3), net.seen, net.fresh)[..., 0]


def of_another_shape(net: Net, h: torch.Tensor) -> torch.Tensor:
    net.seen = h.detach().mean()
    return h


def with_samples(net: Net, h: torch.Tensor) -> torch.Tensor:
    net.seen = h.detach()
    return h


def other_each_time(net: Any, h: torch.Tensor) -> torch.Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    with torch.no_grad():
        net.seen.add_(net.calls)
    return h


def written_from_a_count(net: Any, h: torch.Tensor) -> torch.Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    net.seen = net.seen + net.calls
    return h


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (trained, r"`net.first.weight.clamp_\(-1, 1\)`: a tensor is changed in place inside torch.no_grad"),
        (unseen, r"torch.nn.functional.instance_norm.*: instance_norm changes running statistics in a way that torch"),
        (of_another_shape, r"assigns its own 'seen' .* not a tensor of the same shape and type \(\(4,\), float64\)"),
        (with_samples, r"assigns its own 'seen' .* not a tensor of the same shape and type \(\(4,\), float64\)"),
        (other_each_time, "assigns 'calls' in forward and reads it in the next step, which would be lost"),
        (written_from_a_count, "assigns 'seen', 'calls' in forward and reads it in the next step"),
    ],
)
def test_what_no_update_can_say_is_refused(how: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        captured(how)


def test_what_another_buffer_is_cannot_be_an_update() -> None:
    def how(net: Net, h: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            net.seen.copy_(net.slow)
        return h + net.seen

    with pytest.raises(Exception, match="writes 'slow' as it is into 'seen', which is not supported: read that in its"):
        Pipeline.of(FRONT_END).run(captured(how))


def test_a_model_keeps_its_own_buffers() -> None:
    net = Net(assigned)
    before = dict(net.named_buffers())
    capture_graph(net, {"x": torch.zeros(6, 4)})
    assert all(net.get_buffer(name) is buffer and not buffer.is_meta for name, buffer in before.items())
    assert net.seen.equal(torch.ones(4)) and net.steps == 0


def test_a_cache_is_no_update() -> None:
    def how(net: Net, h: torch.Tensor) -> torch.Tensor:
        net.fresh = torch.arange(4, dtype=h.dtype)
        return h + net.fresh

    assert captured(how).updates == ()
