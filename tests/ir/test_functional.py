"""A graph whose writes nobody sees is made functional in place, and is what torch makes of it by tracing it again."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn
from torch.export import ExportedProgram

from galvatron.errors import CaptureError
from galvatron.ir.capture import Captured, capture_graph, export
from tests import models
from tests.ir import writing


class Net(nn.Module):
    """A function of what a linear layer gives."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(8, 8), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x)).square().mean()


def seen_otherwise(x: Tensor) -> Tensor:
    parts = x.reshape(x.shape[0], 2, 4).transpose(1, 2).contiguous().flatten(1).chunk(4, 1)
    return torch.cat(parts[::-1], 1).view_as(x)


def converted(x: Tensor) -> Tensor:
    return x.to(torch.float64).to(torch.float64).float() + x.to(x.dtype).double().type_as(x)


def dropped(x: Tensor) -> Tensor:
    return nn.functional.dropout(x, 0.5) + nn.functional.dropout(x, 0.0)


def split(x: Tensor) -> Tensor:
    first, second, _ = torch.tensor_split(x, 3, dim=1)
    return first @ second.mT.narrow(0, 0, second.shape[1])


def of_each_other(x: Tensor) -> Tensor:
    return x.reshape(-1).reshape(x.shape).reshape(x.shape[0] * 2, 4).to(torch.float64)


def written_unseen(x: Tensor) -> Tensor:
    top = x.topk(3, 1)[0].mul_(2)
    return top.div_(top.sum(1, keepdim=True)).masked_fill_(top > 0.5, 1)


def written_in_its_own_type(x: Tensor) -> Tensor:
    return x.clone().add_(x.double()) + x


def with_constants(x: Tensor) -> Tensor:
    return x.masked_fill(x > 0, torch.tensor(2.0)).clone().masked_fill_(x < 0, torch.tensor(0.0))


def raised_in_place(x: Tensor) -> Tensor:
    return x.clone().pow_(2)  # `pow_.Scalar` raises a tensor, `pow.Scalar` a number


def dropped_in_place(x: Tensor) -> Tensor:
    return nn.functional.dropout(x.clone(), 0.5, inplace=True)


def written_and_seen(x: Tensor) -> Tensor:
    seen = x.clone()
    seen[:, 0].mul_(2)
    return seen


def written_into_what_was_seen(x: Tensor) -> Tensor:
    whole = x * 2
    part = whole[:, :4]
    whole.add_(1)
    return part


def with_a_form_of_its_own(x: Tensor) -> Tensor:
    return nn.functional.hardshrink(x)


IN_PLACE = [
    seen_otherwise,
    converted,
    dropped,
    split,
    of_each_other,
    written_unseen,
    written_in_its_own_type,
    with_constants,
]
BY_TORCH = [raised_in_place, dropped_in_place, written_and_seen, written_into_what_was_seen, with_a_form_of_its_own]


def by_torch(exported: ExportedProgram) -> ExportedProgram:
    return exported.run_decompositions({})


def both(capture: Callable[[], Captured]) -> tuple[Captured, Captured, bool]:
    """What is captured as it is and by torch's own way, and whether the first asked torch, too."""
    traced_again = mock.Mock(wraps=ExportedProgram.run_decompositions)
    with mock.patch.object(ExportedProgram, "run_decompositions", lambda *args: traced_again(*args)):
        found = capture()
    with mock.patch.object(export, "functional", by_torch):
        return found, capture(), traced_again.called


@pytest.mark.parametrize("function", [*IN_PLACE, *BY_TORCH])
def test_it_is_what_torch_makes_of_it(function: Callable[[Tensor], Tensor]) -> None:
    net, batch = Net(function), {"x": torch.randn(4, 8)}
    found, wanted, asks_torch = both(lambda: capture_graph(net, batch))
    assert found.program == wanted.program and str(found.program) == str(wanted.program)
    assert asks_torch == (function in BY_TORCH)


def test_what_is_written_into_a_view_that_nobody_else_reads() -> None:
    """Torch looks at the whole once more after each write, and at the view again."""

    def scaled(x: Tensor) -> Tensor:
        turned = x.clone().mT
        return turned.mul_(2).add_(1)

    net, batch = Net(scaled).double(), {"x": torch.randn(4, 8, dtype=torch.float64)}
    found, by_torch, asks_torch = both(lambda: capture_graph(net, batch))
    targets = [op.target for op in found.program.required_graph.ops]
    assert not asks_torch and targets.count("aten.transpose.int") == 1
    assert len(targets) < len(by_torch.program.required_graph.ops)
    loss = models.run(found.program.required_graph, models.tensors_of(found.program, net, batch, found.constants), 4)
    assert torch.equal(loss, net(**batch))


def check_writing(net: writing.Writing) -> None:
    """A random function, of more samples than it was captured with, unless autograd or capture refuses it."""
    batch = {"x": torch.randn(7, 6, dtype=torch.float64)}
    try:
        wanted = models.loss_and_gradients(net(**batch), net)
        captured = capture_graph(net, {"x": torch.randn(4, 6, dtype=torch.float64)})
    except (RuntimeError, CaptureError):
        assume(False)
    tensors = models.tensors_of(captured.program, net, batch, captured.constants)
    loss = models.run(captured.program.required_graph, tensors, 7)
    models.assert_close(models.loss_and_gradients(loss, net), wanted, 1e-12)


@given(writing.models)
@settings(max_examples=10, deadline=None)
def test_what_is_written_into_tensors_that_are_looked_at_in_several_ways(net: writing.Writing) -> None:
    check_writing(net)


@pytest.mark.slow
@given(writing.models)
@settings(max_examples=400, deadline=None)
def test_many_functions_that_write(net: writing.Writing) -> None:
    check_writing(net)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(models.FAMILIES.keys() - {"mixtral", "deberta"}))
def test_families(name: str) -> None:
    """The two others write into views."""
    case = models.hugging_face(name)
    found, wanted, _ = both(lambda: models.captured(None, case.model, case.batch))
    assert found.program == wanted.program and str(found.program) == str(wanted.program)
