"""`galvatron check --run`: what the program computes of the example batch, beside what the model does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from typer.testing import CliRunner

from galvatron.checking.examine import check
from galvatron.checking.found import Run
from galvatron.checking.report import Report
from galvatron.cli import app
from galvatron.errors import GalvatronError


class Net(nn.Module):
    """A linear layer, a batch norm, a list that forward writes into, and what a function makes of it all."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.norm, self.seen, self.function = nn.Linear(8, 8), nn.BatchNorm1d(8), [], function

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(1)
        return self.function(self, self.norm(self.linear(x))).square().mean()


def same(net: Net, h: Tensor) -> Tensor:
    return h


def unlike_traced(net: Net, h: Tensor) -> Tensor:
    return h if isinstance(h, FakeTensor) else 2 * h


def gradient_unlike_traced(net: Net, h: Tensor) -> Tensor:
    return h if isinstance(h, FakeTensor) else h.detach() - h + h.detach()


def written_unlike_traced(net: Net, h: Tensor) -> Tensor:
    if not isinstance(h, FakeTensor):
        net.norm.get_buffer("num_batches_tracked").add_(1)
    return h


def infinite_in_eager(net: Net, h: Tensor) -> Tensor:
    return h if isinstance(h, FakeTensor) else h / 0


def drops(net: Net, h: Tensor) -> Tensor:
    return nn.functional.dropout(h, 0.5)


def fails_in_eager(net: Net, h: Tensor) -> Tensor:
    if not isinstance(h, FakeTensor):
        raise ValueError("not a batch for me")
    return h


def reported(function: Callable[[Net, Tensor], Tensor], dtype: torch.dtype = torch.float64) -> Report:
    torch.manual_seed(0)
    return check(Net(function).to(dtype), {"x": torch.randn(4, 8).to(dtype)}, devices=2, run=True)


def compared(function: Callable[[Net, Tensor], Tensor], dtype: torch.dtype = torch.float64) -> Run:
    found = reported(function, dtype).run
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal(dtype: torch.dtype) -> None:
    report = reported(same, dtype)
    assert report.run is not None and not report.differs and report.captured
    assert report.run.compared == 1 + 4 + 3, "the loss, the gradients, and the state of the norm"
    assert "equal to eager" in str(report)


@pytest.mark.parametrize(
    ("function", "where"),
    [
        (unlike_traced, "loss"),
        (gradient_unlike_traced, "the gradient of"),
        (written_unlike_traced, "what 'norm.num_batches_tracked' becomes"),
        (infinite_in_eager, "loss"),
    ],
)
def test_what_is_captured_wrong_is_seen(function: Any, where: str) -> None:
    report = reported(function)
    assert report.captured and report.differs and report.run is not None
    assert where in report.run.where and "WRONG" in str(report).replace("\n", " ")
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["differs"] is True


@pytest.mark.parametrize(("function", "why"), [(drops, "random"), (fails_in_eager, "ValueError: not a batch for me")])
def test_what_cannot_be_compared(function: Any, why: str) -> None:
    found = compared(function)
    assert why in found.skipped and not found.differs and not found.compared
    assert why in " ".join(str(reported(function)).split())


def test_model_gradients_and_random_numbers_stay_as_they_were() -> None:
    net, batch = Net(written_unlike_traced).double(), {"x": torch.randn(4, 8, dtype=torch.float64)}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    check(net, batch, devices=2, run=True)
    assert torch.equal(state, torch.get_rng_state()) and net.seen == []
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("what", ["parameter", "buffer", "example input"])
def test_nothing_runs_without_values(what: str) -> None:
    net, x = Net(same), torch.randn(4, 8)
    if what == "parameter":
        net.linear.to("meta")
    elif what == "buffer":
        net.norm._buffers["running_mean"] = torch.zeros(8, device="meta")
    else:
        x = x.to("meta")
    with pytest.raises(GalvatronError, match=f"run: {what}"):
        check(net, {"x": x}, run=True)


def test_nothing_runs_under_a_precision() -> None:
    with pytest.raises(GalvatronError, match="run: .* bf16"):
        check(Net(same), {"x": torch.randn(4, 8)}, run=True, precision="bf16")


class Rated(nn.Module):
    """Its loss is scaled by a number; its sequences may be of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, rate: float) -> dict[str, Tensor]:
        h = self.linear(x)
        return {"loss": h.square().mean() * rate, "hidden": h}


def test_what_changes_from_step_to_step_is_told() -> None:
    batch = {"x": torch.randn(4, 6, 8), "rate": 0.5}
    report = check(Rated(), batch, dynamic={"x": True, "rate": True}, outputs=["hidden"], devices=2, run=True)
    assert report.run is not None and report.run.compared == 3 and not report.differs
    assert report.found is not None
    assert report.found.samples.lengths == ("S (x dim 1) from 2",)
    assert "sizes that may change: S (x dim 1) from 2" in str(report)


MODEL = """
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor


class Model(nn.Module):
    def __init__(self, asks):
        super().__init__()
        self.linear, self.asks = nn.Linear(8, 8), asks

    def forward(self, x):
        y = self.linear(x)
        if y.isnan().any():
            raise ValueError("no number")
        return y.square().mean() if self.asks and isinstance(y, FakeTensor) else y.abs().mean()


def good():
    return Model(False), {"x": torch.randn(4, 8)}


def bad():
    return Model(True), {"x": torch.randn(4, 8)}


class Returns(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, rate):
        h = self.linear(x)
        return {"loss": h.square().mean() * rate, "hidden": h}


def returns():
    return Returns(), {"x": torch.randn(4, 6, 8), "rate": 0.5}
"""


@pytest.mark.parametrize(("name", "code"), [("good", 0), ("bad", 1)])
def test_command(name: str, code: int, tmp_path: Path) -> None:
    path = tmp_path / "run_model.py"
    path.write_text(MODEL)
    words = ["check", f"{path}:{name}", "--devices", "1", "--run"]
    document = CliRunner().invoke(app, [*words, "--json"])
    assert document.exit_code == code, document.output
    found = json.loads(document.stdout)
    assert found["captured"] and found["differs"] is (code == 1) and not found["warnings"]
    without = json.loads(CliRunner().invoke(app, [*words, "--json", "--no-checks"]).stdout)
    assert without["differs"] is (code == 1) and len(without["warnings"]) == 1


@pytest.mark.parametrize(("words", "kept"), [([], True), (["--no-checks"], False)])
@pytest.mark.filterwarnings("ignore:.*left out")
def test_capture_without_checks(words: list[str], kept: bool, tmp_path: Path) -> None:
    path = tmp_path / "run_model.py"
    path.write_text(MODEL)
    found = CliRunner().invoke(app, ["capture", f"{path}:good", *words])
    assert found.exit_code == 0 and ("ValueError: no number" in found.stdout) is kept


def test_commands_are_told_what_changes_and_what_is_given(tmp_path: Path) -> None:
    path = tmp_path / "run_model.py"
    path.write_text(MODEL)
    words = [f"{path}:returns", "--dynamic", "x", "--dynamic", "rate", "--outputs", "hidden"]
    program = CliRunner().invoke(app, ["capture", *words]).stdout
    assert "\nlength S = 6 from 2\n" in program and "\nnumber float.rate = 0.5\n" in program
    assert "\nresult hidden = " in program
    report = CliRunner().invoke(app, ["check", *words, "--json", "--devices", "1"])
    assert json.loads(report.stdout)["found"]["samples"]["lengths"] == ["S (x dim 1) from 2"]
