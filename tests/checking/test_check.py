"""`galvatron check`: what a report says of small models, and that it says it before anything is run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

import galvatron
from galvatron.checking import examine
from galvatron.checking.examine import check
from galvatron.checking.report import Report
from galvatron.cli import app
from galvatron.errors import GalvatronError
from galvatron.ir.planned import resolve

WIDTH, WORDS, LENGTH = 32, 96, 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(self.down(torch.relu(self.up(self.norm(x)))))


class Language(nn.Module):
    """A stack of blocks under a tied head."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(blocks)])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(F.linear(x, self.embed.weight).flatten(0, 1), tokens.flatten())


class Computes(nn.Module):
    """A linear layer and what a function makes of its result."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(8, 8), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.linear(x))


def checked(function: Callable[[torch.Tensor], torch.Tensor], samples: int = 4, **options: Any) -> Report:
    return check(Computes(function), {"x": torch.zeros(samples, 6, 8)}, **options)


@pytest.fixture(scope="module")
def language() -> Report:
    return check(Language(), {"tokens": torch.zeros(4, LENGTH, dtype=torch.int64)})


def test_layers_by_class_with_parameters_and_modules(language: Report) -> None:
    assert language.captured and not language.refused and language.found is not None
    blocks = next(cls for cls in language.found.classes if len(cls.layers) == 3)
    assert blocks.modules == (("blocks.0",), ("blocks.1",), ("blocks.2",))
    assert blocks.parameters == sum(p.numel() for p in Block().parameters())
    assert language.found.parameters == sum(p.numel() for p in Language().parameters())
    assert {cls.kind for cls in language.found.classes} >= {"layer"}


def test_what_is_shared_is_named_as_state_and_as_a_tie(language: Report) -> None:
    assert language.found is not None
    (tie,) = language.found.ties
    assert tie.parameters == ("embed.weight",) and len(tie.layers) == 2
    holders = [cls for cls in language.found.classes if ("embed.weight",) in cls.modules]
    assert len(holders) == 2


def test_random_draws_with_their_lines(language: Report) -> None:
    assert language.found is not None
    (draw,) = language.found.draws
    assert draw.op == "dropout" and "self.drop(" in draw.line


def test_plans_that_are_not_refused_fit_the_program(language: Report) -> None:
    found = language.found
    assert found is not None
    program = galvatron.capture(Language(), {"tokens": torch.zeros(4, LENGTH, dtype=torch.int64)})
    plans = {plan.plan: plan.refused for plan in found.plans}
    for shorthand in (plan for plan, refused in plans.items() if not refused):
        resolve(program, shorthand, found.global_batch_size, found.devices)
    assert not plans["pp1/m4/dp8"] and not plans["pp2/m4/tp4+sp"]
    assert plans["pp8/m1/dp1"] == f"it has more stages (8) than the program has layers ({_planned(language)})"
    assert "does not divide" not in plans["pp1/m1/cp8"]


def _planned(report: Report) -> int:
    assert report.found is not None
    return sum(len(cls.layers) for cls in report.found.classes if cls.kind == "layer")


def test_what_is_whole_has_the_reason_of_the_partitioner(language: Report) -> None:
    assert language.found is not None
    whole = {(row.role, row.op): row.why for row in language.found.whole}
    assert whole["tp2", "layer_norm"] == "whole by the axis' role"
    assert ("tp2+sp", "layer_norm") not in whole and ("tp2", "linear") not in whole


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        return self.after(x - x.mean(0)).tanh().mean()


def test_samples_that_interact() -> None:
    report = check(Centred(), {"x": torch.zeros(4, 6, 8)})
    assert report.found is not None and "x.mean(0)" in report.found.samples.coupled
    plans = {plan.plan: plan.refused for plan in report.found.plans}
    assert not plans["pp1/m1/dp8"] and "do not add up" in plans["pp1/m4/dp8"]
    assert "one micro-batch only" in str(report)


def test_samples_that_interact_at_the_end() -> None:
    report = checked(lambda x: x.square().mean().sqrt())
    assert report.found is not None
    assert not report.found.samples.coupled and ".sqrt()" in report.found.samples.epilogue
    assert not next(plan.refused for plan in report.found.plans if plan.plan == "pp1/m4/dp8")


def test_sizes_of_the_batch_that_a_program_holds_for() -> None:
    report = checked(lambda x: x.sum() if x.shape[0] < 10 else x.square().sum())
    assert report.found is not None and report.found.samples.sizes == "from 1 to 9"
    assert report.found.global_batch_size == 4
    assert any("divide" in plan.refused for plan in report.found.plans)


def test_checks_that_are_left_out_are_in_the_report_and_other_warnings_are_given() -> None:
    def watched(x: torch.Tensor) -> torch.Tensor:
        warnings.warn("of the model's own", stacklevel=1)
        if x.isnan().any():
            warnings.warn("not a number", stacklevel=1)
        return x.sum()

    with pytest.warns(UserWarning, match="of the model's own") as given:
        report = checked(watched)
    assert len(given) == 1
    (text,) = report.warnings
    assert "x.isnan().any()" in text and "left out" in text and f"warning: {text[:20]}" in str(report)


def test_a_model_that_is_refused_has_a_report() -> None:
    report = checked(lambda x: x.sum() if x.sum() > 0 else x.square().sum())
    assert not report.captured and report.found is None
    assert "x.sum() > 0" in report.refused[0] and "cannot be captured" in str(report)
    assert not json.loads(json.dumps(report.to_dict()))["captured"]


class Wrong(nn.Module):
    """Has one of everything that can be passed over, and at the end what cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        while not x.sum() > 0:
            x = x + 1
        x.register_hook(lambda gradient: 2 * gradient)
        with torch.no_grad():
            x.add_(1)
        torch.manual_seed(0)
        if x.max() > 1:
            x = 2 * x
        return x.sum() + torch.autograd.grad(x.sum(), self.linear.weight)[0].sum()


