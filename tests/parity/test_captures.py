"""What the run keeps of captures is what a fresh capture gives, at the size of batch that the other tests ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import galvatron
from galvatron.ir.capture import Captured, capture_graph
from tests import captures, models
from tests.marks import some_slow
from tests.parity.harness import BATCH_SIZE, captured, subject

FAST = ["gpt", "size-branch"]
OTHERS = ["encoder", *models.FAMILIES, "random-3", "towers", "weighted", "vit-16"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", some_slow(FAST, OTHERS))
def test_what_is_kept_is_a_fresh_capture(name: str) -> None:
    case = subject(name)
    captured(name)
    kept = captured(name)
    with models.precise(case.model):
        fresh = capture_graph(case.model, case.batch(BATCH_SIZE, 0), loss_fn=case.loss_fn)
    assert kept.program == fresh.program
    assert kept.constants.keys() == fresh.constants.keys()
    assert all(torch.equal(value, fresh.constants[key]) for key, value in kept.constants.items())


def test_a_name_is_captured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = captured("gpt").program
    monkeypatch.setattr(captures, "folder", tmp_path)
    made = []

    def capture() -> Captured:
        made.append(Captured(program, {"constant": torch.arange(3)}))
        return made[-1]

    for found in (captures.kept("a", capture), captures.kept("a", capture)):
        assert len(made) == 1 and found.program == program
        assert torch.equal(found.constants["constant"], torch.arange(3))
    captures.kept("b", capture)
    assert len(made) == 2 == len(list(tmp_path.iterdir()))


class Scaled(nn.Module):
    """A linear layer with a tensor that is neither parameter nor buffer."""

    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.scale = nn.Linear(4, 4), torch.full((4,), scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.inner(x) * self.scale).pow(2).mean()


def test_what_is_captured_from_the_same_is_captured_once(tmp_path: Path) -> None:
    class Local(Scaled):
        pass

    batch, other = {"x": torch.ones(4, 4)}, {"x": torch.ones(8, 4)}
    untrained = Scaled()
    untrained.inner.bias.requires_grad_(False)
    with captures.sharing(tmp_path):
        programs = [galvatron.capture(Scaled(), batch) for _ in range(2)]
        assert programs[0] == programs[1] and len(list(tmp_path.iterdir())) == 1
        others = [(Scaled(3.0), batch), (Scaled().eval(), batch), (untrained, batch), (Scaled(), other)]
        for number, (model, inputs) in enumerate(others, 2):
            galvatron.capture(model, inputs)
            assert len(list(tmp_path.iterdir())) == number
        galvatron.capture(Scaled(), batch, precision="bf16")
        galvatron.capture(Local(), batch)  # a class without a name that another process knows
        assert len(list(tmp_path.iterdir())) == len(others) + 2
    assert galvatron.api.capture_graph is capture_graph
