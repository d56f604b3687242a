"""Programs that draw, write state, or do not take random numbers; and questions that cannot be answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron.debugging.passes import outcomes
from galvatron.ir.text import print_program
from galvatron.passes import FRONT_END
from galvatron.passes.pipeline import Pipeline
from tests.cli.test_cli import run
from tests.debugging.test_families import PASSES


class Layers(nn.Module):
    """Equal layers around a function of a hidden tensor."""

    def __init__(self, between: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.ups = nn.ModuleList(nn.Linear(8, 32) for _ in range(3))
        self.between = nn.ModuleList(between() for _ in range(3))
        self.downs = nn.ModuleList(nn.Linear(32, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for up, between, down in zip(self.ups, self.between, self.downs, strict=True):
            x = x + down(between(up(x)))
        return x.square().sum()


@pytest.mark.parametrize(
    "between", [lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(32)], ids=["dropout", "batch norm"]
)
def test_no_pass_departs(between: Callable[[], nn.Module]) -> None:
    program = galvatron.capture(Layers(between), {"x": torch.zeros(4, 8)}, form="captured")
    found = list(outcomes(program, PASSES))
    assert [(one.pass_, one.kind, one.text) for one in found if one.kind not in ("unchanged", "same")] == []


class Targets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy(self.linear(x).sigmoid(), y)


def test_a_program_that_cannot_take_random_numbers_is_not_judged(tmp_path: Path) -> None:
    batch = {"x": torch.zeros(4, 8), "y": torch.zeros(4, 8)}
    program = galvatron.capture(Targets(), batch, form="captured")
    kinds = {one.kind for one in outcomes(program, Pipeline.of(FRONT_END))}
    assert kinds == {"unknown", "unchanged"}
    path = tmp_path / "p.gir"
    path.write_text(print_program(program))
    assert "it cannot be run on random numbers" in run("run", path, code=2)[1]
    assert "unknown: it cannot be run on random numbers" in run("run", path, "--compare")[0]
    found = run("bisect", path)[0]
    assert "what each other one gives" in found
    assert "nothing is known of pass 1, normalize: it cannot be run on random numbers" in found
    unknown = json.loads(run("bisect", path, "--json")[0])["unknown"]
    assert [(one["pass"], one["place"]) for one in unknown] == [("normalize", 1), ("cluster-layers", 4)]


class Words(nn.Module):
    """Predicts what it reads: so no label can be one that the loss ignores."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return nn.functional.cross_entropy(x @ self.table.weight.T, ids)


def test_what_no_input_can_be_is_not_asked_for() -> None:
    program = galvatron.capture(Words(), {"ids": torch.zeros(4, dtype=torch.int64)}, form="captured")
    assert [one.kind for one in outcomes(program, Pipeline.parse("normalize,fuse"))] == ["same", "unchanged"]


def test_questions_that_have_no_answer(tmp_path: Path) -> None:
    layered, plan = tmp_path / "p.gir", tmp_path / "plan.json"
    layered.write_text(print_program(galvatron.capture(Layers(nn.ReLU), {"x": torch.zeros(4, 8)})))
    plan.write_text("{}")
    for command in ("run --compare", "bisect"):
        assert "name passes with --passes" in run(*command.split(), layered, code=2)[1]
        assert "needs a program in form planned" in run(*command.split(), layered, "--passes", "shard", code=2)[1]
    assert "plan.json is a plan: name two plans or two programs" in run("diff", layered, plan, code=2)[1]
