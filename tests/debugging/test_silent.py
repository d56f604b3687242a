"""Silent numerical bugs of parallel code: each is told at its line, and is one by its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from galvatron.debugging.passes import pass_departure
from galvatron.errors import GalvatronError, PlanError
from galvatron.ir.graph import Graph, Op, Ref
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.verify import verify
from galvatron.runtime.elementwise import NotElementwiseError, Slices, Trained, check_optimizer
from tests.cli.test_cli import run
from tests.debugging.silent import BUGS, OTHERS, with_ops
from tests.debugging.silent_models import planned, staged

PAGE = Path(__file__).parents[2] / "docs" / "silent-bugs.md"


@pytest.mark.parametrize("name", BUGS)
def test_a_silent_bug_is_told_at_its_line(name: str, tmp_path: Path) -> None:
    bug, path = BUGS[name], tmp_path / "edited.gir"
    path.write_text(print_program(bug.edit(staged(bug.model, bug.plan))))
    told = json.loads(run("check", path, "--json", code=1)[0])
    refused = told["refused"]
    assert not told["valid"] and refused["rule"] == bug.rule, refused
    faults = refused["faults"]
    assert any(bug.line in fault["text"] and bug.mended in fault["message"] for fault in faults), faults
    first = faults[0]["line"]  # none of a line that is in a loop
    assert first is None or f">>> {first:>4} | {path.read_text().splitlines()[first - 1]}" in refused["excerpt"]


@pytest.mark.parametrize("name", [name for name, bug in BUGS.items() if bug.numbers])
def test_a_silent_bug_is_one(name: str) -> None:
    """Nothing crashes where it is run, and something is another number."""
    bug = BUGS[name]
    found = pass_departure(planned(bug.model, bug.plan), bug.edit(staged(bug.model, bug.plan)))
    assert found is not None and found.what == bug.numbers, found


def divided_again(op: Op, graph: Graph) -> tuple[Op, ...]:
    once = replace(op, results=(replace(op.result, name="once"),))
    return once, replace(op, args=(Ref("once"), 2))


SCALED = {
    "loss is divided by the ranks once more": ("head", "div", divided_again),
    "scores are scaled by the width that a rank has": (
        "blocks",
        "scaled_dot_product_attention",
        lambda op, graph: (replace(op, kwargs=(*op.kwargs, ("scale", 0.5))),),
    ),
}
"""Bugs that make another right program, of which only the one that it was made from says that it is not meant.

The first is that of https://github.com/NVIDIA/Megatron-LM/issues/673 and of
https://github.com/modelscope/ms-swift/pull/10081, where a loss, or what is made of it, is averaged over ranks twice.
"""


@pytest.mark.parametrize("name", SCALED)
def test_a_wrong_scale_is_told_beside_the_program_that_it_was_made_from(name: str, tmp_path: Path) -> None:
    within, operator, edit = SCALED[name]
    before, after = tmp_path / "before.gir", tmp_path / "after.gir"
    before.write_text(print_program(planned("words", "dp2")))
    after.write_text(print_program(staged("words", "dp2")))
    assert run("run", after, "--against", before)[0] == "same\n"
    wrong = with_ops(staged("words", "dp2"), lambda op: op.name == operator, edit, within)
    after.write_text(print_program(wrong))
    assert "keeps all" in run("check", after)[0]
    told = run("run", after, "--against", before, code=1)[0]
    assert f"in class @{within}@dp2: the value of %" in told and "silent_models.py" in told
    assert json.loads(run("run", after, "--against", before, "--json", code=1)[0])["numbers"] == "departs"
    assert "name one before shard" in run("run", after, "--against", after, code=2)[1]


class Clipping(torch.optim.SGD):
    """Clips by the norm of the gradients that it is given, which on a rank are parts of those of the model:
    https://github.com/NVIDIA-NeMo/RL/pull/3788, https://github.com/pytorch/pytorch/issues/170862
    """

    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1e-3)
        return super().step(closure)


def test_clipping_by_the_norm_of_a_rank_is_refused() -> None:
    model = {"up": Trained((32, 8), torch.float32), "down": Trained((8, 32), torch.float32)}

    def build(named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return Clipping(list(named.values()), lr=0.1)

    with pytest.raises(NotElementwiseError, match="Clipping is not element-wise"):
        check_optimizer(build, model, ["up", "down"], Slices(frozenset((0,))), torch.device("cpu"))


def test_samples_that_need_each_other_are_not_cut_into_micro_batches_on_the_way() -> None:
    """A contrastive loss of the negatives of each micro-batch, as under gradient accumulation:
    https://github.com/ArrowLuo/CLIP4Clip/issues/69
    """
    with pytest.raises(PlanError, match="gpipe"):
        verify(staged("pairs", "pp2/m2/1f1b/dp1"))


def test_the_page_has_every_bug() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = {row.split("|")[1].strip(): row for row in text.splitlines() if row.startswith("| ")}
    told = {name.replace("-", " "): bug.rule for name, bug in BUGS.items()}
    told |= dict.fromkeys(SCALED, "`run --against`")
    assert {name: rule for name, rule in told.items() if rule not in rows.get(name, "")} == {}


@pytest.mark.parametrize("name", OTHERS)
def test_another_program_is_not_the_same(name: str) -> None:
    other = OTHERS[name]
    before = planned(other.model, other.plan)
    text = print_program(before if other.form == "planned" else staged(other.model, other.plan))
    assert other.old in text
    edited = parse_program(text.replace(other.old, other.new, 1))
    try:
        verify(edited)
        told = str(pass_departure(before, edited))
    except GalvatronError as error:
        told = str(error)
    assert other.told in told


@pytest.mark.parametrize(("model", "plan"), [("words", "tp2+sp"), ("marks", "dp2"), ("pictures", "dp2")])
def test_what_was_sharded_is_the_same(model: str, plan: str) -> None:
    assert pass_departure(planned(model, plan), staged(model, plan)) is None
