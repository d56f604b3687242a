"""Who reads which samples of a batch: the rows of every rank, and of which it tells the others.

A stage cuts its inputs along the samples into micro-batches, and these over mesh axes. What an index of the samples is
cut into in the same way are the samples that the rank needs. Each rank knows the cuts of all (`RowTable`), so that it
finds, without asking, what the others read of a batch of any size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from galvatron.errors import PlanError
from galvatron.runtime.slices import Sharded, in_cutting_order
from galvatron.runtime.stage import BatchInput, Stage
from galvatron.schedules import Schedule


@dataclass(frozen=True)
class Cut:
    """How the samples of a batch input are cut for one rank.

    Attributes:
        places: what each axis does to the samples, in cutting order: the slice, the ranks, this one's place.
        whole: all micro-batches are read at once, as by an epilogue.
        stretches: every micro-batch has a stretch of each of so many shards.
    """

    places: tuple[tuple[Sharded, int, int], ...]
    whole: bool
    stretches: int

    @staticmethod
    def of(stage: Stage, wanted: BatchInput) -> Cut:
        """The cut of an input that holds samples."""
        cuts = in_cutting_order(cut for cut in wanted.placements if cut[1].dim == 0)
        places = tuple((place, axis.size, axis.index) for axis, place in cuts)
        return Cut(places, wanted.epilogue, stage.epilogue_shards)

    def parts(self, samples: Sequence[int], micro_batches: int) -> list[list[int]]:
        """Which of the samples this rank reads, in each micro-batch.

        Raises:
            PlanError: a micro-batch does not divide.
        """
        parts = [samples] if self.whole else _micro_batches(samples, micro_batches, self.stretches)
        return [self._own(part) for part in parts]

    def _own(self, part: Sequence[int]) -> list[int]:
        for place, ranks, index in self.places:
            if len(part) % (place.pieces(ranks) * place.outer):
                raise PlanError(f"{len(part)} samples of a micro-batch do not divide over {ranks} ranks")
            part = [part[i] for i in place.cells(index, ranks, len(part))]
        return list(part)


def _micro_batches(samples: Sequence[int], count: int, stretches: int) -> list[Sequence[int]]:
    """The samples of each micro-batch.

    For an epilogue every one has a stretch of each of its shards, so that what a rank has of them, laid end to end, is
    its shard of the batch.
    """
    stretches = max(1, stretches)
    each = len(samples) // (stretches * count)
    starts = [range(i * each, len(samples), count * each) for i in range(count)]
    return [[samples[k] for at in start for k in range(at, at + each)] for start in starts]


@dataclass(frozen=True)
class Reads:
    """What a rank reads of a batch: by stage, how samples are cut, and whether a step reads all of them."""

    cuts: tuple[tuple[int, frozenset[Cut]], ...]
    whole: frozenset[int]

    @staticmethod
    def of(stages: Sequence[Stage]) -> Reads:
        """What the stages of this rank read."""
        cuts = {
            stage.index: frozenset(
                Cut.of(stage, wanted) for wanted in stage.batch_inputs if wanted.samples and not wanted.whole
            )
            for stage in stages
        }
        whole = frozenset(s.index for s in stages if any(wanted.whole for wanted in s.batch_inputs))
        return Reads(tuple(cuts.items()), whole)


@dataclass(frozen=True)
class Sizes:
    """Into how many micro-batches batches are cut.

    Attributes:
        degree: the number of pipeline ranks.
        limit: micro-batches of the plan.
        shards: what a micro-batch must divide into.
    """

    schedule: Schedule
    degree: int
    limit: int
    shards: int

    def micro_batches(self, samples: int) -> int:
        """As many as the schedule and the batch allow, at most those of the plan.

        Raises:
            PlanError: the batch does not divide into shards.
        """
        if samples < 1 or samples % self.shards:
            raise PlanError(
                f"a batch of {samples} samples does not divide into {self.shards} data-parallel shards: pass a "
                f"multiple of {self.shards} samples, or choose another plan"
            )
        return next(m for m in range(self.limit, 0, -1) if self._allows(samples, m))

    def _allows(self, samples: int, micro_batches: int) -> bool:
        return samples % (micro_batches * self.shards) == 0 and self.schedule.allows(self.degree, micro_batches)

    def repeated(self, samples: int, usual: int) -> tuple[int, int]:
        """How often samples are repeated so that they divide into shards, and the micro-batches of that: the least
        number that makes none larger than that of a batch of the `usual` size, where there is one.
        """
        copies = self.shards // math.gcd(samples, self.shards)
        slots = samples * copies
        if copies == 1:
            return 1, self.micro_batches(slots)
        enough = max(1, -(-slots * self.limit // usual))
        upwards = (m for m in range(enough, slots // self.shards + 1) if self._allows(slots, m))
        return copies, next(upwards, 0) or next(m for m in range(enough, 0, -1) if self._allows(slots, m))


@dataclass(frozen=True)
class Telling:
    """How the ranks of a stage make up what each reads of all samples: every sample is told by one of them.

    Attributes:
        own: places, in this rank's tensors, of the samples that it tells.
        counts: how many each rank tells.
        order: where each sample of the batch is in what all tell, laid end to end in parts of the largest count.
    """

    own: Tensor
    counts: tuple[int, ...]
    order: Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Which samples of a batch of `samples` this rank has, and what it does with them.

    Attributes:
        copies: every sample counts so often, and the loss that comes of it is divided by as much.
        blocks: samples that the same ranks have, block by block; this rank's tensors have them in this order. None
            where they have all samples in order.
        telling: by stage, how ranks make up what a step reads of the whole batch; none where each has all.
    """

    samples: int
    micro_batches: int
    copies: int = 1
    blocks: tuple[tuple[int, ...], ...] | None = None
    telling: Mapping[int, Telling] = field(default_factory=dict)
    _parts: dict[Cut, list[list[int]]] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """Samples as the stages count them."""
        return self.samples * self.copies

    @cached_property
    def held(self) -> Sequence[int]:
        """The samples of this rank, in the order of its tensors."""
        return range(self.samples) if self.blocks is None else [row for block in self.blocks for row in block]

    @property
    def wanted(self) -> tuple[tuple[int, ...], ...]:
        """The blocks in which the samples of this rank are loaded."""
        return (tuple(self.held),) if self.blocks is None else self.blocks

    def parts(self, cut: Cut) -> list[list[int]]:
        """Where, in this rank's tensors, the samples of each micro-batch of an input are."""
        if cut not in self._parts:
            place = {row: at for at, row in enumerate(self.held)}
            found = cut.parts([*range(self.samples)] * self.copies, self.micro_batches)
            self._parts[cut] = [[place[row] for row in part] for part in found]
        return self._parts[cut]


