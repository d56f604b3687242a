"""Loops over the indices of what is true: all turns, with the loss and the gradients of eager, or refused with the
line."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from galvatron.errors import CaptureError
from galvatron.ir.capture import capture_graph
from galvatron.ir.interpreter import run_graph
from galvatron.ir.program import Program
from galvatron.passes import FRONT_END
from galvatron.passes.instrument import VerifyEach
from galvatron.passes.pipeline import Pipeline
from tests.ir.turning import (
    EQUAL,
    EXPERTS,
    REFUSED,
    WIDTH,
    Loop,
    Mixture,
    by_modules,
    where_all_is_kept,
    with_one_too_many,
)


def batch_of(size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(size)
    x, y = torch.randn(2, size, WIDTH, generator=generator, dtype=torch.float64)
    return {"x": x, "y": y}


def assert_equals(net: Mixture, program: Program, size: int) -> None:
    batch = batch_of(size)
    found = run_graph(program.required_graph, {**dict(net.named_parameters()), **batch}, batch=size)[program.output]
    expected = net(**batch)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    parameters = [parameter for name, parameter in net.named_parameters() if name in program.required_graph.values]
    given, wanted = (
        torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True) for loss in (found, expected)
    )
    torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("loop", EQUAL, ids=lambda loop: loop.__name__)
def test_all_turns_give_what_some_give(loop: Loop) -> None:
    net = Mixture(loop)
    with pytest.warns(UserWarning, match=rf"turning.py:\d+: `for .*each of the {EXPERTS} turns of this loop is taken"):
        program = capture_graph(net, batch_of(4)).program
    for size in (7, 3):
        assert_equals(net, program, size)


def zeros_told(loop: Loop) -> tuple[Program, list[str]]:
    """The program up to its layers, and the warnings that gradients may be zero."""
    with pytest.warns(UserWarning) as caught:
        program = Pipeline.of(FRONT_END).run(capture_graph(Mixture(loop), batch_of(4)).program, [VerifyEach()])
    return program, [str(one.message) for one in caught if "leaves the gradient None" in str(one.message)]


def test_parameters_of_single_turns_have_a_gradient_where_these_are_taken() -> None:
    """Those of each expert of a list; a table of all experts has a gradient in every step."""
    with pytest.warns(UserWarning, match="is taken"):
        program = capture_graph(Mixture(by_modules), batch_of(4)).program
    (reached,) = program.reached
    assert reached.states == tuple(f"experts.{i}.{what}" for i in range(EXPERTS) for what in ("weight", "bias"))
    net = Mixture(by_modules)
    for size in (1, 2):
        batch = batch_of(size)
        graph = program.required_graph
        taken = run_graph(graph, {**dict(net.named_parameters()), **batch}, batch=size)[reached.value].tolist()
        net.zero_grad()
        net(**batch).backward()
        assert taken == [expert.weight.grad is not None for expert in net.experts] and not all(taken)
    assert zeros_told(by_modules)[1] == [] and zeros_told(with_one_too_many)[0].reached == ()


def by_some_modules(net: Mixture, x: Tensor, masks: Tensor, hit: Tensor, weights: Tensor) -> Tensor:
    """The last expert has no module."""
    found = torch.zeros_like(x)
    for expert in hit.squeeze(-1):
        choice, token = torch.where(masks[expert])
        made = x[token] if expert == EXPERTS - 1 else net.experts[expert](x[token])
        found.index_add_(0, token, made * weights[token, choice, None])
    return found


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("loop", "count"), [(by_some_modules, EXPERTS - 1), (where_all_is_kept, EXPERTS)])
def test_parameters_of_which_no_step_knows_are_named(loop: Loop, count: int) -> None:
    """Turns that have fewer than others, and whether turns are taken where the loss itself depends on that."""
    program, told = zeros_told(loop)
    assert program.reached == () and len(told) == 1 and f"'experts.0.weight' and {2 * count - 1} more" in told[0]


def test_a_turn_that_no_step_may_take_is_checked() -> None:
    net = Mixture(with_one_too_many)
    with pytest.warns(UserWarning, match=rf"each of the {EXPERTS + 1} turns"):
        program = capture_graph(net, batch_of(4)).program
    assert_equals(net, program, 5)
    (check,) = program.checks
    assert check.says.endswith(f"IndexError: index {EXPERTS} is out of bounds for dimension 0 with size {EXPERTS}")


def test_no_sum_over_the_batch_is_left_that_says_nothing() -> None:
    """The loss asks for none; which parameters have a gradient does."""
    with pytest.warns(UserWarning, match="is taken"):
        program = capture_graph(Mixture(EQUAL[0]), batch_of(4)).program
    graph = replace(program.required_graph, outputs=(program.output,)).without_dead_ops()
    assert not any(op.name in ("gt", "greater") for op in graph.ops)


@pytest.mark.filterwarnings("ignore:.*is taken with all rows")
@pytest.mark.parametrize("loop", REFUSED, ids=lambda loop: loop.__name__)
def test_refused(loop: Loop) -> None:
    with pytest.raises(CaptureError, match=r"turning.py:\d+: `.*depends on the values of a tensor"):
        capture_graph(Mixture(loop), batch_of(4))
