"""What forward does besides computing is kept or refused: it never gets lost in silence."""

from __future__ import annotations

import collections
import contextlib
import itertools
import random
import time
import types
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from galvatron.errors import CaptureError
from galvatron.ir.capture import capture_graph
from galvatron.ir.program import Program
from tests.ir import asserting


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
    ("how", "name"),
    [
        (lambda net, h: Clipped.apply(h), "Clipped"),
        (lambda net, h: clipped(h), "Clipped"),
        (lambda net, h: doubled(h), "Doubled"),
    ],
)
def test_a_backward_of_its_own_is_captured_however_it_is_reached(how: Any, name: str) -> None:
    program = captured(how)
    (function,) = program.functions
    assert function.name == name
    assert [op.target for op in function.backward.ops] == ["aten.clamp.default"]
    (call,) = (op for op in program.required_graph.ops if op.function)
    assert call.source is not None and call.source.file.endswith("test_capture_effects.py")


def test_equal_calls_share_a_function() -> None:
    def how(net: Net, h: torch.Tensor) -> torch.Tensor:
        h = Clipped.apply(Clipped.apply(h))  # type: ignore[assignment]  # apply says nothing of what it returns
        return torch.cat([Clipped.apply(h[:, :3]), h[:, 3:]], -1)  # type: ignore[list-item]  # the same

    program = captured(how)
    assert [function.name for function in program.functions] == ["Clipped", "Clipped_1"]
    called = [op.target for op in program.required_graph.ops if op.function]
    assert called == ["function.Clipped", "function.Clipped", "function.Clipped_1"]


def test_a_function_reads_what_is_around_it_without_a_gradient() -> None:
    """As PyTorch: what is no argument of `apply` has none."""

    def how(net: Net, h: torch.Tensor) -> torch.Tensor:
        class Around(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                return x * net.second.bias

            @staticmethod
            def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
                return gradient * net.second.bias.exp()

        return Around.apply(h)  # type: ignore[return-value]  # apply says nothing of what it returns

    (function,) = captured(how).functions
    assert [v.name for v in function.forward.inputs] == ["x", "outside", "outside_1"]
    assert function.differentiated == (0,)


def test_a_mapped_function_with_a_backward_of_its_own_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"test_capture_effects.py:\d+: .* has a backward of its own, which"):
        captured(_mapped_function)


def _mapped_function(net: Any, h: torch.Tensor) -> torch.Tensor:
    return torch.vmap(doubled)(h)


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
    graph = capture_graph(net, {"x": torch.zeros(4, 8)}).program.required_graph
    assert "aten.tanh.default" in [op.target for op in graph.ops]


def _frozen_for_a_while(net: Any, h: torch.Tensor) -> torch.Tensor:
    net.second.requires_grad_(False)
    fooled = net.second(h)
    net.second.requires_grad_(True)
    return fooled


def _frozen_by_attribute(net: Any, h: torch.Tensor) -> torch.Tensor:
    net.second.weight.requires_grad = False
    return h


def _cut_off_in_place(net: Any, h: torch.Tensor) -> torch.Tensor:
    return h.clone().detach_()


@pytest.mark.parametrize("how", [_frozen_for_a_while, _frozen_by_attribute, _cut_off_in_place])
def test_what_is_frozen_in_forward_is_refused(how: Any) -> None:
    net = Net(how)
    with pytest.raises(CaptureError, match=r"test_capture_effects.py:\d+: `.*a tensor is frozen or cut off in place"):
        capture_graph(net, {"x": torch.zeros(4, 8)})
    assert all(parameter.requires_grad for parameter in net.parameters())


def _unfrozen(net: Any, h: torch.Tensor) -> torch.Tensor:
    net.second.bias.requires_grad = True
    return h


def test_what_is_unfrozen_in_forward_is_refused() -> None:
    net = Net(_unfrozen)
    net.second.bias.requires_grad_(False)
    with pytest.raises(CaptureError, match="a tensor is unfrozen in forward"):
        capture_graph(net, {"x": torch.zeros(4, 8)})


