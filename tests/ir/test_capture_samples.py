"""Which inputs hold samples, for which batch sizes a program holds, and numbers computed from the batch size."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._sympy.functions import Max, Min

from galvatron.batches import BatchReader
from galvatron.errors import CaptureError, PlanError
from galvatron.ir.capture import capture_graph
from galvatron.ir.capture.ranges import batch_sizes, is_range
from galvatron.ir.program import BatchSizes, Program
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.types import BATCH
from galvatron.passes.frontend.normalize import Normalize
from tests import models


class Net(nn.Module):
    """One matrix, then a function of its result and of the other inputs."""

    def __init__(self, then: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.then = nn.Linear(6, 6).double(), then

    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        return self.then(self.linear(x), **others)


def real(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def captured(then: Callable[..., Tensor], size: int = 8, **others: Any) -> Program:
    """The program of a net, after checking that it equals eager on the example and survives text."""
    net, batch = Net(then), {"x": real(size, 6), **others}
    found = capture_graph(net, batch)
    assert parse_program(print_program(found.program)) == found.program
    program = Normalize().run(found.program)
    assert program.graph is not None
    values = models.tensors_of(program, net, batch, found.constants)
    actual = models.loss_and_gradients(models.run(program.graph, values, size), net)
    models.assert_close(actual, models.loss_and_gradients(net(**batch), net), 1e-12)
    return found.program


LABELS = torch.arange(8) % 6
INPUTS: dict[str, tuple[Callable[..., Tensor], dict[str, Tensor], set[str]]] = {
    "labels": (lambda h, y: F.cross_entropy(h, y), {"y": LABELS}, {"y"}),
    "labels that are only looked up": (lambda h, y: h.gather(1, y[:, None]).mean(), {"y": LABELS}, {"y"}),
    "a table that is multiplied by": (lambda h, t: (h @ t).pow(2).mean(), {"t": real(6, 3)}, set()),
    "a table as long as the batch": (
        lambda h, t: F.embedding(h.argmax(-1), t).mul(h).mean(),
        {"t": real(8, 6)},
        set(),
    ),
    "keys that all samples see": (lambda h, k: (h @ k.t()).softmax(-1).amax(-1).mean(), {"k": real(8, 6)}, {"k"}),
    "a mask that is only counted": (lambda h, m: h.pow(2).sum() / m.sum(), {"m": real(8, 6) > 0}, {"m"}),
    "a mask that is looked up": (
        lambda h, m: (h * m[torch.arange(h.shape[0])[:, None], torch.arange(6)]).sum(),
        {"m": real(8, 6) > 0},
        {"m"},
    ),
    "positions of one row": (lambda h, p: (h + p).pow(2).mean(), {"p": real(1, 6)}, set()),
    "a scalar": (lambda h, n: h.sum() / n, {"n": torch.tensor(6)}, set()),
    "borders that are as many by chance": (
        lambda h, borders: h.pow(2).mean() * (borders[1:] - borders[:-1]).max(),
        {"borders": torch.arange(8)},
        set(),
    ),
    "what nobody reads": (lambda h, y: h.pow(2).mean(), {"y": real(8, 2)}, {"y"}),
    "a mask over samples": (lambda h, m: (h * m[:, None]).sum() / m.sum(), {"m": LABELS > 2}, {"m"}),
}


@pytest.mark.parametrize("name", INPUTS)
def test_samples_are_in_what_the_model_relates(name: str) -> None:
    then, others, batched = INPUTS[name]
    assert captured(then, 8, **others).batched == {"x"} | batched


def test_a_table_that_comes_first_is_no_batch() -> None:
    class TableFirst(Net):
        def forward(self, table: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]  # another order of inputs
            return (self.linear(x) @ table).pow(2).mean()

    batch = {"table": real(6, 3), "x": real(8, 6)}
    program = capture_graph(TableFirst(lambda h: h), batch).program
    assert program.batched == {"x"} and program.batch_size == 8


def test_the_user_has_the_last_word() -> None:
    net = Net(lambda h, c: h.pow(2).mean() + c.sum())
    batch = {"x": real(8, 6), "c": real(8)}
    assert capture_graph(net, batch).program.batched == {"x", "c"}
    assert capture_graph(net, batch, batch_dims={"c": None}).program.batched == {"x"}
    borders = Net(lambda h, c: h.pow(2).mean() + c.diff().sum())
    assert capture_graph(borders, batch).program.batched == {"x"}
    assert capture_graph(borders, batch, batch_dims={"c": 0}).program.batched == {"x", "c"}
    related = Net(lambda h, c: (h * c[:, None]).mean())
    with pytest.raises(CaptureError, match="fixes the batch size at 8"):
        capture_graph(related, batch, batch_dims={"c": None})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"z": 0}, "batch_dims names 'z', which is no tensor input"),
        ({"y": 1}, "samples are counted on dim 0"),
        ({"y": 0}, "is 0, but the input has no dimensions"),
    ],
)
def test_batch_dims_that_mean_nothing(said: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture_graph(Net(lambda h, y: h.mean() * y), {"x": real(8, 6), "y": real()}, batch_dims=said)


NUMBERS: dict[str, Callable[[Tensor], Any]] = {
    "size": lambda h: h.shape[0],
    "length": lambda h: len(h),
    "inverse": lambda h: 1.0 / h.shape[0],
    "half": lambda h: h.shape[0] / 2,
    "third": lambda h: 1 + h.shape[0] / 3,
    "root": lambda h: math.sqrt(h.shape[0]),
    "inverse root": lambda h: h.shape[0] ** -0.5,
    "square": lambda h: h.shape[0] ** 2,
    "tokens": lambda h: h.shape[0] * h.shape[1] - 1,
    "whole part": lambda h: h.shape[0] // 3,
    "rest": lambda h: h.shape[0] % 3,
    "limits": lambda h: max(h.shape[0], 3) + min(h.shape[0], 5),
    "tensor": lambda h: torch.tensor(h.shape[0]),
    "as tensor": lambda h: torch.as_tensor(len(h), dtype=h.dtype),
    "new tensor": lambda h: h.new_tensor(1 / h.shape[0]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_from_the_batch_size(name: str) -> None:
    captured(lambda h: (h * NUMBERS[name](h)).sum())


SIZES: dict[str, tuple[Callable[[int], bool], BatchSizes]] = {
    "large": (lambda n: n >= 64, BatchSizes(most=63)),
    "several": (lambda n: n > 3, BatchSizes(least=4)),
    "of elements": (lambda n: 6 * n > 100, BatchSizes(most=16)),
    "between": (lambda n: 4 < n <= 20, BatchSizes(5, 20)),
    "another": (lambda n: n == 5, BatchSizes(but=(5,))),
    "more than one": (lambda n: n > 1, BatchSizes(least=2)),
    "not one": (lambda n: n != 1, BatchSizes(least=2)),
    "at least one": (lambda n: n >= 1, BatchSizes()),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_branch_on_the_batch_size_limits_the_program(name: str) -> None:
    condition, sizes = SIZES[name]
    program = captured(lambda h: (h * 2 if condition(h.shape[0]) else h.relu()).sum())
    assert program.batch_sizes == sizes
    for size in range(1, 70):
        assert (size in sizes) == (condition(size) == condition(8))


def test_the_smaller_of_two_sizes_is_that_of_the_example() -> None:
    assert captured(lambda h: h[: min(6, 2 * h.shape[0] - 3)].sum()).batch_sizes == BatchSizes(least=6)
    with pytest.raises(CaptureError, match="another one for batches of more than 4 samples: give an example batch of"):
        captured(lambda h: h[: min(6, 2 * h.shape[0] - 3)].sum(), 3)


def test_one_sample_that_is_treated_unlike_others() -> None:
    with pytest.raises(CaptureError, match="a batch of one sample unlike others.*: give an example batch of at least"):
        captured(lambda h: (h * 2 if h.shape[0] > 1 else h.relu()).sum(), 1)


ALONE: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "expanded where there are several": (
        lambda h: (h + (h.mean(0, keepdim=True).expand(len(h), -1) if len(h) != 1 else h.mean(0, keepdim=True))).sum(),
        1,
    ),
    "a copy where its rows are apart": (lambda h: h[:, :3].contiguous().view(-1).square().sum(), 1),
    "divided by their number": (lambda h: (h / h.shape[0]).square().sum() * math.sqrt(len(h)), 1),
    "without the dimension of samples": (lambda h: h.squeeze()[0].square().sum() + h.sum(), 2),
    "without a dimension of them, which sums may be": (lambda h: h.squeeze().square().sum(), 2),
    "fewer than two pieces": (lambda h: torch.stack(h[:2].split(1)[:2]).square().sum() + h.sum(), 2),
    "an error of one sample": (lambda h: F.batch_norm(h, None, None, training=True).pow(3).sum(), 2),
}
"""How a single sample is treated, and for how many samples at least a program holds."""


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ALONE)
def test_a_single_sample_is_treated_as_others_are_or_left_out(name: str) -> None:
    then, least = ALONE[name]
    program = captured(then)
    assert program.batch_sizes.least == least
    reader = BatchReader(Net(then), {"x": real(8, 6)}, program)
    if least == 1:
        captured(then, 1)
        reader.read({"x": real(1, 6)})
    else:
        with pytest.raises(PlanError, match="a batch of 1 sample, which the model treats unlike several: leave it out"):
            reader.read({"x": real(1, 6)})
        with pytest.raises(CaptureError, match="the model treats a batch of one sample unlike others"):
            captured(then, 1)


def test_a_model_may_catch_the_error_of_a_module() -> None:
    class Broken(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            raise ValueError

    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.broken, self.last = nn.Linear(6, 6), nn.Sequential(Broken()), nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            try:
                h = self.broken(self.linear(x))
            except ValueError:
                h = self.linear(x)
            return self.last(h).sum()

    program = capture_graph(Careful(), {"x": torch.randn(4, 6)}).program
    assert program.graph is not None
    assert program.graph.ops[-2].source is not None
    assert program.graph.ops[-2].source.scope == "last"


@functools.lru_cache
def _sines(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.ones(shape[0], dtype=dtype)[:, None] * torch.arange(shape[1], dtype=dtype).sin()


def test_sizes_may_be_in_the_key_of_a_cache() -> None:
    for size in (8, 5):  # each trace computes it, and leaves nothing
        assert captured(lambda h: (h * _sines(h.shape, h.dtype)).square().sum(), size).batch_sizes == BatchSizes()
    assert isinstance(_sines(torch.Size((2, 6)), torch.float64).sum().item(), float)
    with pytest.raises(CaptureError, match="looked up in a dictionary"):
        captured(lambda h: (h * _sines(h.shape, h.dtype) * {8: 2.0}.get(h.shape[0], 1.0)).sum())


def test_inputs_that_share_a_size_which_is_fixed_hold_the_samples() -> None:
    def then(h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return (h @ (s + t).view(4, 6).T).square().sum()

    with pytest.raises(CaptureError, match=r"fixes the batch size at 4.*; or, if 'x' holds .*, batch_dims=\{'x': 0\}"):
        captured(then, s=real(4, 6), t=real(4, 6))
    batch = {"x": real(8, 6), "s": real(4, 6), "t": real(4, 6)}
    program = capture_graph(Net(then), batch, batch_dims={"x": 0}).program
    assert {value.name for value in program.inputs if BATCH in value.type.shape} == {"x"}


def test_a_loop_over_samples() -> None:
    with pytest.raises(
        CaptureError, match=r"test_capture_samples.*for row in h.*: a loop over the samples of the batch"
    ):
        captured(lambda h: torch.stack([row.sum() for row in h]).sum())


def test_batch_sizes_meet() -> None:
    assert BatchSizes(2, 63, (5,)) & BatchSizes(4, None, (2, 9)) == BatchSizes(4, 63, (5, 9))
    assert str(BatchSizes(4, 63, (5, 9))) == "from 4 to 63 but 5 but 9"


@pytest.mark.parametrize(
    ("condition", "least", "most"),
    [
        (sympy.Eq(Min(6, 2 * BATCH), 6), 3, None),
        (sympy.Eq(5, Max(5, BATCH)), 1, 5),
        (sympy.Ne(Min(6, 2 * BATCH), 6), 1, 2),
    ],
)
def test_the_larger_of_two_sizes_says_a_range(condition: sympy.Basic, least: int, most: int | None) -> None:
    found = batch_sizes([condition])
    assert is_range(condition) and (found.least, found.most) == (least, most)
