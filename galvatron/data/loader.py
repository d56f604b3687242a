"""A loader: the batches of a data set, epoch by epoch, and its place in them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from galvatron.data.fetching import Indexed, Stream, Streamed, Wanted, as_it_is, mixed
from galvatron.data.joining import ByName, check_shared, digests, joined
from galvatron.data.options import Options, is_stream, length_of
from galvatron.data.place import Place
from galvatron.errors import GalvatronError
from galvatron.runtime import Calls, Part, RowTable, World, failure
from galvatron.runtime.comm import all_ranks, gather_objects

_LOG = logging.getLogger("galvatron")

_ADVICE = (
    "; workers=0 shows where in the data set or collate_fn; a worker that was killed may have lacked memory: pass "
    "fewer, or a smaller prefetch"
)


@dataclass(frozen=True)
class Serves:
    """The program that a loader is for.

    Attributes:
        table: who reads which samples.
        fits: raises for a number of samples that the program is not for.
        by_name, batched: see `joined`.
    """

    world: World
    calls: Calls
    table: RowTable
    fits: Callable[[int], None]
    by_name: ByName
    batched: frozenset[str]


class Loader:
    """Batches of a data set for a compiled model, of which this rank loads the samples that it reads.

    Each iteration gives the batches of one epoch, or those that are left of it. All ranks iterate alike.
    """

    def __init__(self, serves: Serves, dataset: Any, options: Options) -> None:
        self._serves, self._dataset, self._options = serves, dataset, options
        self._streams = (None,) * options.shards if is_stream(dataset) else ()
        self._place = Place(0, 0, options.seed, options.shuffle, length_of(dataset), self._streams)
        self._rows_of = partial(serves.table.of, everything=options.whole_batches)
        self._first = True
        self._iterations = 0
        self.check_place(self._place)

    @property
    def epoch(self) -> int:
        """That of the next sample."""
        return self._place.epoch

    @property
    def position(self) -> int:
        """Samples of this epoch that were given so far, to all ranks together."""
        return self._place.position

    def __len__(self) -> int:
        """The batches of a whole epoch.

        Raises:
            TypeError: the data set is iterable, so that nobody knows.
        """
        if self._place.length is None:
            raise TypeError("an iterable data set does not say how many batches it has")
        return len(self._batches(0))

    def _batches(self, at: int) -> list[tuple[int, int]]:
        """The batches of an epoch from a position on: where they begin, and their samples."""
        length, size = self._place.length, self._options.batch_size
        assert length is not None
        found = [(first, min(size, length - first)) for first in range(at, length, size)]
        return [batch for batch in found if batch[1] == size or not self._options.drop_last]

    def place(self) -> Place:
        """Where it is: behind the last batch that it gave, whatever workers have loaded since."""
        return self._place

    def whole_place(self) -> Place:
        """The same, with what shares say of themselves that other ranks read. Collective."""
        place, world = self._place, self._serves.world
        if len(self._streams) < 2 or world.size == 1:
            return place
        with failure.guarded("save"):
            everyone = gather_objects(place.streams, all_ranks(), phase="checkpoint")
        told = (next((text for text in texts if text is not None), None) for texts in zip(*everyone, strict=True))
        return replace(place, streams=tuple(told))

    def go_to(self, place: Place) -> None:
        """Goes on from there with the next iteration; one that is under way ends."""
        self._place = place
        self._iterations += 1

    def check_place(self, place: Place) -> None:
        """
        Raises:
            GalvatronError: it cannot go on from there: it is a place in another data set, or what is left at the end
                makes no batch.
        """
        place.check_follows(self._options.name, self._place)
        sizes = {self._options.batch_size}
        if place.length is not None:
            sizes = {samples for at in (0, place.position) for _, samples in self._batches(at)}
        for samples in sorted(sizes):
            self._serves.fits(samples)
            self._rows_of(samples)

    def __iter__(self) -> Iterator[Part]:
        self._iterations += 1
        return self._alone(self._streamed() if self._place.length is None else self._indexed(), self._iterations)

    def _alone(self, parts: Iterator[Part], iteration: int) -> Iterator[Part]:
        """The parts, as long as no other iteration has begun, which goes on where this one was."""
        while iteration == self._iterations and (part := next(parts, None)) is not None:
            yield part
        if iteration != self._iterations:
            raise GalvatronError(
                f"loader {self._options.name!r} has gone to another place, by load() or since it is iterated over anew "
                "(which goes on where this iteration was): go on with a new iteration, or make another loader"
            )

    def _indexed(self) -> Iterator[Part]:
        batches = self._batches(self._place.position)
        source = Indexed(self._dataset, self._options.collate_fn)
        loaded = self._loading(source, self._wanted(self._place, batches))
        following = replace(self._place, epoch=self._place.epoch + 1, position=0)
        for number, (at, samples) in enumerate(batches, 1):
            part = self._part(loaded, samples, at)
            self._place = following if number == len(batches) else replace(self._place, position=at + samples)
            yield part
        self._place = following

    def _streamed(self) -> Iterator[Part]:
        options, start = self._options, self._place
        source = Stream(self._dataset, options.collate_fn, self._rows_of, options.batch_size, options.drop_last, start)
        unknown = any(start.streams[number] is None for number in source.read())
        if start.position and unknown and self._serves.world.rank == 0:
            _LOG.warning(
                "the data set of loader %r does not keep its place (state_dict, load_state_dict): %d samples of each "
                "share are read and left out",
                options.name,
                start.position // options.shards,
            )
        loaded = self._loading(source, None)
        while (found := self._agreed(loaded)) is not None:
            samples, blocks, told = found
            at = self._place.position
            part = self._part(iter([blocks]), samples, at)
            streams = tuple(told.get(number) for number in range(options.shards))
            self._place = replace(self._place, position=at + samples, streams=streams)
            yield part
        if self._place.position == 0:
            raise GalvatronError(
                f"the data set gave no batch in epoch {start.epoch}: one that is iterated over again must begin anew, "
                "as a torch.utils.data.IterableDataset does and a generator does not"
            )
        self._place = replace(start, epoch=start.epoch + 1, position=0, streams=self._streams)

    def _agreed(self, loaded: Iterator[Streamed]) -> Streamed | None:
        """The next batch of an iterable data set, which ends on all ranks at once. Collective."""
        calls = self._serves.calls
        with calls.agreeing("the next batch") as facts:
            try:
                found = next(loaded, None)
            except Exception as wrong:
                raise self._told(wrong, self._place.position) from wrong
            if self._options.shards == 1:
                number = "the end" if found is None else f"{found[0]} samples"
                facts[f"what the data set gives from sample {self._place.position} on"] = number
        if self._options.shards > 1 and not calls.on_all(found is not None):
            return None
        return found

    def _part(self, loaded: Iterator[list[Any]], samples: int, at: int) -> Part:
        """This rank's samples of a batch; an error of this rank is raised by the step that is given them, on all."""
        rows, serves = self._rows_of(samples), self._serves
        values: dict[str, Any] = {}
        error = None
        try:
            values = joined(next(loaded), rows, serves.by_name, serves.batched)
        except Exception as wrong:
            error = self._told(wrong, at)
        if self._first and not self._options.whole_batches and serves.world.size > 1:
            own = {} if error else digests(values, rows, serves.batched)
            serves.calls.check("the first batch", None, {})
            with failure.guarded("dataloader"):
                everyone = gather_objects(own, all_ranks(), phase="batch")
            check_shared(everyone)
        self._first = False
        return Part(values, rows, f"sample {at} of epoch {self._place.epoch}", error)

    def _told(self, error: Exception, at: int) -> GalvatronError:
        if isinstance(error, GalvatronError):
            return error
        return GalvatronError(
            f"the batch from sample {at} of epoch {self._place.epoch} on could not be loaded: "
            f"{type(error).__name__}: {error}{_ADVICE if self._options.workers else ''}"
        )

    def _wanted(self, place: Place, batches: list[tuple[int, int]]) -> Iterator[Wanted]:
        order = _order(place)
        for at, samples in batches:
            blocks = self._rows_of(samples).wanted
            numbered = (tuple((at + row, int(order[at + row])) for row in block) for block in blocks)
            yield Wanted(place.seed, place.epoch, tuple(numbered))

    def _loading(self, source: Any, wanted: Iterator[Wanted] | None) -> Iterator[Any]:
        """What torch's loader gives, in this process or from workers."""
        options, workers = self._options, self._options.workers
        return iter(
            DataLoader(
                source,
                batch_size=None,
                sampler=wanted,
                collate_fn=as_it_is,
                num_workers=workers,
                prefetch_factor=options.prefetch if workers else None,
                timeout=options.timeout_s if workers else 0,
                pin_memory=self._serves.world.device.type == "cuda",
                generator=torch.Generator(),  # or it would draw from that of the process
            )
        )


def _order(place: Place) -> torch.Tensor:
    """The indices of a data set in the order of an epoch."""
    assert place.length is not None
    if not place.shuffle:
        return torch.arange(place.length)
    generator = torch.Generator().manual_seed(mixed(place.seed, place.epoch))
    return torch.randperm(place.length, generator=generator)
