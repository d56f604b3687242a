"""A run that was stopped goes on from its checkpoint as if it had not been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from galvatron.trainer import last_checkpoint
from tests.marks import some_slow
from tests.ranks import run_ranks
from tests.trainer.small import logs_of, trained, trainer

pytestmark = pytest.mark.usefixtures("shared_captures")

SAVING: dict[str, Any] = {
    "args": {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "eval_strategy": "no"}
}


def stopped(world: rt.World, folder: Path, plan: str, step: int) -> Any:
    made = trainer(folder, plan, world.size, stop=step, **SAVING)
    made.train()
    return logs_of(made)


def gone_on(world: rt.World, folder: Path, plan: str) -> Any:
    return trained(trainer(folder, plan, world.size, **SAVING), resume=last_checkpoint(folder))


def undisturbed(world: rt.World, folder: Path, plan: str) -> Any:
    return trained(trainer(folder, plan, world.size, **SAVING))


def check(before: Any, after: Any, wanted: Any, taken_up: int, tolerance: float) -> None:
    logs, values = after
    steps = [log for log in [*before[:taken_up], *logs] if "loss" in log]
    for log, other in zip(steps, [log for log in wanted[0] if "loss" in log], strict=True):
        assert log == pytest.approx(other, rel=tolerance), log
    for name, value in wanted[1].items():
        torch.testing.assert_close(values[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("step", [3, 5])
def test_it_goes_on_bit_for_bit(tmp_path: Path, step: int) -> None:
    """In the middle of an epoch, and at its end; the folder of a step that was being saved is not looked at."""
    world = rt.World(0, 1, torch.device("cpu"))
    before = stopped(world, tmp_path / "run", "dp1", step)
    taken_up = step - 1
    (tmp_path / "run" / "checkpoint-6").mkdir()
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / f"checkpoint-{taken_up}")
    check(before, gone_on(world, tmp_path / "run", "dp1"), undisturbed(world, tmp_path, "dp1"), taken_up, 0.0)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-4", "checkpoint-6"]


CHANGES = [(1, "m2/dp1", 2, "dp2-zero3"), (2, "pp2/m2/1f1b/dp1", 2, "tp2"), (2, "dp2", 4, "dp2-tp2")]


@pytest.mark.parametrize(("ranks", "plan", "other_ranks", "other"), some_slow([], CHANGES))
def test_it_goes_on_under_another_plan(tmp_path: Path, ranks: int, plan: str, other_ranks: int, other: str) -> None:
    before = run_ranks(stopped, ranks, tmp_path / "run", plan, 3, timeout=240)[0]
    after = run_ranks(gone_on, other_ranks, tmp_path / "run", other, timeout=240)[0]
    check(before, after, undisturbed(rt.World(0, 1, torch.device("cpu")), tmp_path, "dp1"), 2, 1e-6)


def test_what_it_cannot_go_on_from(tmp_path: Path) -> None:
    world = rt.World(0, 1, torch.device("cpu"))
    assert last_checkpoint(tmp_path / "nowhere") is None
    made = trainer(tmp_path, "dp1", **SAVING)
    with pytest.raises(GalvatronError, match="there is no checkpoint to go on from"):
        made.train(True)
    with pytest.raises(GalvatronError, match="is no checkpoint that GalvatronTrainer can go on from"):
        made.train(str(tmp_path))
    stopped(world, tmp_path / "run", "dp1", 2)
    fewer: dict[str, Any] = {"args": {**SAVING["args"], "gradient_accumulation_steps": 1}}
    with pytest.raises(GalvatronError, match="is of a run with 8 samples in a step, and this one has 4"):
        trainer(tmp_path / "run", "dp1", **fewer).train(True)


def test_the_best_model_is_loaded(tmp_path: Path) -> None:
    args = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    made = trainer(tmp_path, "dp1", args={**args, "load_best_model_at_end": True, "learning_rate": 0.05})
    logs, _ = trained(made)
    losses = [log["eval_loss"] for log in logs if "eval_loss" in log]
    assert losses[-1] > min(losses), "the last model is the best"
    assert made.evaluate()["eval_loss"] == min(losses)
