"""Python numbers of the batch that change from step to step: one program, equal to eager PyTorch for every value."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import galvatron
from galvatron import runtime as rt
from galvatron.batches import BatchReader
from galvatron.errors import CaptureError, PlanError, VerifyError
from galvatron.ir.capture import capture_graph
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.verify import verify
from tests.marks import some_slow
from tests.ranks import run_ranks

WIDTH, LENGTH = 8, 4
VALUES = [(0.7, 3), (2.5, 2), (1e-3, 0), (0.0, -1)]
"""Of temperature and power; some of which change the kind of the result if they are taken for another."""


class Annealed(nn.Module):
    """Attention with a temperature, whole numbers times both kinds of number, and a number in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(3))

    def forward(self, x: Tensor, rate: float = 0.5, power: int = 1) -> Tensor:
        for layer in self.layers:
            query, key, value = layer(x).chunk(3, dim=-1)
            attention = (query @ key.transpose(-1, -2) * (1 - rate) / math.sqrt(WIDTH)).softmax(-1)
            x = x + attention @ value + torch.arange(WIDTH) * rate / 100 + torch.arange(WIDTH) * power // 3
            x = torch.where(x > rate, x, x * rate**2) + x.clamp(min=rate) * (power // 2)
        return x


def loss_of(output: Tensor, batch: Any) -> Tensor:
    return F.mse_loss(output, torch.full_like(output, batch["rate"])) + batch["rate"]


def batch_of(size: int, rate: float, power: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    return {"x": x, "rate": rate, "power": power}


def model() -> Annealed:
    torch.manual_seed(0)
    return Annealed().double()


def train_on(world: rt.World, plan: str) -> list[float]:
    """The largest error of loss and gradients, relative to their norms, for each of the values."""
    compiled = galvatron.compile(
        model(), batch_of(8, 0.7, 3), loss_fn=loss_of, plan=plan, dynamic={"rate": True, "power": True}
    )
    errors = []
    for rate, power in VALUES:
        batch = batch_of(8, rate, power)
        eager = model()
        loss = loss_of(eager(**batch), batch)
        loss.backward()
        found = compiled.forward_backward(batch), *compiled.full_gradients().values()
        wanted = loss.detach(), *(p.grad for p in eager.parameters() if p.grad is not None)
        evaluated = compiled.eval_step(batch)
        pairs = [*zip(found, wanted, strict=True), (evaluated, loss.detach())]
        errors.append(max(float((a.cpu() - b).norm() / (b.norm() + 1e-12)) for a, b in pairs))
    return errors


FAST = [("m2/dp2",), ("pp2/m4/1f1b/dp1",)]
PLANS = ["dp1", "dp2", "m2/dp2", "tp2", "m2/tp2+sp", "pp2/m4/1f1b/dp1", "pp2/m2/gpipe/dp2-zero3", "ulysses2"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("plan",), some_slow(FAST, [(plan,) for plan in PLANS]))
def test_equals_eager_for_every_value(plan: str) -> None:
    world = 4 if "pp2" in plan and "dp2" in plan else 1 if plan == "dp1" else 2
    for errors in run_ranks(train_on, world, plan):
        assert max(errors) < 1e-9


REFUSED = {
    "branch": lambda h, rate, power: h.sum() if rate > 0.5 else h.mean(),
    "loop": lambda h, rate, power: sum(h.sum() * i for i in range(power)),
    "size": lambda h, rate, power: h[:, :power].sum(),
    "index": lambda h, rate, power: h[:, power].sum(),
    "plain": lambda h, rate, power: h.sum() * math.exp(rate),
    "larger": lambda h, rate, power: h.sum() * max(rate, 0.1),
}


class Net(nn.Module):
    def __init__(self, then: Any) -> None:
        super().__init__()
        self.linear, self.then = nn.Linear(WIDTH, WIDTH), then

    def forward(self, x: Tensor, rate: Any, power: int = 2) -> Tensor:
        return self.then(self.linear(x), rate, power)


def captured(then: Any, dynamic: Any, **others: Any) -> Any:
    batch = {"x": torch.randn(4, WIDTH), "rate": 0.5, "power": 2, **others}
    return capture_graph(Net(then), batch, dynamic=dynamic).program


@pytest.mark.parametrize("name", REFUSED)
def test_what_follows_from_a_number_other_than_values_is_refused(name: str) -> None:
    used = "power" if name in ("loop", "size", "index") else "rate"
    with pytest.raises(CaptureError, match=f"test_numbers.*lambda.*depends on '{used}', a number that changes"):
        captured(REFUSED[name], {"rate": True, "power": True})


@pytest.mark.parametrize(
    ("dynamic", "others", "message"),
    [
        ({"z": True}, {}, "dynamic names 'z', which is no input"),
        ({"rate": 1}, {}, "True says that a number, or the sizes of a tensor, may be others"),
        ({"rate": True}, {"rate": True}, "a truth value chooses what forward computes"),
        ({"power": True}, {"power": "2"}, "the example input is a str"),
        ({"rate": True}, {"rate": math.inf}, "no finite number"),
        ("rate", {}, "dynamic is True, or a mapping of input names"),
    ],
)
def test_what_cannot_change_is_refused(dynamic: Any, others: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        captured(lambda h, rate, power: h.sum() * rate, dynamic, **others)


def test_numbers_in_text() -> None:
    program = captured(lambda h, rate, power: (h * rate**0.5 - power // 2).sum(), {"rate": True, "power": True})
    verify(program)
    text = print_program(program)
    assert "\nnumber float.rate = 0.5\nnumber int.power = 2\n" in text
    assert "sqrt(float.rate)" in text and "floor(int.power/2)" in text
    assert parse_program(text) == program


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("number float.rate = 0.5\n", "", "given a number in float.rate, which means nothing here"),
        ("float.rate)", "float.other)", "given a number in float.other, which means nothing here"),
        ("float.rate)", "int.rate)", "given a number in int.rate, which means nothing here"),
        ("= 0.5", "= 1", "is no finite float"),
        ("= 0.5", "= inf", "is no finite float"),
        ("f32[B, 8]", "f32[float.rate, 8]", "float.rate is no size of a batch"),
        ("index=1)", "index=int.power)", "given a number in int.power, which means nothing here"),
        ("number int.power = 2", "number float.rate = 0.5", "stands for several"),
    ],
)
def test_a_file_with_a_strange_number_is_refused(before: str, after: str, rule: str) -> None:
    program = captured(lambda h, rate, power: (h[:, 1] * rate).sum() * power, {"rate": True, "power": True})
    text = print_program(program)
    assert before in text
    with pytest.raises(VerifyError, match=rule):
        verify(parse_program(text.replace(before, after, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 1}, "'rate' is 1, but the program was captured with a finite float"),
        ({"rate": True}, "'rate' is True, but"),
        ({"rate": math.nan}, "'rate' is nan, but"),
        ({"rate": torch.tensor(0.5)}, "'rate' is a Tensor, but"),
        ({"power": 3}, r"compile again for the other value, or with dynamic=\{'power': True\} for all values"),
    ],
)
def test_a_batch_with_another_number(change: dict[str, Any], message: str) -> None:
    net, batch = Net(lambda h, rate, power: h.sum() * rate), {"x": torch.randn(4, WIDTH), "rate": 0.5, "power": 2}
    reader = BatchReader(net, batch, capture_graph(net, batch, dynamic={"rate": True}).program)
    assert reader.read(batch | {"rate": -3.0})["rate"] == -3.0
    with pytest.raises(PlanError, match=message):
        reader.read(batch | change)
    with pytest.raises(PlanError, match="no input 'rate'"):
        reader.read({"x": batch["x"]})