def _with_detached_parameters(net: Any, h: torch.Tensor) -> torch.Tensor:
    detached = {name: parameter.detach() for name, parameter in net.second.named_parameters()}
    return h + torch.func.functional_call(net.second, detached, (h,))


def _activation_requires_a_gradient(net: Any, h: torch.Tensor) -> torch.Tensor:
    return h + torch.ones(8).requires_grad_() * h.detach().requires_grad_(True)


def _written_before_it_has_a_gradient(net: Any, h: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(8, 8)
    with torch.no_grad():
        mask[:, 0] = 1
    mask[0] = mask[0] * 2
    return h @ mask


def _written_with_a_gradient(net: Any, h: torch.Tensor) -> torch.Tensor:
    parts = torch.zeros_like(h)
    parts[:, 0] = h[:, 1]
    parts[:, 2:].mul_(2)
    return parts


@pytest.mark.parametrize(
    "how",
    [
        _with_detached_parameters,
        _activation_requires_a_gradient,
        _written_before_it_has_a_gradient,
        _written_with_a_gradient,
    ],
)
def test_what_autograd_sees_is_captured(how: Any) -> None:
    assert captured(how).graph is not None


def _slice_written(net: Any, h: torch.Tensor) -> torch.Tensor:
    k = h * 1
    with torch.no_grad():
        k[:, 0] = 0
    return k


def _view_written(net: Any, h: torch.Tensor) -> torch.Tensor:
    k = h * 1
    with torch.no_grad():
        torch.flatten(k)[:3].mul_(2)
    return k


def _written_through_detach(net: Any, h: torch.Tensor) -> torch.Tensor:
    k = h * 1
    k.detach().clamp_(max=0.5)
    return k


def _written_through_data(net: Any, h: torch.Tensor) -> torch.Tensor:
    k = h * 1
    k.data[0] = 0.5
    return k


@pytest.mark.parametrize("how", [_slice_written, _view_written, _written_through_detach, _written_through_data])
def test_a_write_that_autograd_does_not_see_is_refused(how: Any) -> None:
    with pytest.raises(CaptureError, match=r"test_capture_effects.py:\d+: `.*a tensor is changed in place (ins|thr)"):
        captured(how)


def _data_set(net: Any, h: torch.Tensor) -> torch.Tensor:
    h.data = h.detach() * 2
    return h


def _hook_on_a_function(net: Any, h: torch.Tensor) -> torch.Tensor:
    h.grad_fn.register_prehook(lambda gradients: gradients)  # type: ignore[union-attr]  # it has one
    return h


def _gradient_read(net: Any, h: torch.Tensor) -> torch.Tensor:
    return h if net.first.weight.grad is None else h * 2


def _gradient_read_on_one_side(net: Any, h: torch.Tensor) -> torch.Tensor:
    if (h > 0).all():
        h = torch.clamp(h, -1.0, net.first.weight.grad)
    return h


@pytest.mark.parametrize(
    ("how", "what"),
    [
        (_data_set, "data of a tensor is set"),
        (_hook_on_a_function, "grad_fn of"),
        (_gradient_read, "grad of"),
        (_gradient_read_on_one_side, "grad of"),
    ],
)
def test_ways_around_autograd_are_refused(how: Any, what: str) -> None:
    with pytest.raises(CaptureError, match=rf"test_capture_effects.py:\d+: `.*the \.{what}"):
        captured(how)


def test_hooks_on_saved_tensors_are_refused() -> None:
    def how(net: Any, h: torch.Tensor) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.bfloat16(), lambda t: t.float()):
            return h.exp()

    with pytest.raises(CaptureError, match=r"test_capture_effects.py:\d+: `.*hooks on saved tensors would be lost"):
        captured(how)