def test_all_lines_that_can_be_passed_over_are_listed_in_order() -> None:
    refused = check(Wrong(), {"x": torch.zeros(4, 8)}).refused
    lines = ["x.sum() > 0", "register_hook", "add_(1)", "manual_seed", "x.max() > 1"]
    assert [next(i for i, reason in enumerate(refused) if line in reason) for line in lines] == list(range(5))


def test_ops_that_no_program_has_are_all_listed() -> None:
    def drawn(x: torch.Tensor) -> torch.Tensor:
        x = x[:, torch.randperm(6)]
        return x[:, torch.multinomial(torch.ones(6), 3)].sum()

    first, second = checked(drawn).refused
    assert "randperm" in first and "multinomial" in second


def test_to_dict_is_json_and_has_everything(language: Report) -> None:
    document = json.loads(json.dumps(language.to_dict()))
    assert document["captured"] and document["found"]["samples"]["inputs"] == ["tokens"]
    assert language.found is not None and len(document["found"]["plans"]) == len(language.found.plans)


def test_options_reach_the_capture() -> None:
    model, batch = nn.Linear(8, 8), {"input": torch.zeros(4, 8)}
    report = check(model, batch, loss_fn=lambda output, _: output.float().sum(), precision="bf16", devices=2, degree=4)
    assert report.found is not None and report.found.roles[0] == "dp4" and " in bf16" in str(report)
    assert {plan.plan.rpartition("/")[2] for plan in report.found.plans} >= {"dp2", "tp2", "dp1"}


@pytest.mark.parametrize(
    "options", [{"devices": 0}, {"degree": 1}, {"global_batch_size": 0}, {"devices": 2.0}, {"precision": "f8"}]
)
def test_wrong_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(GalvatronError, match=next(iter(options))):
        checked(torch.sum, **options)


def test_one_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, capture = [], examine.capture_graph
    monkeypatch.setattr(examine, "capture_graph", lambda *a, **k: calls.append(a) or capture(*a, **k))
    assert checked(torch.sum).captured and len(calls) == 1


MODEL = """
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, branches):
        super().__init__()
        self.linear, self.branches = nn.Linear(8, 8), branches

    def forward(self, x):
        y = self.linear(x)
        if self.branches and y.sum() > 0:
            y = y * 2
        return y.square().mean()


def good():
    return Model(False), {"x": torch.zeros(4, 8)}


def bad():
    return Model(True), {"x": torch.zeros(4, 8)}
"""


@pytest.mark.parametrize(("name", "code"), [("good", 0), ("bad", 1), ("missing", 2)])
def test_command(name: str, code: int, tmp_path: Path) -> None:
    path = tmp_path / "checked_model.py"
    path.write_text(MODEL)
    words = ["check", f"{path}:{name}", "--devices", "2"]
    table = CliRunner().invoke(app, words)
    assert table.exit_code == code, table.output
    if code < 2:
        assert "plans for 2 devices" in table.stdout if code == 0 else "y.sum() > 0" in table.stdout
        document = CliRunner().invoke(app, [*words, "--json"])
        assert document.exit_code == code and json.loads(document.stdout)["captured"] is (code == 0)
