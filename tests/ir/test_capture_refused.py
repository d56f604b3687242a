"""Models that cannot be captured, each refused at its line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from galvatron.errors import CaptureError
from galvatron.ir.capture import capture_graph
from tests.ir import asserting
from tests.ir.nets import Net, batch_of


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


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("forward", "line", "reason"),
    [
        (value_in_control_flow, "if x.sum() > 0:", "depends on the values of a tensor"),
        (value_as_size, "length = int(x.max().item())", "depends on the values of a tensor"),
        (fixed_by_view, "h = h.view(4, -1)", "fixes the batch size at 4"),
        (fixed_by_comparison, "if x.shape[0] == 4:", "fixes the batch size at 4"),
        (fixed_by_loop, "for i in range(x.shape[0]):", "fixes the batch size at 4"),
        (even_batches_only, "h = h.view(x.shape[0] // 2, 2, -1)", "works only for batch sizes that divide"),
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
    assert f"test_capture_refused.py:{number}: `{line}`: " in str(error.value)
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


def test_advice_about_a_line_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("galvatron.ir.capture.sources._is_of_library", lambda file: True)
    with pytest.raises(CaptureError, match="the line is in the library 'tests': choose an option of its configuration"):
        capture_graph(Net(value_in_control_flow), batch_of(4))