def taken(value: Tensor, at: Sequence[int]) -> Tensor:
    """Rows of a tensor: a view where they lie side by side."""
    first = at[0]
    if at == list(range(first, first + len(at))):
        return value.narrow(0, first, len(at))
    return value.index_select(0, torch.tensor(at, device=value.device))


class RowTable:
    """The rows of every rank. Plain data, which processes may send each other.

    Args:
        reads: of every rank.
        usual: samples of a batch of the plan's size.
        unequal: why samples cannot be repeated until they divide into shards; empty where they can.
    """

    def __init__(self, reads: Sequence[Reads], rank: int, sizes: Sizes, *, usual: int, unequal: str) -> None:
        self._reads = tuple(reads)
        self._rank = rank
        self._sizes, self._usual, self._unequal = sizes, usual, unequal
        self._known: dict[tuple[int, bool], Rows] = {}

    def of(self, samples: int, *, everything: bool = False) -> Rows:
        """The rows of this rank of a batch of so many samples.

        Args:
            everything: all ranks have all of them.

        Raises:
            PlanError: it does not divide into shards, and its samples cannot be repeated.
        """
        key = samples, everything
        if key not in self._known:
            self._known[key] = self._found(samples, everything)
        return self._known[key]

    def _found(self, samples: int, everything: bool) -> Rows:
        copies, micro_batches = self._sizes.repeated(samples, self._usual)
        if copies > 1 and self._unequal:
            raise PlanError(
                f"a batch of {samples} samples does not divide into {self._sizes.shards} data-parallel shards, and "
                f"its samples cannot be repeated until it does, since {self._unequal}: pass drop_last=True, or a "
                "batch_size after which what is left divides"
            )
        if everything:
            return Rows(samples, micro_batches, copies)
        held = self._held(samples, copies, micro_batches)
        blocks = _blocks(held, self._rank)
        places = torch.full((samples,), -1, dtype=torch.int64)
        own = [row for block in blocks for row in block]
        places[own] = torch.arange(len(own))
        stages = sorted(self._reads[self._rank].whole)
        telling = {stage: self._telling(stage, held, places) for stage in stages}
        telling = {stage: found for stage, found in telling.items() if found is not None}
        return Rows(samples, micro_batches, copies, blocks, telling)

    def _held(self, samples: int, copies: int, micro_batches: int) -> Tensor:
        """[ranks, samples]: who has which; a sample that a step of a stage reads is had by a rank of that."""
        slots = [*range(samples)] * copies
        rows_of = cache(lambda cut: [row for part in cut.parts(slots, micro_batches) for row in part])
        held = torch.zeros(len(self._reads), samples, dtype=torch.bool)
        for rank, reads in enumerate(self._reads):
            for cut in {cut for _, cuts in reads.cuts for cut in cuts}:
                held[rank, rows_of(cut)] = True
            held[rank, 0] |= not held[rank].any()  # what has no samples may differ from batch to batch as well
        for ranks in self._readers():
            missing = (~held[ranks].any(0)).nonzero().flatten()
            for rank, part in zip(ranks, missing.tensor_split(len(ranks)), strict=True):
                held[rank, part] = True
        return held

    def _readers(self) -> Iterator[list[int]]:
        """For each stage whose step reads all samples, its ranks."""
        for stage in sorted({stage for reads in self._reads for stage in reads.whole}):
            yield self._ranks_of(stage)

    def _ranks_of(self, stage: int) -> list[int]:
        return [rank for rank, reads in enumerate(self._reads) if any(index == stage for index, _ in reads.cuts)]

    def _telling(self, stage: int, held: Tensor, places: Tensor) -> Telling | None:
        ranks = self._ranks_of(stage)
        if bool(held[ranks].all()):
            return None
        teller = held[ranks].to(torch.int8).argmax(0)  # the first that has it
        told = [(teller == i).nonzero().flatten() for i in range(len(ranks))]
        most = max(map(len, told))
        order = torch.empty(held.size(1), dtype=torch.int64)
        for i, rows in enumerate(told):
            order[rows] = i * most + torch.arange(len(rows))
        return Telling(places[told[ranks.index(self._rank)]], tuple(map(len, told)), order)


def _blocks(held: Tensor, rank: int) -> tuple[tuple[int, ...], ...]:
    """The samples of a rank, those together that the same ranks have, in the order of their first one."""
    own = held[rank].nonzero().flatten()
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for row, holders in zip(own.tolist(), held.unique(dim=0).t()[own].tolist(), strict=True):
        kinds.setdefault(tuple(holders), []).append(row)
    return tuple(map(tuple, kinds.values()))


class Part(Mapping[str, Any]):
    """This rank's samples of a global batch: what a loader gives and `train_step` takes.

    Attributes:
        rows: which samples of the batch they are.
        origin: in words, where the batch is in the data, equal on all ranks.
        error: what went wrong on this rank when they were loaded; a step raises it, on all ranks.
    """

    def __init__(self, values: Mapping[str, Any], rows: Rows, origin: str = "", error: Any = None) -> None:
        self._values = dict(values)
        self.rows, self.origin, self.error = rows, origin, error

    @property
    def samples(self) -> int:
        """How many the global batch has."""
        return self.rows.samples

    def __getitem__(self, name: str) -> Any:
        if self.error is not None:
            raise self.error
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
