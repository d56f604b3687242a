"""What a worker process does: samples from a data set, with random numbers that follow from their places alone.

So ranks that share a sample have the same one, however many workers there are, and a run that goes on later or on other
ranks draws what it would have drawn.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from galvatron.data.place import Place
from galvatron.errors import GalvatronError
from galvatron.ir.json_values import with_numbers, with_words
from galvatron.runtime import Rows

Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class Wanted:
    """One rank's samples of one batch: by block the numbers that seed them, and their indices in the data set."""

    seed: int
    epoch: int
    blocks: tuple[tuple[tuple[int, int], ...], ...]


class Indexed(Dataset[list[Any]]):
    """By what is wanted of a batch, its blocks, each collated."""

    def __init__(self, dataset: Any, collate: Collate) -> None:
        self._dataset, self._collate = dataset, collate

    def __getitem__(self, wanted: Wanted) -> list[Any]:
        with randomness_kept():
            return [self._block(wanted, block) for block in wanted.blocks]

    def _block(self, wanted: Wanted, block: tuple[tuple[int, int], ...]) -> Any:
        many = getattr(self._dataset, "__getitems__", None)
        if many is not None:
            seed(wanted.seed, wanted.epoch, block[0][0])
            samples = many([index for _, index in block])
        else:
            samples = []
            for number, index in block:
                seed(wanted.seed, wanted.epoch, number)
                samples.append(self._dataset[index])
        seed(wanted.seed, wanted.epoch, block[0][0], 1)
        return self._collate(samples)


Streamed = tuple[int, list[Any], dict[int, str | None]]
"""Of a batch of an iterable data set: its samples, this rank's blocks of them, and what each share that the rank reads
then says of its place."""


class Stream(IterableDataset[Streamed]):
    """The batches of the rest of an epoch of an iterable data set.

    Its shares, one or several, each give as many samples of a batch, share after share; a rank reads those with samples
    that it needs.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Collate,
        rows: Callable[[int], Rows],
        batch_size: int,
        drop_last: bool,
        place: Place,
    ) -> None:
        self._dataset, self._collate, self._rows = dataset, collate, rows
        self._batch_size, self._drop_last, self._place = batch_size, drop_last, place
        self._each = batch_size // len(place.streams)

    def __iter__(self) -> Iterator[Streamed]:
        with randomness_kept():
            shares = self._shares()
            given = {number: self._from_place(number, share) for number, share in shares.items()}
        at = self._place.position
        while True:
            with randomness_kept():
                found = {row: sample for number in given for row, sample in self._next(given[number], number, at)}
                is_full = len(found) == len(given) * self._each
                if not found or (not is_full and self._drop_last):
                    return
                count = self._batch_size if is_full else len(found)
                blocks = [self._block(found, block, at) for block in self._rows(count).wanted]
                streams = {number: described_stream(share) for number, share in shares.items()}
            at += count
            yield count, blocks, streams

    def read(self) -> tuple[int, ...]:
        """The numbers of the shares that have samples of this rank."""
        if len(self._place.streams) == 1:
            return (0,)
        return tuple(sorted({row // self._each for row in self._rows(self._batch_size).held}))

    def _shares(self) -> dict[int, Any]:
        """By their numbers, those that this rank reads."""
        _goes_to(self._dataset, self._place.epoch)
        count = len(self._place.streams)
        if count == 1:
            return {0: self._dataset}
        found = {number: self._dataset.shard(num_shards=count, index=number) for number in self.read()}
        for share in found.values():
            _goes_to(share, self._place.epoch)
        return found

    def _from_place(self, number: int, share: Any) -> Iterator[Any]:
        """The samples of a share from the place on: it goes there itself, or what is before is left out."""
        stream = self._place.streams[number]
        if stream is not None and hasattr(share, "load_state_dict"):
            share.load_state_dict(with_numbers(json.loads(stream)))
            return iter(share)
        samples = iter(share)
        before = self._place.position // len(self._place.streams)
        for read in range(before):
            self._seed(number, read)
            if next(samples, _END) is _END:
                raise GalvatronError(
                    f"the data set ended after {read} samples of epoch {self._place.epoch}, of which {before} were "
                    "read before: it is another one now"
                )
        return samples

    def _next(self, samples: Iterator[Any], number: int, at: int) -> Iterator[tuple[int, Any]]:
        """The samples of a batch that a share gives, by their row; fewer at the end."""
        before = at // len(self._place.streams)
        for read in range(self._each):
            self._seed(number, before + read)
            sample = next(samples, _END)
            if sample is _END:
                return
            yield number * self._each + read, sample

    def _seed(self, number: int, read: int) -> None:
        """Before the next sample of a share, after so many."""
        seed(self._place.seed, self._place.epoch, read, number, 2)

    def _block(self, samples: Mapping[int, Any], block: tuple[int, ...], at: int) -> Any:
        seed(self._place.seed, self._place.epoch, at + block[0], 1)
        return self._collate([samples[row] for row in block])


_END = object()


def _goes_to(dataset: Any, epoch: int) -> None:
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(epoch)


def described_stream(dataset: Any) -> str | None:
    """What an iterable data set says of its place, as JSON; None where it does not, or not in JSON."""
    if not (hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")):
        return None
    try:
        return json.dumps(with_words(dataset.state_dict()), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None


def as_it_is(batch: Any) -> Any:
    """For `torch.utils.data.DataLoader`, which would make tensors of numbers."""
    return batch


def mixed(*numbers: int) -> int:
    """A seed of 64 bits from several numbers."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "big")


def seed(*numbers: int) -> None:
    """Seeds the random numbers of torch, Python and numpy."""
    value = mixed(*numbers)
    torch.default_generator.manual_seed(value)  # `torch.manual_seed` takes the time to seed devices
    random.seed(value)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(value % 2**32)


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Random numbers drawn in it are none of those outside: without workers they are those of the training process."""
    numpy = sys.modules.get("numpy")
    drawn = torch.get_rng_state(), random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(drawn[0])
        random.setstate(drawn[1])
        if numpy is not None and drawn[2] is not None:
            numpy.random.set_state(drawn[2])
