"""Moving averages of weights, learning rates that follow a schedule, and the loss on a whole data set."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import galvatron
from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from tests.data import small
from tests.marks import some_slow
from tests.ranks import run_ranks
from tests.test_together import new_batch, new_model

pytestmark = pytest.mark.usefixtures("shared_captures")

DECAY = 0.8


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def averaging(parameters: Any) -> torch.optim.Optimizer:
    return galvatron.ema(adam(parameters), DECAY)


def compiled(plan: str, **options: Any) -> galvatron.CompiledModel:
    options.setdefault("optimizer", averaging)
    return galvatron.compile(new_model(), new_batch(), plan=plan, **options)


# Averages.


def plain_averages(steps: int) -> dict[str, Tensor]:
    """Those that torch keeps of the model on one device."""
    model = new_model()
    optimizer, averaged = adam(model.parameters()), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    for seed in range(steps):
        optimizer.zero_grad()
        model(**new_batch(seed=seed)).backward()
        optimizer.step()
        averaged.update_parameters(model)
    return dict(averaged.module.state_dict())


def check_averages(program: galvatron.CompiledModel, wanted: dict[str, Tensor]) -> None:
    trained = program.full_state_dict()
    with program.ema():
        for name, value in program.full_state_dict().items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-9, atol=1e-12)
            assert not torch.equal(value, trained[name]), name
        with pytest.raises(GalvatronError, match="train_step waits until the block"):
            program.train_step(new_batch())
    for name, value in program.full_state_dict().items():
        assert torch.equal(value, trained[name]), name


def averages(world: rt.World, plan: str, other: str, folder: str) -> None:
    program = compiled(plan)
    for seed in range(4):
        program.train_step(new_batch(seed=seed))
    check_averages(program, plain_averages(4))
    program.save(folder, step=4)
    with pytest.raises(GalvatronError, match="keeps no moving averages"):
        compiled(plan, optimizer=adam).load(folder)
    again = compiled(other)
    again.load(folder)
    check_averages(again, plain_averages(4))
    again.train_step(new_batch(seed=4))
    check_averages(again, plain_averages(5))


@pytest.mark.parametrize(
    ("plan", "other"), some_slow([("dp2-zero2", "pp2/m2/1f1b/dp1")], [("tp2", "dp2-zero3"), ("dp2-zero1", "tp2")])
)
def test_averages_are_those_of_one_device_and_go_along_with_checkpoints(plan: str, other: str, tmp_path: Path) -> None:
    run_ranks(averages, 2, plan, other, str(tmp_path))


def test_averages_of_half_types_are_in_float32() -> None:
    program = compiled("dp1", precision="bf16")
    for seed in range(3):
        program.train_step(new_batch(seed=seed))
    before = program.full_state_dict()
    with program.ema():
        found = program.full_state_dict()
    assert all(value.dtype == torch.float32 and not torch.equal(value, before[name]) for name, value in found.items())
    assert all(torch.equal(value, before[name]) for name, value in program.full_state_dict().items())


def joined(named_parameters: Any) -> torch.optim.Optimizer:
    """Matrices by one rule, and all else by another."""
    named = list(named_parameters)
    halves = [p for name, p in named if is_matrix(name)], [p for name, p in named if not is_matrix(name)]
    return galvatron.JoinedOptimizer(*(averaging(half) for half in halves if half))


def is_matrix(name: str, _: tuple[int, ...] = ()) -> bool:
    return name in {name for name, p in new_model().named_parameters() if p.dim() == 2}


def averages_of_whole_parameters(world: rt.World, plan: str, other: str, folder: str) -> None:
    program = compiled(plan, optimizer=rt.WholeParameters(joined, is_matrix))
    with program.ema():  # there are none yet
        pass
    for seed in range(4):
        program.train_step(new_batch(seed=seed))
    check_averages(program, plain_averages(4))
    program.save(folder, step=4)
    again = compiled(other, optimizer=rt.WholeParameters(joined, is_matrix) if "zero" in other else joined)
    again.load(folder)
    check_averages(again, plain_averages(4))
    again.train_step(new_batch(seed=4))
    check_averages(again, plain_averages(5))


@pytest.mark.parametrize(
    ("plan", "other"),
    some_slow([("dp2-zero3", "tp2")], [("tp2", "dp2-zero1"), ("dp2", "pp2/m2/1f1b/dp1"), ("dp2-zero2", "dp2")]),
)
def test_averages_of_whole_parameters_and_joined_rules(plan: str, other: str, tmp_path: Path) -> None:
    run_ranks(averages_of_whole_parameters, 2, plan, other, str(tmp_path))


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(GalvatronError, match="there are no averages"), compiled("dp1", optimizer=adam).ema():
        pass
    with pytest.raises(GalvatronError, match="decay must be"):
        compiled("dp1", optimizer=lambda parameters: galvatron.ema(adam(parameters), 1.0))
    with pytest.raises(GalvatronError, match="not Linear"):
        galvatron.ema(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


# Schedules.

SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 6)),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "step": lambda o: lr_scheduler.StepLR(o, 2),
    "multi step": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "constant": lambda o: lr_scheduler.ConstantLR(o, total_iters=4),
    "linear": lambda o: lr_scheduler.LinearLR(o, total_iters=5),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.7),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 6, 2.0),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, step_size_up=2, cycle_momentum=False),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


def follow(program: galvatron.CompiledModel, scheduler: Any, first: int, last: int) -> list[tuple[float, float]]:
    """Losses and learning rates of steps."""
    found: list[tuple[float, float]] = []
    for seed in range(first, last):
        rate = program.optimizer.param_groups[0]["lr"]
        loss = float(program.train_step(new_batch(seed=seed)))
        found.append((loss, rate))
        scheduler.step(*[loss] * isinstance(scheduler, lr_scheduler.ReduceLROnPlateau))
    return found


@pytest.mark.parametrize("kind", some_slow(["multi step", "plateau", "sequence"], SCHEDULES))
def test_a_schedule_goes_on_from_a_checkpoint(kind: str, tmp_path: Path) -> None:
    program = compiled("dp1", optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9))
    scheduler = SCHEDULES[kind](program.optimizer)
    follow(program, scheduler, 0, 3)
    program.save(tmp_path, step=3, extra={"scheduler": scheduler.state_dict()})
    wanted = follow(program, scheduler, 3, 7)
    other = compiled("dp1", optimizer=partial(torch.optim.SGD, lr=0.02, momentum=0.9))
    again = SCHEDULES[kind](other.optimizer)
    found = other.load(tmp_path, missing_ok=True)
    assert found is not None
    again.load_state_dict(found.extra["scheduler"])
    assert follow(other, again, 3, 7) == wanted
    assert len({rate for _, rate in wanted}) > 1 or kind == "constant"


# The loss on a whole data set.


def labels_of(batch: Any) -> Tensor:
    return (batch["labels"] != -100).sum(1)


def evaluated(world: rt.World, plan: str) -> list[float]:
    program = small.compiled(plan)
    by_labels = program.evaluate(program.dataloader(small.Ragged(19)), weight=labels_of)
    whole = small.whole(small.Ragged(8), list(range(8)))
    found = [by_labels, program.evaluate([whole, whole]), float(program.eval_step(whole))]
    for weight, words in [
        (lambda batch: batch["labels"], "8 numbers"),
        (lambda batch: labels_of(batch) / 0, "one finite number"),
        (lambda batch: 1 / 0, "ZeroDivisionError"),
    ]:
        with pytest.raises(GalvatronError, match=words):
            program.evaluate([whole], weight=weight if world.rank == world.size - 1 else labels_of)
    with pytest.raises(GalvatronError, match="nothing to evaluate"):
        program.evaluate([])
    with pytest.raises(GalvatronError, match="not NoneType"):
        program.evaluate(None)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("plan", some_slow(["m2/dp2"], ["m2/dp2", "pp2/m2/1f1b/dp1", "tp2"]))
def test_the_mean_over_batches_is_that_over_the_data_set(plan: str) -> None:
    dataset = small.Ragged(19)
    with torch.no_grad():
        wanted = float(small.new_model()(**small.whole(dataset, list(range(19)))))
    for by_labels, mean, once in run_ranks(evaluated, 2, plan):
        assert math.isclose(by_labels, wanted, rel_tol=1e-12)
        assert mean == once
