"""What the caller has switched on in torch around the public functions changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron import offline

AROUND: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "device": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.a(x) + torch.arange(3.0), y)


def batch() -> dict[str, Tensor]:
    return {"x": torch.linspace(-1, 1, 48).view(8, 6), "y": torch.arange(8) % 3}


def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.mark.parametrize("name", AROUND)
def test_a_step_is_the_same(name: str) -> None:
    own, given = model(), batch()
    wanted = galvatron.compile(model(), given, plan="m2/dp1", optimizer=torch.optim.SGD)
    with AROUND[name]():
        compiled = galvatron.compile(own, given, plan="m2/dp1", optimizer=torch.optim.SGD)
        inside = compiled.train_step(given)
    assert inside == wanted.train_step(given)
    assert compiled.train_step(given) == wanted.train_step(given)
    assert all(torch.equal(t, wanted.full_state_dict()[n]) for n, t in compiled.full_state_dict().items())


@pytest.mark.parametrize("name", AROUND)
def test_plans_are_the_same(name: str) -> None:
    cluster, given, own = "a100-80g:1x2", batch(), model()
    program = galvatron.capture(own, given)
    found = galvatron.search(program, cluster)
    with AROUND[name]():
        assert galvatron.capture(own, given) == program
        assert galvatron.search(program, cluster) == found
        assert galvatron.estimate(program, found, cluster) == galvatron.estimate(program, found, cluster)
        inside = offline.emit(program, found, cluster)
    assert inside == offline.emit(program, found, cluster)


def test_a_model_that_stays_without_values_is_compiled_where_it_was_made() -> None:
    given = batch()
    with torch.device("meta"):
        compiled = galvatron.compile(Model(), given, plan="dp1", optimizer=torch.optim.SGD)
    assert compiled.train_step(given).isfinite()


def test_a_step_may_look_for_anomalies() -> None:
    compiled = galvatron.compile(model(), batch(), plan="dp1", optimizer=torch.optim.SGD)
    with torch.autograd.set_detect_anomaly(True):
        assert compiled.train_step(batch()).isfinite()


class Rows(Tensor):
    """A class of tensors that only has another name."""


def test_a_batch_may_have_a_name_of_its_own() -> None:
    given = batch()
    compiled = galvatron.compile(model(), given, plan="dp1")
    loss = compiled.eval_step({**given, "x": given["x"].as_subclass(Rows)})
    assert type(loss) is Tensor and loss == compiled.eval_step(given)
