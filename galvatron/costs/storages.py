"""The storages of a run, which are there as long as anything holds them, and the bytes that are alive."""

from __future__ import annotations

from operator import add, sub

from galvatron.costs.together import Sizes


class Storages:
    """Storages by number: first those that are there before and after the run, and are not counted.

    `live_bytes` are in use now, `peak_bytes` at most since that was last set, at each of `count` batch sizes.
    """

    def __init__(self, given: int, count: int) -> None:
        self.live_bytes: Sizes = (0,) * count
        self.peak_bytes: Sizes = self.live_bytes
        self._given = given
        self._sizes: list[Sizes] = [self.live_bytes] * given
        self._holders = [1] * given

    def make(self, sizes: Sizes) -> int:
        """The number of a new storage, which has one holder."""
        self.live_bytes = tuple(map(add, self.live_bytes, sizes))
        self.peak_bytes = tuple(map(max, self.peak_bytes, self.live_bytes))
        self._sizes.append(sizes)
        self._holders.append(1)
        return len(self._sizes) - 1

    def hold(self, storage: int) -> int:
        """The storage, with one holder more."""
        self._holders[storage] += 1
        return storage

    def drop(self, storage: int) -> None:
        """One holder less; without any the storage is freed."""
        self._holders[storage] -= 1
        if not self._holders[storage]:
            self.live_bytes = tuple(map(sub, self.live_bytes, self._sizes[storage]))

    def alive(self) -> dict[int, Sizes]:
        """The bytes of the storages in use by their numbers, without those that are not counted."""
        new = range(self._given, len(self._sizes))
        return {number: self._sizes[number] for number in new if self._holders[number]}
