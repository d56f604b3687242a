"""Data of every kind under `GalvatronTrainer`: streams, batches that are padded as a whole, several evaluation sets."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from galvatron import runtime as rt
from galvatron.trainer import last_checkpoint
from tests.marks import some_slow
from tests.ranks import run_ranks
from tests.trainer.small import Sentences, Told, logs_of, plain_trainer, trained, trainer

pytestmark = pytest.mark.usefixtures("shared_captures")

ALONE = rt.World(0, 1, torch.device("cpu"))


class Read(IterableDataset[dict[str, Tensor]]):
    """The same samples, which do not say how many they are."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self._sentences = Sentences(count, seed)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield from (self._sentences[index] for index in range(len(self._sentences)))


STREAMED: dict[str, Any] = {
    "train_dataset": Read(24),
    "eval_dataset": Read(9, seed=1),
    "args": {"max_steps": 5, "num_train_epochs": 3.0, "save_strategy": "steps", "save_steps": 2},
}
"""Steps of eight samples, so that the last ones are of the second epoch."""


def streamed(world: rt.World, folder: Path, plan: str, stop: int | None, resumed: bool) -> Any:
    made = trainer(folder, plan, world.size, stop, **STREAMED)
    found = trained(made, last_checkpoint(folder) if resumed else None)
    return found, made.evaluate()


def without_pace(log: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in log.items() if key in ("loss", "grad_norm", "learning_rate")}


def steps_of(logs: list[dict[str, float]]) -> list[dict[str, float]]:
    return [without_pace(log) for log in logs if "loss" in log]


@pytest.mark.parametrize("plan", some_slow(["dp1"], ["dp1", "dp2-zero3", "pp2/m2/1f1b/dp1"]))
def test_a_stream_is_gone_on_with(tmp_path: Path, plan: str) -> None:
    def on_ranks(folder: Path, stop: int | None, resumed: bool) -> Any:
        arguments = folder, plan, stop, resumed
        return streamed(ALONE, *arguments) if plan == "dp1" else run_ranks(streamed, 2, *arguments, timeout=240)[0]

    (logs, values), evaluated = on_ranks(tmp_path / "whole", None, False)
    wanted, plain_values = trained(plain_trainer(tmp_path / "plain", **STREAMED))
    assert steps_of(logs) == [pytest.approx(log, rel=1e-6) for log in steps_of(wanted)]
    (before, _), _ = on_ranks(tmp_path / "run", 3, False)
    (after, own), _ = on_ranks(tmp_path / "run", None, True)
    assert steps_of(before)[:2] + steps_of(after) == steps_of(logs)
    for name, value in values.items():
        assert torch.equal(own[name], value)
        torch.testing.assert_close(value, plain_values[name], rtol=1e-6, atol=1e-7)
    assert evaluated["eval_rows"] == 9
    assert evaluated["eval_samples_per_second"] == pytest.approx(9 / evaluated["eval_runtime"], rel=0.01)


class Counted(Read):
    """A stream that says how many samples it has."""

    def __len__(self) -> int:
        return len(self._sentences)


class EndsEpochs(TrainerCallback):
    """Leaves epochs early."""

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        control.should_epoch_stop |= state.global_step in (2, 3)


STREAMS: dict[str, dict[str, Any]] = {
    "counted": {"train_dataset": Counted(27), "args": {"num_train_epochs": 1.5}},
    "left early": {"train_dataset": Read(40), "args": {"max_steps": 6}, "callbacks": [Told(), EndsEpochs()]},
}


