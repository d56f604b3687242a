"""A checkpoint of one plan loads under another one: the steps after it are those of a run that never stopped."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from galvatron import checkpoints
from galvatron import runtime as rt
from tests.parity.harness import BATCH_SIZE, Job, executor, job_of, layer_count, planned, subject
from tests.parity.subjects import Batch
from tests.parity.training import CLIP, adamw, warm_up
from tests.ranks import run_ranks

MODEL = "gpt2-tied-101"
"""Its embedding is also its head, and divides over no number of ranks."""

PLANS = {
    "m2/dp1": 1,
    "m2/dp2": 2,
    "m2/dp4-zero3": 4,
    "m2/tp2+sp": 2,
    "m2/ulysses2": 2,
    "m2/cp2": 2,
    "pp2/m4/1f1b/dp2-zero1": 4,
    "pp2/m4/zbv/dp1": 2,
    "a mixture": 4,
}
"""Plan → ranks."""

BEFORE, AFTER = 2, 3
"""Steps until the checkpoint, and those that are compared."""


@cache
def job_under(plan: str) -> Job:
    if plan != "a mixture":
        return job_of(MODEL, planned(MODEL, plan, PLANS[plan]))
    choices = ["tp4", "dp4-zero3", "dp2-tp2+sp", "cp2-dp2-zero2", "ulysses2-dp2"]
    layers = [choices[i % len(choices)] for i in range(layer_count(MODEL))]
    return job_of(MODEL, planned(MODEL, [layers]))


def batches() -> list[Batch]:
    return [subject(MODEL).batch(BATCH_SIZE, seed) for seed in range(BEFORE + AFTER)]


Run = tuple[list[float], dict[str, Tensor]]
"""Losses, and the state after them."""


def train_on(program: rt.Executor, steps: list[Batch]) -> Run:
    assert program.optimizer is not None
    losses = [float(program.train_step(batch)) for batch in steps]
    return losses, program.full_state_dict()


def saves_and_goes_on(world: rt.World, job: Job, steps: list[Batch], folder: str) -> Run:
    program = executor(world, job, optimizer=adamw, max_grad_norm=CLIP)
    assert program.optimizer is not None
    scheduler = warm_up(program.optimizer)
    for batch in steps[:BEFORE]:
        program.train_step(batch)
        scheduler.step()
    checkpoints.Saver(world, program).save(Path(folder), step=BEFORE, keep=1, extra={})
    return train_on(program, steps[BEFORE:])


def loads_and_goes_on(world: rt.World, job: Job, steps: list[Batch], folders: list[str]) -> list[Run]:
    program = executor(world, job, optimizer=adamw, max_grad_norm=CLIP)
    runs: list[Run] = []
    for folder in folders:
        checkpoints.load(world, program, Path(folder))
        runs.append(train_on(program, steps[BEFORE:]))
    return runs


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@cache
def saved(plan: str, folder: Path) -> tuple[Path, Run]:
    own = folder / plan.replace("/", " ")
    return own, run_ranks(saves_and_goes_on, PLANS[plan], job_under(plan), batches(), str(own))[0]


QUICK = ["m2/tp2+sp", "m2/dp4-zero3", "pp2/m4/zbv/dp1"]


def check(target: str, sources: list[str], folder: Path) -> None:
    found = [saved(source, folder) for source in sources]
    paths = [str(path) for path, _ in found]
    ranks = run_ranks(loads_and_goes_on, PLANS[target], job_under(target), batches(), paths, timeout=240)
    for runs in ranks:
        for source, (losses, state), (_, (wanted_losses, wanted)) in zip(sources, runs, found, strict=True):
            words = f"saved under {source}, loaded under {target}"
            assert state.keys() == wanted.keys()
            if source == target:
                assert losses == wanted_losses, words
            for loss, wanted_loss in zip(losses, wanted_losses, strict=True):
                assert abs(loss - wanted_loss) <= 1e-12 * abs(wanted_loss), words
            for name, value in wanted.items():
                if source == target:
                    assert torch.equal(state[name], value), f"{words}: {name}"
                error = (state[name] - value).norm() / value.norm().clamp_min(1e-12)
                assert error <= 1e-12, f"{words}: {name} is off by {error:.1e}"


@pytest.mark.one_in(3)
@pytest.mark.parametrize("target", ["m2/dp1", "m2/dp4-zero3", "a mixture"])
def test_goes_on_under_another_plan(target: str, folder: Path) -> None:
    check(target, QUICK, folder)


@pytest.mark.slow
@pytest.mark.parametrize("target", PLANS)
def test_goes_on_from_every_plan_under_every_plan(target: str, folder: Path) -> None:
    check(target, list(PLANS), folder)
