"""Modules and parameters may have any name that torch lets them have, from capture to the files of a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron import runtime as rt
from galvatron import tensor_file
from galvatron.ir.text import parse_program, print_program
from tests.marks import some_slow
from tests.ranks import run_ranks

NAMES = (
    "line\nbreak", 'a "quote"', "it's", "back\\slash", "ends in \\", '"""', "größe 层", " ", "class", "self", "{0}",
    "a@1", "#0", "'); raise SystemExit(3)  # ", "\u2028", "\r", "\t", "%s",
)  # fmt: skip
WIDTH = 8


class Named(nn.Module):
    """A residual layer for each name, one with a parameter of each, and one that is frozen and written into."""

    def __init__(self) -> None:
        super().__init__()
        for name in NAMES:
            self.add_module(name, nn.Linear(WIDTH, WIDTH))
        self.scales = nn.ParameterDict({name: torch.full((WIDTH,), 0.5 + i / 9) for i, name in enumerate(NAMES)})
        self.register_buffer("new\nline", torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for name in NAMES:
            x = x + torch.tanh(getattr(self, name)(x)) * self.scales[name]
        getattr(self, "new\nline").add_(1)
        return nn.functional.mse_loss(x, y)


def model() -> nn.Module:
    torch.manual_seed(0)
    return Named().double()


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(4, WIDTH, generator=generator, dtype=torch.float64) for name in ("x", "y")}


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def goes_round(world: rt.World, plan: str, folder: str) -> dict[str, Tensor]:
    program = galvatron.compile(model(), batch(), plan=plan, optimizer=sgd)
    program.train_step(batch())
    program.save(f"{folder}/checkpoints", step=1)
    again = galvatron.compile(model(), batch(), plan=plan, optimizer=sgd)
    again.load(f"{folder}/checkpoints")
    again.export(f"{folder}/model")
    return galvatron.compile(model(), batch(), plan=plan, weights=f"{folder}/model").full_state_dict()


@pytest.mark.parametrize("plan", some_slow(["dp1"], ["dp2-zero3", "tp2", "pp2/m2/1f1b/dp1"]))
def test_any_name_goes_through(plan: str, tmp_path: Path) -> None:
    wanted = model()
    optimizer = sgd(list(wanted.parameters()))
    wanted(**batch()).backward()
    optimizer.step()
    for found in run_ranks(goes_round, 1 if plan == "dp1" else 2, plan, str(tmp_path), timeout=200):
        assert found.keys() == wanted.state_dict().keys()
        for name, value in wanted.state_dict().items():
            assert torch.allclose(found[name], value, rtol=1e-12, atol=1e-12), name
    (file,) = (tmp_path / "model").glob("*.safetensors")
    assert tensor_file.TensorFile(file).entries.keys() == wanted.state_dict().keys()


def test_text_has_names_as_they_are() -> None:
    program = galvatron.capture(model(), batch())
    assert {state.name for state in program.state} >= {f"{name}.weight" for name in NAMES}
    assert parse_program(print_program(program)) == program
