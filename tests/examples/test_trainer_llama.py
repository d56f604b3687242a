"""The example for the `Trainer` of transformers: trains, is killed, goes on, and exports what it has trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from galvatron.trainer import last_checkpoint
from tests.examples.test_train_llama import EXAMPLE, LENGTH, SAMPLES, example, files
from tests.faults.jobs import Job

__all__ = ["files"]  # a fixture

TRAINER_EXAMPLE = EXAMPLE.with_name("trainer_llama.py")


def options(files: list[str], plan: str, **more: Any) -> list[str]:
    model, tokens, out = files
    chosen: dict[str, Any] = {
        "model": model,
        "tokens": tokens,
        "output_dir": out,
        "length": LENGTH,
        "plan": plan,
        "report_to": "none",
    }
    chosen |= {"per_device_train_batch_size": 4, "num_train_epochs": 4, "learning_rate": 0.01, "logging_steps": 1}
    chosen |= {"eval_strategy": "steps", "eval_steps": 8, "save_steps": 4, "save_total_limit": 2, **more}
    return [text for name, value in chosen.items() for text in (f"--{name}", str(value))]


def told(out: str) -> tuple[dict[int, float], float]:
    """Of a run that has ended, its losses by step, and the last evaluation."""
    state = json.loads((Path(str(last_checkpoint(out))) / "trainer_state.json").read_text())["log_history"]
    return {log["step"]: log["loss"] for log in state if "loss" in log}, [
        log["eval_loss"] for log in state if "eval_loss" in log
    ][-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("plan", ["dp2-zero2", "pp2/m2/1f1b/dp1"])
def test_it_goes_on_when_a_rank_was_killed(files: list[str], plan: str) -> None:
    undisturbed = [*files[:2], files[2] + "-undisturbed"]
    with Job(TRAINER_EXAMPLE, *options(undisturbed, plan)) as job:
        assert job.wait() == 0, job.output
    with Job(TRAINER_EXAMPLE, *options(files, plan), restarts=2) as job:
        for restart, step in enumerate((12, 24)):
            job.wait_until(lambda step=step: (Path(files[2]) / f"checkpoint-{step}" / "trainer_state.json").exists())
            job.kill(rank=restart, start=restart)
        assert job.wait() == 0, job.output
    assert told(files[2]) == told(undisturbed[2])
    losses, evaluated = told(files[2])
    assert list(losses) == list(range(1, 49)) and losses[48] < 0.5 * losses[1]
    model = AutoModelForCausalLM.from_pretrained(Path(files[2]) / "model").eval()
    held_out = list(example().Tokens(Path(files[1]), LENGTH))[-SAMPLES // 20 :]
    ids = torch.stack([sample["input_ids"] for sample in held_out])
    with torch.no_grad():
        assert float(model(input_ids=ids, labels=ids).loss) == pytest.approx(evaluated, rel=1e-5)
