"""Loops over the indices of what is true: all turns, with the loss and the gradients of eager, or refused with the
line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from galvatron.errors import CaptureError
from galvatron.ir.capture import capture_graph
from galvatron.ir.interpreter import run_graph
from tests.ir.turning import EQUAL, EXPERTS, REFUSED, WIDTH, Loop, Mixture


def batch_of(size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(size)
    x, y = torch.randn(2, size, WIDTH, generator=generator, dtype=torch.float64)
    return {"x": x, "y": y}


@pytest.mark.parametrize("loop", EQUAL, ids=lambda loop: loop.__name__)
def test_all_turns_give_what_some_give(loop: Loop) -> None:
    net = Mixture(loop)
    with pytest.warns(UserWarning, match=rf"turning.py:\d+: `for .*each of the {EXPERTS} turns of this loop is taken"):
        program = capture_graph(net, batch_of(4)).program
    for size in (7, 3):
        batch = batch_of(size)
        found = run_graph(program.required_graph, {**dict(net.named_parameters()), **batch}, batch=size)[program.output]
        parameters = [p for n, p in net.named_parameters() if n in program.required_graph.values]
        expected = net(**batch)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        options = {"allow_unused": True, "materialize_grads": True}
        given, wanted = (torch.autograd.grad(loss, parameters, **options) for loss in (found, expected))
        torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)


def test_no_sum_over_the_batch_is_left_that_says_nothing() -> None:
    with pytest.warns(UserWarning, match="is taken"):
        graph = capture_graph(Mixture(EQUAL[0]), batch_of(4)).program.required_graph
    assert not any(op.name in ("gt", "greater") for op in graph.ops)


@pytest.mark.filterwarnings("ignore:.*is taken with all rows")
@pytest.mark.parametrize("loop", REFUSED, ids=lambda loop: loop.__name__)
def test_refused(loop: Loop) -> None:
    with pytest.raises(CaptureError, match=r"turning.py:\d+: `.*depends on the values of a tensor"):
        capture_graph(Mixture(loop), batch_of(4))
