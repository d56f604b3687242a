"""What a backward computes again: `galvatron.recompute` as it does it to the calls of a composed run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from galvatron.costs.acts import Saved, Step, StepEnd
from galvatron.costs.together import ActAt

if TYPE_CHECKING:
    from galvatron.costs.composed import Composed


class Replayed:
    """Calls that are made again when the backward first reads what one of them saved, up to the last that saves.

    Of what they save nothing is kept, but what they read. Under selective recomputation steps run in the forward only:
    their results are kept, and what they save besides their operands.
    """

    def __init__(
        self, run: Composed, ops: Sequence[int], read: Mapping[str, int], steps: Mapping[int, str], *, selective: bool
    ) -> None:
        """
        Args:
            read: where the values are that the calls are given.
            steps: by number, the ops that run in the forward only, and whether their results are kept.
        """
        self._run, self._ops, self._steps, self._selective = run, ops, steps, selective
        self._given = {name: run.storages.hold(storage) for name, storage in read.items()}
        self._detached(read)
        self._missing: dict[tuple[int, int], int | None] = {}
        """What is saved, by call and place; of a step the number of the operand that it is."""
        self._kept: list[tuple[int, list[int]]] = []
        """The calls with steps, in order, and what these keep."""
        self._read = 0
        self._forgotten: set[tuple[int, int]] = set()
        self._over = False

    def saved(self, index: int, act: Saved, local: Mapping[int, int]) -> None:
        """Notes what a call saves in the forward."""
        operand: int | None = None
        if index in self._steps:
            own = range(len(self._run.layer.operands[index]))
            same = [i for i in own if local[i] == local[act.storage]]
            if not same or self._run.dtype(index, same[-1]) != act.dtype:
                self._run.pack(index, act.place, local[act.storage])
                return
            operand = same[-1]
        self._missing[index, act.place] = operand
        self._read = len(self._kept)

    def step_inside(self, index: int, storages: Sequence[int]) -> None:
        """Notes a step within a call, and what it keeps."""
        if self._selective and index not in self._steps:
            self._kept.append((index, [self._run.storages.hold(storage) for storage in storages]))

    def called(self, index: int, results: Sequence[str]) -> None:
        """Notes the results of a call."""
        if index in self._steps:
            kept = results if self._steps[index] == "keep" else ()
            self._detached(kept)
            self._kept.append((index, [self._run.storages.hold(self._run.places[name]) for name in kept]))

    def _detached(self, names: Iterable[str]) -> None:
        """Counts the views by which computed values are kept without what computed them."""
        self._run.now.dispatches[True] += sum(self._run.is_computed(name) for name in names)

    def forward_is_over(self) -> None:
        """Forgets what steps keep behind the last tensor that is missing."""
        for _, storages in self._kept[self._read :]:
            self._drop(storages)
            storages.clear()

    @property
    def alive(self) -> bool:
        """Whether anything is missing still."""
        return not self._over

    def end_of_graph(self, reached: Collection[int]) -> None:
        """Forgets what belongs to calls without a backward."""
        self._forgotten |= {key for key in self._missing if key[0] not in reached}
        if len(self._forgotten) == len(self._missing):
            self._end()

    def forget(self, index: int, place: int) -> None:
        """Nobody will read this."""
        self._forgotten.add((index, place))

    def read(self, index: int, place: int) -> None:
        """Has what a call saved be there again."""
        if not self._over and (index, place) in self._missing:
            self._again()
            self._end()

    def _again(self) -> None:
        places, left = dict(self._given), len(self._missing)
        kept = iter(self._kept)
        made: list[int] = []
        for index in self._ops:
            names = self._run.layer.operands[index]
            if index in self._steps:
                _, storages = next(kept)
                results = (value.name for value in self._run.layer.graph.ops[index].results)
                places |= zip(results, storages, strict=False)
                for key, operand in self._missing.items():
                    if key[0] == index and operand is not None:
                        self._fill(key, places[names[operand]])
                        self._run.now.dispatches[True] += 1  # the operand, as it was saved
                        left -= 1
            else:
                left -= self._call(index, places, made, kept, left)
            if not left:
                break
        self._drop(made)

    def _call(
        self,
        index: int,
        places: dict[str, int],
        made: list[int],
        kept: Iterator[tuple[int, list[int]]],
        left: int,
    ) -> int:
        """Makes a call again, up to the last tensor that is missing; how many it brings."""
        run = self._run
        names, one = run.layer.operands[index], run.calls[index]
        local = {i: places[name] for i, name in enumerate(names)}
        inner: set[int] = set()
        found = 0
        for act in run.played(index, self._without_steps(one.forward, local, kept), local, inner):
            if isinstance(act, Saved):
                self._fill((index, act.place), local[act.storage])
                found += 1
                if found == left:
                    break
        else:
            for value, result in zip(run.layer.graph.ops[index].results, one.results, strict=False):
                if result is not None:
                    places[value.name] = run.storages.hold(local[result.storage])
                    made.append(places[value.name])
        run.dropped(local, inner)
        if (awaited := places.get(run.layer.awaited(index))) in made:
            made.remove(awaited)
            self._drop([awaited])
        return found

    def _without_steps(
        self, acts: Sequence[ActAt], local: dict[int, int], kept: Iterator[tuple[int, list[int]]]
    ) -> Iterator[ActAt]:
        """What a call does, less what steps within it did in the forward."""
        inside = False
        for act in acts:
            if isinstance(act, Step):
                inside = self._selective
            elif isinstance(act, StepEnd):
                if self._selective:
                    local |= zip(act.storages, next(kept)[1], strict=False)
                inside = False
            elif not inside:
                yield act

    def _fill(self, key: tuple[int, int], storage: int) -> None:
        if key not in self._forgotten:
            self._run.pack(*key, storage)
            self._run.now.dispatches[True] += 1  # a view of the tensor, without what computed it

    def _end(self) -> None:
        self._over = True
        self._drop([*self._given.values(), *(storage for _, storages in self._kept for storage in storages)])
        self._given, self._kept = {}, []

    def _drop(self, storages: Sequence[int]) -> None:
        for storage in storages:
            self._run.storages.drop(storage)