def test_hooks_that_keep_saved_tensors_as_they_are_do_not_matter() -> None:
    def how(net: Any, h: torch.Tensor) -> torch.Tensor:
        with torch.autograd.graph.save_on_cpu():
            h = h.exp()
        return checkpoint(torch.tanh, h, use_reentrant=False)

    assert captured(how).graph is not None


def _one_side_computes(net: Any, h: torch.Tensor) -> torch.Tensor:
    if h.abs().max() > 1e-3:
        print("large")
    else:
        h = h * 100
    return h


def _other_side_reports(net: Any, h: torch.Tensor) -> torch.Tensor:
    if h.sum() > 1e9:
        h = h * 2
    else:
        print(end="")
    return h


def _report_that_writes(net: Any, h: torch.Tensor) -> torch.Tensor:
    if h.sum() > 0:
        print(h.mul_(2))
    return h


@pytest.mark.parametrize(
    "how",
    [
        _one_side_computes,
        _other_side_reports,
        _report_that_writes,
        asserting.condition_inside_of_an_assert,
        asserting.assignment_that_may_be_left_out,
        asserting.choice_on_the_line_of_a_check,
        asserting.choice_as_a_message,
    ],
)
def test_a_condition_that_decides_what_is_computed_is_no_check(how: Any) -> None:
    with pytest.raises(CaptureError, match=r"control flow or a size depends on the values"):
        captured(how)


def _reports(net: Any, h: torch.Tensor) -> torch.Tensor:
    if h.abs().max() > 1e-3:
        print("large", h.max().item())
    return h


def _reports_and_raises(net: Any, h: torch.Tensor) -> torch.Tensor:
    if h.isfinite().all():
        h = h * 2
    else:
        print("not finite")
        raise ValueError("not finite")
    return h


def test_what_only_reports_is_left_out() -> None:
    with pytest.warns(UserWarning, match="this check of values is no part of the program"):
        assert not captured(_reports).checks


@pytest.mark.parametrize("how", [_reports_and_raises, asserting.assigns_in_a_check])
def test_what_raises_is_a_check(how: Any) -> None:
    assert len(captured(how).checks) == 1


class Counts:
    """A callable whose result changes from call to call."""

    def __init__(self) -> None:
        self.numbers, self.held, self.space = itertools.count(1), collections.deque([1]), types.SimpleNamespace(n=0)
        self.nested, self.generator, self.total = [[0]], numpy.random.default_rng(0), torch.zeros(())

    def iterator(self) -> float:
        return next(self.numbers) / 5

    def container(self) -> float:
        self.held.append(1)
        return len(self.held) / 5

    def namespace(self) -> float:
        self.space.n += 1
        return self.space.n / 5

    def list_in_a_list(self) -> float:
        self.nested[0][0] += 1
        return self.nested[0][0] / 5

    def generator_of_its_own(self) -> float:
        return float(self.generator.random())

    def numbers_of_numpy(self) -> torch.Tensor:
        return torch.from_numpy(self.generator.random(8)).float()

    def clock(self) -> float:
        return time.time_ns() % 1e9


@pytest.mark.parametrize("kind", [name for name in vars(Counts) if not name.startswith("_")])
@pytest.mark.parametrize("where", ["model", "loss"])
def test_what_changes_from_step_to_step_is_refused(kind: str, where: str) -> None:
    changing = getattr(Counts(), kind)
    net = Net(lambda net, h: h * (changing() if where == "model" else 1))
    with pytest.raises(CaptureError, match=r"test_capture_effects.py:\d+: `.*a second forward computes something else"):
        capture_graph(
            net, {"x": torch.zeros(4, 8)}, loss_fn=lambda out, _: (out * (changing() if where == "loss" else 1)).sum()
        )


def _layer_left_out(net: Any, h: torch.Tensor) -> torch.Tensor:
    return h if random.random() < 0.0 else net.second(h)