@pytest.mark.parametrize("kind", some_slow(["left early"], STREAMS))
def test_streams_are_trained_on_as_trainer_does(tmp_path: Path, kind: str) -> None:
    wanted, values = trained(plain_trainer(tmp_path / "plain", **copy.deepcopy(STREAMS[kind])))
    logs, own = trained(trainer(tmp_path / "own", "dp1", **copy.deepcopy(STREAMS[kind])))
    assert steps_of(logs) == [pytest.approx(log, rel=1e-6) for log in steps_of(wanted)]
    for name, value in values.items():
        torch.testing.assert_close(own[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_a_counted_stream_is_gone_on_with(tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_dataset": Counted(27)}
    options["args"] = {"num_train_epochs": 2.0, "save_strategy": "steps", "save_steps": 5, "eval_strategy": "no"}
    logs, values = trained(trainer(tmp_path / "whole", "dp1", **copy.deepcopy(options)))
    before, _ = trained(trainer(tmp_path / "run", "dp1", stop=6, **copy.deepcopy(options)))
    after, own = trained(trainer(tmp_path / "run", "dp1", **options), last_checkpoint(tmp_path / "run"))
    assert steps_of(before)[:5] + steps_of(after) == steps_of(logs)
    assert all(torch.equal(own[name], value) for name, value in values.items())


def test_an_evaluation_begins_anew(tmp_path: Path) -> None:
    """Also after one that was left in the middle."""
    made = trainer(tmp_path, "dp1", eval_dataset=Read(9, seed=1))
    wanted = made.evaluate()["eval_loss"]
    batches = iter(made.get_eval_dataloader())
    next(batches)
    assert made.evaluate()["eval_loss"] == wanted


class Ignored(Sentences):
    """Samples of which no label counts, so that the model's own loss is no number."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {**super().__getitem__(index), "labels": torch.full((len(self.labels[0]),), -100)}


def test_a_loss_that_is_no_number_is_told(tmp_path: Path) -> None:
    made = trainer(tmp_path, "dp1")
    found = made.evaluate(Ignored(5))  # type: ignore[arg-type]  # Trainer wants one of its own data sets
    assert math.isnan(found["eval_loss"]) and found["eval_rows"] == 5


class Uneven(Sentences):
    """Samples of unequal lengths."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        length = 3 + index * 7 % 6
        return {name: value[:length] for name, value in super().__getitem__(index).items()}


def padded(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """To the longest of a batch."""
    found = {
        name: torch.nn.utils.rnn.pad_sequence([sample[name] for sample in samples], True, filler)
        for name, filler in (("input_ids", 0), ("labels", -100))
    }
    return found | {"attention_mask": torch.ones_like(found["input_ids"])}


def whole(world: rt.World, folder: Path, plan: str) -> Any:
    lengths = {name: {1: "S"} for name in ("input_ids", "labels", "attention_mask")}
    made = trainer(folder, plan, world.size, whole_batches=True, dynamic=lengths, **PADDED)
    return trained(made)


PADDED: dict[str, Any] = {
    "train_dataset": Uneven(27),
    "data_collator": padded,
    "compute_metrics": None,
    "args": {"eval_strategy": "no", "gradient_accumulation_steps": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["dp2", "pp2/m2/1f1b/dp1"])
def test_rows_that_are_padded_to_the_longest_of_a_batch(tmp_path: Path, plan: str) -> None:
    wanted, values = trained(plain_trainer(tmp_path / "plain", **PADDED))
    for logs, own in run_ranks(whole, 2, tmp_path / "own", plan, timeout=240):
        assert steps_of(logs) == [pytest.approx(log, rel=1e-6) for log in steps_of(wanted)]
        for name, value in values.items():
            torch.testing.assert_close(own[name], value, rtol=1e-6, atol=1e-7)


SETS: dict[str, Any] = {"eval_dataset": {"first": Sentences(9, seed=1), "second": Sentences(6, seed=2)}}


def several(world: rt.World, folder: Path, plan: str) -> Any:
    made = trainer(folder, plan, world.size, **SETS)
    return made.evaluate(), trained(made)


@pytest.mark.slow
def test_several_evaluation_sets(tmp_path: Path) -> None:
    plain = plain_trainer(tmp_path / "plain", **SETS)
    wanted = plain.evaluate()
    plain.train()
    of_sets = [log for log in logs_of(plain) if any(key.startswith("eval_") for key in log)]
    for evaluated, (logs, _) in run_ranks(several, 2, tmp_path / "own", "dp2", timeout=240):
        for name in ("eval_first_loss", "eval_second_loss", "eval_first_rows", "eval_second_hits"):
            assert evaluated[name] == pytest.approx(wanted[name], rel=1e-6)
        assert [log for log in logs if any(key.startswith("eval_") for key in log)] == [
            pytest.approx(log, rel=1e-6) for log in of_sets
        ]
