"""Every sample once per epoch, on any number of ranks; what is refused, and on which ranks."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from tests.checkpoints.changed import say
from tests.data.small import LENGTH, Ragged, Streamed, compiled, numbers
from tests.marks import some_slow
from tests.ranks import run_ranks

pytestmark = pytest.mark.usefixtures("shared_captures")


class Told(Ragged):
    """Tells which samples it was asked for."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.asked: list[int] = []

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        self.asked.append(number)
        return super().__getitem__(number)


def error_of(call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(GalvatronError) as caught:
        call(*args, **options)
    return str(caught.value)


# Places.


def read(
    world: rt.World, plan: str, folder: str, count: int, size: int, until: int, streams: str
) -> list[tuple[int, list[int]]]:
    """Goes on from the last checkpoint in a folder until an epoch has gone so far, and saves: the samples that this
    rank has been given, each with its epoch."""
    program = compiled(plan)
    if any(Path(folder).iterdir()):
        program.load(folder)
    dataset = Streamed(count, keeps=streams == "keeps") if streams else Ragged(count)
    loader = program.dataloader(dataset, batch_size=size, shuffle=not streams, seed=7)
    found: list[tuple[int, list[int]]] = []
    while (loader.epoch, loader.position) < divmod(until, 10_000):
        for part in loader:
            found.append((int(part.origin.split()[-1]), numbers(part)))
            if (loader.epoch, loader.position) >= divmod(until, 10_000):
                break
    program.save(folder, step=until)
    return found


JOBS = [
    # ranks, plan, samples of a batch, epoch and samples of it until it stops
    (1, "dp1", 32, (0, 640)),
    (4, "dp4", 48, (1, 500)),
    (2, "m2/dp2", 40, (3, 0)),
]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("streams", ["", pytest.param("skips", marks=pytest.mark.slow), "keeps"])
def test_every_sample_once_per_epoch_on_changing_ranks(streams: str, tmp_path: Path) -> None:
    count = 1003 if not streams else 203
    epochs: dict[int, list[int]] = {epoch: [] for epoch in range(3)}
    order: list[list[int]] = []
    for ranks, plan, size, (epoch, position) in JOBS:
        until = 10_000 * epoch + (position if count == 1003 else position // 5)
        answers = run_ranks(read, ranks, plan, str(tmp_path), count, size, until, streams)
        for batches in zip(*answers, strict=True):
            given = sorted({number for _, part in batches for number in part})
            epochs[batches[0][0]] += given
            order.append(given)
    for found in epochs.values():
        assert sorted(found) == list(range(count))
    assert streams or order[0] != list(range(32)), "nothing was shuffled"


def reads_shares(
    world: rt.World, plan: str, folder: str, size: int, until: int, keeps: bool
) -> tuple[list[tuple[int, list[int]]], list[int]]:
    """The samples that this rank has been given, each with its epoch, and the shares that it has read."""
    program, dataset = compiled(plan), Streamed(240, keeps)
    loader = program.dataloader(dataset, batch_size=size, shards=4, drop_last=True)
    program.load(folder, missing_ok=True)
    found: list[tuple[int, list[int]]] = []
    while (loader.epoch, loader.position) < divmod(until, 10_000):
        for part in loader:
            program.eval_step(part)
            found.append((int(part.origin.split()[-1]), numbers(part)))
            if (loader.epoch, loader.position) >= divmod(until, 10_000):
                break
    program.save(folder, step=until)
    return found, sorted({*dataset.shared})


@pytest.mark.parametrize("keeps", some_slow([True], [False, True]))
def test_shares_of_a_stream_are_read_where_they_are_needed(keeps: bool, tmp_path: Path) -> None:
    epochs: dict[int, list[int]] = {0: [], 1: []}
    shares: list[list[list[int]]] = []
    for ranks, plan, size, until in ((1, "dp1", 32, 96), (4, "dp4", 16, 10_096), (2, "m2/dp2", 48, 20_000)):
        answers = run_ranks(reads_shares, ranks, plan, str(tmp_path), size, until, keeps)
        for batches in zip(*(found for found, _ in answers), strict=True):
            epochs[batches[0][0]] += sorted({number for _, part in batches for number in part})
        shares.append([own for _, own in answers])
    for found in epochs.values():
        assert sorted(found) == list(range(240))
    assert shares == [[[0, 1, 2, 3]], [[0], [1], [2], [3]], [[0, 2], [1, 3]]]


def ends_early(world: rt.World) -> tuple[list[int], list[str]]:
    """One share has a sample less than the others: the epoch ends on all ranks before it is missed."""
    program = compiled("dp2")
    loader = program.dataloader(Streamed(31), batch_size=8, shards=2, drop_last=True, workers=1)
    found = [number for part in loader for number in numbers(part)]
    messages = [
        error_of(program.dataloader, Streamed(8), name="a", shards=2),
        error_of(program.dataloader, Streamed(8), name="b", shards=3, drop_last=True),
        error_of(program.dataloader, Ragged(8), name="c", shards=2, drop_last=True),
        error_of(program.dataloader, iter([1]), name="d", shards=2, drop_last=True),
    ]
    return found, messages


def test_an_epoch_of_shares_ends_on_all_ranks() -> None:
    for rank, (found, messages) in enumerate(run_ranks(ends_early, 2)):
        assert found == [number for number in range(24) if number % 2 == rank]
        words = ["pass a batch_size that divides, and drop_last=True"] * 2 + ["needs no shards", "does not have"]
        assert all(word in message for word, message in zip(words, messages, strict=True)), messages


def loads_its_share(world: rt.World) -> list[list[int]]:
    found: list[list[int]] = []
    for whole in (False, True):
        program, dataset = compiled("dp2"), Told(16)
        loader = program.dataloader(dataset, whole_batches=whole)
        for part in loader:
            program.eval_step(part)
        found.append(dataset.asked)
    return found


def test_a_rank_loads_its_own_samples() -> None:
    everything = list(range(16))
    assert run_ranks(loads_its_share, 2) == [
        [[0, 1, 2, 3, 8, 9, 10, 11], everything],
        [[4, 5, 6, 7, 12, 13, 14, 15], everything],
    ]


class Drawing(Ragged):
    """Samples that draw random numbers of every kind."""

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        drawn = torch.tensor([int(torch.randint(9, ())), random.randrange(9), numpy.random.randint(9)])
        sample = super().__getitem__(number)
        sample["labels"][:3] = drawn
        return sample


def masking(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Hides labels that are drawn."""
    batch = default_collate(samples)
    batch["labels"][torch.rand(batch["labels"].shape) < 0.3] = -100
    return batch


def draws(world: rt.World, plan: str, workers: int) -> list[tuple[list[int], Tensor]]:
    program = compiled(plan)
    before = torch.get_rng_state(), random.getstate()
    found: list[tuple[list[int], Tensor]] = []
    for part in program.dataloader(Drawing(16), workers=workers, collate_fn=masking, seed=3):
        program.eval_step(part)
        found.append((numbers(part), part["labels"]))
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    return found


def test_random_numbers_follow_from_the_place() -> None:
    """On ranks that share samples, with and without workers, and outside of the loader nothing is drawn."""
    answers = run_ranks(draws, 2, "tp2", 0) + run_ranks(draws, 2, "pp2/m2/1f1b/dp1", 2)
    for found in answers[1:]:
        for (wanted, labels), (own, others) in zip(answers[0], found, strict=True):
            assert own == wanted and torch.equal(others, labels)
    assert len(torch.cat([labels for _, labels in answers[0]]).unique()) > 8


# What goes wrong.


class Failing(Ragged):
    """On one rank some sample cannot be read, or ends the process that reads it."""

    def __init__(self, how: str) -> None:
        super().__init__(16)
        self.how = how

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        if number == 12 and self.how == "raises":
            raise OSError("no such shard")
        if number == 12 and self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(number)


class Own(Ragged):
    """Samples drawn from a generator that each process has for itself."""

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        sample = super().__getitem__(number)
        return {**sample, "ids": torch.randint(9, (LENGTH,), generator=torch.Generator().manual_seed(os.getpid()))}


def longer(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([value, value], 1) for name, value in default_collate(samples).items()}


def fewer(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return default_collate(samples[1:])


def once(count: int) -> Iterator[dict[str, Tensor]]:
    yield from (Ragged(count)[number] for number in range(count))


def goes_through(program: Any, dataset: Any, epochs: int = 1, **options: Any) -> None:
    loader = program.dataloader(dataset, **options)
    for _ in range(epochs):
        for part in loader:
            program.eval_step(part)


def refused(world: rt.World) -> list[str]:
    program, other = compiled("dp2"), world.rank == 1
    go = goes_through
    found = [
        error_of(go, program, Ragged(16 + other), name="a"),
        error_of(go, program, Ragged(16), collate_fn=longer, name="b"),
        error_of(go, program, Ragged(16), collate_fn=fewer, name="c"),
        error_of(go, program, Failing("raises" if other else ""), name="d"),
        error_of(go, program, once(24), epochs=2, name="e"),
        error_of(go, program, Streamed(16 + 8 * other), name="f"),
        error_of(go, program, Streamed(16), shuffle=True, name="g"),
        error_of(go, program, Ragged(16), workers=-1 if other else 0, name="h"),
        error_of(go, program, Ragged(4), drop_last=True, name="i"),
        error_of(go, program, 5, name="j"),
        error_of(go, program, Ragged(16), name="b"),
        error_of(go, compiled("dp2", "couples"), Ragged(19)),
    ]
    goes_through(program, Ragged(19), name="k")
    goes_through(compiled("tp2"), Ragged(8))
    found.append(error_of(go, compiled("tp2"), Own(8)))
    return found


def test_what_a_rank_cannot_load_is_refused_on_all() -> None:
    words = [
        "the length of the data set is 16 on rank 0 and 17 on rank 1",
        "has shape (4, 16), but the program was captured with",
        "collate_fn made 'ids' of shape (3, 8) of 4 samples",
        "OSError: no such shard",
        "the data set gave no batch in epoch 1",
        "what the data set gives from sample 16 on is the end on rank 0 and 8 samples on rank 1",
        "shuffle there",
        "workers must be a whole number of at least 0, not -1",
        "there is no batch of 8",
        "int is neither",
        "there is a loader 'b'",
        "a batch of 3 samples does not divide into 2 data-parallel shards",
        "rank 0 and rank 1 read the same samples of the first batch",
    ]
    for answer in run_ranks(refused, 2):
        for text, expected in zip(answer, words, strict=True):
            assert expected in text, text


def loses_a_worker(world: rt.World) -> str:
    return error_of(goes_through, compiled("dp2"), Failing("dies" if world.rank == 1 else ""), workers=1)


def test_a_worker_that_dies_is_told_on_all_ranks() -> None:
    for answer in run_ranks(loses_a_worker, 2):
        assert "of epoch 0 on could not be loaded: RuntimeError: DataLoader worker" in answer


def test_of_two_iterations_the_older_one_ends() -> None:
    loader = compiled("m2/dp1").dataloader(Ragged(12), batch_size=4)
    first = iter(loader)
    next(first)
    second = iter(loader)
    with pytest.raises(GalvatronError, match="has gone to another place"):
        next(first)
    next(second)
    assert loader.position == 8


def test_a_checkpoint_that_is_loaded_ends_an_iteration(tmp_path: Path) -> None:
    program = compiled("m2/dp1")
    loader = program.dataloader(Ragged(12), batch_size=4)
    parts = iter(loader)
    next(parts)
    program.save(tmp_path, step=1)
    next(parts)
    program.load(tmp_path)
    with pytest.raises(GalvatronError, match="has gone to another place"):
        next(parts)
    assert loader.position == 4
    assert [part.origin for part in loader] == ["sample 4 of epoch 0", "sample 8 of epoch 0"]


def test_a_place_is_refused_by_another_data_set(tmp_path: Path) -> None:
    program = compiled("dp1")
    loader = program.dataloader(Ragged(16))
    next(iter(loader))
    folder = program.save(tmp_path, step=1)
    fresh = compiled("dp1")
    before = fresh.dataloader(Ragged(17))
    assert "was saved with 16 samples, but has 17" in error_of(fresh.load, tmp_path)
    assert before.position == 0
    index = json.loads((folder / "index.json").read_text())
    say(folder / "index.json", loaders={"train": index["loaders"]["train"] | {"position": "x"}})
    assert "the place of loader 'train' is damaged" in error_of(compiled("dp1").load, tmp_path)
