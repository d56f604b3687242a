"""Bad input in a job of several ranks: every rank gets the same clear error, and nothing hangs or is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron import runtime as rt
from galvatron.errors import GalvatronError, ParseError
from galvatron.ir.text import parse_program, print_program
from tests.parity.harness import costed, planned
from tests.ranks import run_ranks

pytestmark = pytest.mark.usefixtures("shared_captures")

ROOT = Path(__file__).parents[2]


class Tiny(nn.Module):
    """Linear layers; `branch` makes it one that cannot be captured."""

    def __init__(self, depth: int = 3, branch: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        if self.branch and x.sum() > 0:  # the line that is to blame
            x = -x
        return x.pow(2).sum(-1).mean()


def tiny_batch(samples: int = 8) -> dict[str, Tensor]:
    return {"x": torch.linspace(-1, 1, samples * 8).view(samples, 8)}


def error_of(world: rt.World, arguments: dict[str, Any]) -> tuple[str, str]:
    """Compiles with arguments that must be refused; then a right compilation shows that the job is still usable."""
    model = Tiny(branch=arguments.pop("branch", False))
    batch = tiny_batch(arguments.pop("samples", 8))
    if arguments.pop("other_plan", False):
        right = galvatron.compile(Tiny(), batch, plan=f"dp{world.size}").plan
        arguments["plan"] = replace(right, **arguments["plan"])
    with pytest.raises(GalvatronError) as error:
        galvatron.compile(model, batch, **arguments)
    compiled = galvatron.compile(Tiny(), tiny_batch(), plan=f"dp{world.size}")
    assert compiled.forward_backward(tiny_batch()).isfinite()
    return type(error.value).__name__, str(error.value)


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"samples": 6, "plan": "m2/dp2"}, "PlanError", ["6 samples", "2 micro-batches", "divisible by 4"]),
        ({"plan": "pp2/m2/dp2"}, "PlanError", ["4 devices", "there are 2"]),
        ({"other_plan": True, "plan": {"world_size": 4}}, "PlanError", ["4 devices", "2"]),
        ({"other_plan": True, "plan": {"fingerprint": "0"}}, "PlanError", ["another model", "search a plan"]),
        ({"memory": "1KiB", "cluster": "a100-80g:1x2"}, "BudgetError", ["libraries keep", "more memory"]),
        ({"plan": "pt2"}, "StrategyError", ["'pt2'", "did you mean 'tp2'"]),
        ({"plan": "pp2/m2/1f2b/dp1"}, "StrategyError", ["'1f2b'", "did you mean '1f1b'"]),
        ({"cluster": "a100-80:1x2"}, "ClusterError", ["did you mean 'a100-80g'"]),
        ({"cluster": "a100-80g:1x4", "plan": "dp4"}, "ClusterError", ["4 devices", "2 ranks"]),
        ({"branch": True, "plan": "dp2"}, "CaptureError", ["test_bad_input.py", "if self.branch and x.sum() > 0:"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_rank_gets_the_error(arguments: dict[str, Any], kind: str, words: list[str]) -> None:
    answers = run_ranks(error_of, 2, arguments)
    assert answers[0] == answers[1]
    assert answers[0][0] == kind
    for word in words:
        assert word in answers[0][1]


def plan_file(world: rt.World, path: str) -> tuple[str, str]:
    with pytest.raises(GalvatronError) as error:
        galvatron.compile(Tiny(), tiny_batch(), plan=path)
    return type(error.value).__name__, str(error.value)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda text: text.replace('"world_size": 2,', '"world_size": ,'), "ParseError", "line 7, column 17"),
        (lambda text: text[: len(text) // 2], "ParseError", "line "),
        (lambda text: text.replace("dp2", "dp2-tq1"), "PlanError", "did you mean 'tp1'"),
        (lambda text: text.replace("micro_batches", "microbatches"), "PlanError", "did you mean 'micro_batches'"),
        (lambda text: text.replace('"version": 1', '"version": 99'), "PlanError", "version"),
    ],
)
def test_corrupt_plan(change: Any, kind: str, words: str, tmp_path: Path) -> None:
    program = planned("gpt", "dp2", 2)
    assert program.plan is not None
    text = program.plan.to_json()
    path = tmp_path / "plan.json"
    path.write_text(change(text))
    assert path.read_text() != text
    answers = run_ranks(plan_file, 2, str(path))
    assert answers[0] == answers[1]
    assert answers[0][0] == kind and words in answers[0][1]


@pytest.mark.parametrize("word", ["aten.linear.default", "layer ", "f64[", "return ", "parameter "])
def test_corrupt_program(word: str) -> None:
    text = print_program(costed("gpt")[0])
    position = text.index(word, len(text) // 3) if word in text[len(text) // 3 :] else text.index(word)
    with pytest.raises(ParseError, match=rf"line {text.count(chr(10), 0, position) + 1}, column \d+"):
        parse_program(text[:position] + "?!" + text[position + len(word) :])


JOB = """
import torch, galvatron
torch.manual_seed(0)
batch = {"input": torch.ones(8, 4)}
galvatron.compile(torch.nn.Linear(4, 4), batch, loss_fn=lambda output, _: output.mean(), plan="pp2/m4/dp2")
print("compiled")
"""


@pytest.mark.slow
def test_a_job_with_a_wrong_plan_ends(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(torchrun, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0 and "compiled" not in ended.stdout
    assert "PlanError: plan 'pp2/m4/dp2' is for 4 devices, but there are 2" in ended.stderr