def _jitter(net: Any, h: torch.Tensor) -> torch.Tensor:
    return h * numpy.random.rand()


@pytest.mark.parametrize("how", [_layer_left_out, _jitter])
def test_random_numbers_of_others_are_refused(how: Any) -> None:
    with pytest.raises(CaptureError, match=r"test_capture_effects.py:\d+: `.*drawn from the generator of Python"):
        captured(how)


def _seeded(net: Any, h: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(1)
    return h + torch.randn(8)


def _set_back(net: Any, h: torch.Tensor) -> torch.Tensor:
    with torch.random.fork_rng():
        return h + torch.randn(8)


def _seeded_from_a_name_of_its_own(net: Any, h: torch.Tensor) -> torch.Tensor:
    seed(3)
    return h + torch.randn(8)


seed = torch.manual_seed


@pytest.mark.parametrize("how", [_seeded, _set_back, _seeded_from_a_name_of_its_own])
def test_seeds_in_forward_are_refused(how: Any) -> None:
    net, state = Net(how), torch.get_rng_state()
    with pytest.raises(CaptureError, match=r"test_capture_effects.py:\d+: `.*are seeded or set back in forward"):
        capture_graph(net, {"x": torch.zeros(4, 8)})
    assert torch.equal(torch.get_rng_state(), state)


def _made_once(net: Any, h: torch.Tensor) -> torch.Tensor:
    if not hasattr(net, "table"):
        net.table = torch.arange(8.0).square()
        net.table[0] = 1
    return F.dropout(h * net.table, 0.1)


def _constants_made_each_time(net: Any, h: torch.Tensor) -> torch.Tensor:
    ramp = torch.from_numpy(numpy.arange(8, dtype=numpy.float32))
    mask = torch.tensor([True, False] * 4) & (torch.arange(8) > 2)
    return torch.where(mask, h * ramp, float("nan")).nan_to_num()


def _mapped(net: Any, h: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scale = torch.vmap(lambda row: row.abs().max())(h)
    with torch.autocast("cpu", torch.bfloat16):
        h = net.second(h)
    return checkpoint(torch.tanh, h, use_reentrant=False) * scale[:, None]


@pytest.mark.parametrize("how", [_made_once, _constants_made_each_time, _mapped])
def test_what_a_second_forward_computes_alike_is_captured(how: Any) -> None:
    assert captured(how).graph is not None


@pytest.mark.parametrize(
    "how",
    [
        lambda net, h: h * len(str(h.shape[0])),
        lambda net, h: h * {"4": 2.0}.get(f"{h.shape[0]}", 1.0),
        lambda net, h: h * {"torch.Size([4, 8])": 2.0}.get(repr(h.shape), 1.0),
    ],
)
def test_a_batch_size_as_text_decides_nothing(how: Any) -> None:
    with pytest.raises(CaptureError, match=r"test_capture_effects.py:\d+: `.*the batch size as text"):
        captured(how)


def test_a_batch_size_as_text_may_be_said() -> None:
    said = []
    assert captured(lambda net, h: (said.append(f"{h.shape[0]} samples"), h)[1]).graph is not None
    assert said[0] == "4 samples"


def _branch_in_a_try(net: Any, h: torch.Tensor) -> torch.Tensor:
    with contextlib.suppress(Exception):
        if h.sum() < 1e9:
            h = h * 2
    return h


def _mapped_in_a_try(net: Any, h: torch.Tensor) -> torch.Tensor:
    with contextlib.suppress(Exception):
        h = _mapped_function(net, h)
    return h


@pytest.mark.parametrize(
    ("how", "reason"),
    [(_branch_in_a_try, "control flow or a size depends on"), (_mapped_in_a_try, "has a backward of its own")],
)
def test_what_is_refused_is_refused_where_forward_catches_it(how: Any, reason: str) -> None:
    with pytest.raises(CaptureError, match=rf"test_capture_effects.py:\d+: `.*{reason}"):
        captured(how)
