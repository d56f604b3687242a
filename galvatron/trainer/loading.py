"""The loaders of a compiled program as `transformers.Trainer` wants them: torch's `DataLoader`s of one batch at a time.

The loop of `Trainer` takes `gradient_accumulation_steps` batches for each update, and updates after the last one. Here
a step takes the whole global batch at once, so that all but the last of these *turns* have nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, SequentialSampler
from transformers import TrainingArguments

from galvatron import data
from galvatron.compiled import CompiledModel
from galvatron.data.fetching import randomness_kept, seed
from galvatron.data.options import is_stream
from galvatron.runtime import Part

IDLE: Mapping[str, Any] = {}
"""What a turn has in which nothing is done."""


class Ordered(Dataset[Any]):
    """The samples of a data set, epoch by epoch in the order of a sampler.

    The order of an epoch follows from its number and the seed alone. That of a `RandomSampler` is the one that
    `transformers.Trainer` has.

    Args:
        seeded_by: the seed of samplers that have none of their own.
        multiple: samples that do not fill a batch of so many are left out of each epoch; 1, none are.
    """

    def __init__(self, dataset: Any, sampler: Sampler[int], *, seeded_by: int, data_seed: int | None, multiple: int):
        if isinstance(sampler, RandomSampler):
            sampler = SeedableRandomSampler(
                sampler.data_source, sampler.replacement, sampler._num_samples, data_seed=data_seed
            )
        self._dataset, self._sampler, self._seed, self._multiple = dataset, sampler, seeded_by, multiple
        self._indices: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self._sampler) // self._multiple * self._multiple  # type: ignore[arg-type]  # those of Trainer have it

    def set_epoch(self, epoch: int) -> None:
        """The samples from now on are those of an epoch; workers that load already do not see it."""
        with randomness_kept():
            seed(self._seed, epoch)
            if hasattr(self._sampler, "set_epoch"):
                self._sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # it was asked
            self._indices = [int(index) for index in self._sampler]

    def __getitem__(self, place: int) -> Any:
        return self._dataset[self._indices[place]]


class Turns(Dataset[Mapping[str, Any]]):
    """By the number of a turn in its epoch, what is done in it.

    Args:
        loader: gives the batches of steps, epoch by epoch.
        ordered: what it loads.
        samples: of a turn.
        accumulated: turns of a step.
    """

    def __init__(self, loader: data.Loader, ordered: Ordered, samples: int, accumulated: int) -> None:
        self._loader, self._ordered, self._accumulated = loader, ordered, accumulated
        self.count = -(-len(ordered) // samples)
        self._parts: Iterator[Part] | None = None

    def __len__(self) -> int:
        """The samples of an epoch."""
        return len(self._ordered)

    def __getitem__(self, turn: int) -> Mapping[str, Any]:
        if turn < self.count - 1 and (turn + 1) % self._accumulated:
            return IDLE
        if self._parts is None or turn < self._accumulated:
            self._parts = self._begun(anew=turn < self._accumulated)
        return next(self._parts)

    def _begun(self, *, anew: bool) -> Iterator[Part]:
        place = self._loader.place()
        if anew and place.position:  # the epoch before was left early
            self._loader.go_to(replace(place, epoch=place.epoch + 1, position=0))
        self._ordered.set_epoch(self._loader.epoch)
        return iter(self._loader)


class StreamedTurns(IterableDataset[Mapping[str, Any]]):
    """What is done in the turns of an iterable data set.

    Args:
        loader: gives the batches of steps, epoch by epoch.
        count: turns of an epoch, where the data set says how many samples it has.
        samples: of a turn.
        accumulated: turns of a step.
    """

    def __init__(self, loader: data.Loader, count: int | None, samples: int, accumulated: int) -> None:
        self._loader, self._count = loader, count
        self._samples, self._accumulated = samples, accumulated
        self._passed: int | None = None

    def __len__(self) -> int:
        """The turns of an epoch, which `torch.utils.data.DataLoader` takes for its batches.

        Raises:
            TypeError: nobody knows.
        """
        if self._count is None:
            raise TypeError("an iterable data set does not say how many samples it has")
        return self._count

    def goes_on(self, steps: int) -> None:
        """The run had so many steps before: `Trainer` leaves their turns out, or those of the epoch where it knows."""
        if self._count is not None:
            steps %= -(-self._count // self._accumulated)
        self._passed = steps * self._accumulated

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        passed, self._passed = self._passed, None
        place = self._loader.place()
        if passed is None and place.position:  # the epoch before was left early
            streams = (None,) * len(place.streams)
            self._loader.go_to(replace(place, epoch=place.epoch + 1, position=0, streams=streams))
        yield from [IDLE] * (passed or 0)
        for part in self._loader:
            is_counted = self._count is not None and part.samples < self._samples * self._accumulated
            turns = -(-part.samples // self._samples) if is_counted else self._accumulated
            yield from [IDLE] * (turns - 1)
            yield part


@dataclass(frozen=True)
class Source:
    """A data set as a trainer has it.

    Attributes:
        dataset: that was given.
        used: the same without what forward does not take.
        collate: from samples to a batch.
        sampler: its order; None, that of the data set.
        samples: of a turn.
        accumulated: turns of a step.
    """

    dataset: Any
    used: Any
    collate: Callable[[Any], Any]
    sampler: Sampler[int] | None
    samples: int
    accumulated: int


@dataclass(frozen=True)
class Loaded:
    """A data set, the program's loader of its samples, and their order where they have one."""

    source: Source
    loader: data.Loader
    ordered: Ordered | None

    @staticmethod
    def of(
        compiled: CompiledModel, source: Source, args: TrainingArguments, name: str, *, whole_batches: bool
    ) -> Loaded:
        """A new loader. Collective."""
        ordered, seeded_by = None, args.seed if args.data_seed is None else args.data_seed
        if not is_stream(source.used):
            ordered = Ordered(
                source.used,
                source.sampler or SequentialSampler(source.used),
                seeded_by=seeded_by,
                data_seed=seeded_by,
                multiple=source.samples if args.dataloader_drop_last else 1,
            )
        loader = compiled.dataloader(
            source.used if ordered is None else ordered,
            batch_size=source.samples * source.accumulated,
            collate_fn=source.collate,
            seed=seeded_by,
            workers=args.dataloader_num_workers,
            prefetch=args.dataloader_prefetch_factor or 2,
            whole_batches=whole_batches,
            name=name if name == "train" or ordered is None else f"{name} of {len(ordered)} samples",
        )
        return Loaded(source, loader, ordered)

    def turns(self, *, anew: bool) -> Turns | StreamedTurns:
        """Those of an epoch; of the first one if `anew`."""
        if anew:
            place = self.loader.place()
            self.loader.go_to(replace(place, epoch=0, position=0, streams=(None,) * len(place.streams)))
        if self.ordered is None:
            used, each = self.source.used, self.source.samples
            count = -(-len(used) // each) if hasattr(used, "__len__") else None
            return StreamedTurns(self.loader, count, each, self.source.accumulated)
        return Turns(self.loader, self.ordered, self.source.samples, self.source.accumulated)


def loader_of(turns: Turns | StreamedTurns) -> DataLoader[Mapping[str, Any]]:
    """For the loop of `Trainer`, which may leave out the first turns of an epoch."""
    generator = torch.Generator()  # or it would draw from that of the process
    if isinstance(turns, StreamedTurns):
        return DataLoader(turns, batch_size=None, collate_fn=_as_it_is, generator=generator)
    return DataLoader(turns, sampler=range(turns.count), collate_fn=_the_only, generator=generator)


def _as_it_is(turn: Any) -> Any:
    return turn


def _the_only(turns: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    (turn,) = turns
    return turn
