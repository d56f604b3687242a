"""Seconds of collectives: by kind, bytes, and the shape of a group on the levels of the network.

Pipelined rings with one step for each hop and a rate for bytes (Thakur, Rabenseifner, Gropp, "Optimization of
Collective Communication Operations in MPICH", 2005): all-reduce `2(n-1)` steps and `2(n-1)/n` of the bytes, all-gather
and reduce-scatter half of both, broadcast `n-1` steps and all bytes. An all-reduce across nodes goes up and down a tree
of them, so that its steps grow with the logarithm of their number. All-to-all sends one n-th to every other rank, each
over the links it needs. All groups of an axis communicate at once, and share what leaves their part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from galvatron.errors import ClusterError, did_you_mean
from galvatron.ir.cluster import Cluster
from galvatron.ir.collectives import COLLECTIVES, MESSAGES, Message
from galvatron.ir.curves import Curve, Points
from galvatron.ir.layout import Axis
from galvatron.ir.network import Level


class Collectives:
    """What collectives take on a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._measured = {(m.name, m.size, m.stride): m for m in cluster.collectives}
        self._seconds: dict[tuple[str, int, int], _Seconds] = {}
        self._alike: dict[tuple[int, int], int] = {}
        self._numbers: dict[tuple[_Seconds, ...], int] = {}

    def seconds(self, kind: str, payload_bytes: float, axis: Axis) -> float:
        """Seconds of one collective on an axis; 0 on one of a single rank.

        Raises:
            ClusterError: unknown kind.
        """
        key = (kind, axis.size, axis.stride)
        if (found := self._seconds.get(key)) is None:
            found = self._seconds[key] = self._of(*key)
        return found(payload_bytes)

    def alike(self, axis: Axis) -> int:
        """A number that axes share on which every collective of a sharded graph takes equally long."""
        key = axis.size, axis.stride
        if key not in self._alike:
            all_s = tuple(self._of(name, *key) for name in MESSAGES if f"comm.{name}" in COLLECTIVES)
            self._alike[key] = self._numbers.setdefault(all_s, len(self._numbers))
        return self._alike[key]

    def _of(self, kind: str, size: int, stride: int) -> _Seconds:
        """
        Raises:
            ClusterError: unknown kind.
        """
        message = MESSAGES.get(kind)
        if message is None:
            raise ClusterError(f"unknown collective {kind!r}; {did_you_mean(kind, MESSAGES)}")
        if size == 1:
            return _Lines(((0.0, 0.0),))
        if (measured := self._measured.get((kind, size, stride))) is not None:
            return _Measured(measured.points, measured.beyond_bytes_per_s)
        group = _Group.of(self._cluster, size, stride)
        quick = (False, True) if group.has_quick(message) else (False,)
        return _Lines(tuple(group.line(message, quick=is_quick) for is_quick in quick))


@dataclass(frozen=True)
class _Lines:
    """Seconds by bytes: the shortest of some lines, each with its seconds of no bytes and of each byte."""

    lines: tuple[tuple[float, float], ...]

    def __call__(self, payload_bytes: float) -> float:
        return min([fixed_s + payload_bytes * s_per_byte for fixed_s, s_per_byte in self.lines])


@dataclass(frozen=True)
class _Measured:
    """Seconds by bytes as they were measured, with a rate for what is beyond, if that is known."""

    points: Points
    beyond_bytes_per_s: float | None

    def __call__(self, payload_bytes: float) -> float:
        last_bytes, last_s = self.points[-1]
        rate = self.beyond_bytes_per_s
        if rate is None or payload_bytes <= last_bytes:
            return self._curve(payload_bytes)
        return last_s + (payload_bytes - last_bytes) / rate

    @cached_property
    def _curve(self) -> Curve:
        return Curve(self.points)


_Seconds = _Lines | _Measured


@dataclass(frozen=True)
class _Part:
    """What a group has of one level that it uses.

    Attributes:
        innermost: whether the level joins devices.
        below: devices in each of the parts that the level joins.
        near: members of the group in such a part; `fewest` in the one with the fewest.
        joined: such parts with members of the group, in each of what the level joins them to.
        hops: of a ring over the group.
        groups: groups of the same axis with members in such a part.
    """

    level: Level
    innermost: bool
    below: int
    near: int
    fewest: int
    joined: int
    hops: int
    groups: int

    def bytes_per_s(self, *, quick: bool) -> float:
        """What a device, or a card, sends; in a quick line a level without a quick protocol is as ever."""
        return (quick and self.level.quick_bytes_per_s) or self.level.bytes_per_s

    def capacity(self, *, quick: bool) -> float:
        """Bytes/s that leave a part when all its devices send."""
        rate = self.bytes_per_s(quick=quick) * (self.level.cards or self.below)
        pair = self.level.pair_bytes_per_s
        return rate if pair is None else min(rate, pair * (self.joined - 1))

    def flow(self, members: int, *, quick: bool = False) -> float:
        """Bytes/s that one group sends out of a part in which so many members send."""
        return min(self.bytes_per_s(quick=quick) * members, self.capacity(quick=quick) / self.groups)

    def step_s(self, *, quick: bool) -> float:
        level = self.level
        steps = (level.quick_step_s if quick else None, level.step_s, level.latency_s)
        return next(step for step in steps if step is not None)

    @property
    def tree_hops(self) -> int:
        """Of a tree over the parts, whose devices are a chain each."""
        return self.joined - 1 if self.innermost else math.ceil(math.log2(self.joined))


@dataclass(frozen=True)
class _Group:
    """A group of `size` ranks as it lies on the levels, those that it uses from the innermost on."""

    size: int
    parts: tuple[_Part, ...]

    @staticmethod
    def of(cluster: Cluster, size: int, stride: int) -> _Group:
        parts, below, near, top = [], 1, 1, cluster.level_of(size, stride)
        for index, level in enumerate(cluster.levels[: top + 1]):
            above = below * level.parts
            # A group that does not tile what it lies on has members in two of these at least.
            far = size if index == top else max(1, min(above // stride, size - 1))
            if far > near:
                fewest = near if size % near == 0 else 1
                hops = math.ceil(size / near) - math.ceil(size / far)
                joined, groups = math.ceil(far / near), min(stride, below)
                parts.append(_Part(level, index == 0, below, near, fewest, joined, hops, groups))
            below, near = above, far
        return _Group(size, tuple(parts))

    def has_quick(self, message: Message) -> bool:
        """Whether there is a protocol of short messages: NCCL has none for what goes from one rank to another."""
        return message.way in ("ring", "chain") and any(p.level.quick_bytes_per_s is not None for p in self.parts)

    def line(self, message: Message, *, quick: bool) -> tuple[float, float]:
        """Seconds of a collective: those of the shortest, and those of each byte."""
        size, top = self.size, self.parts[-1]
        if message.way == "peer":
            return top.level.latency_s, 1 / replace(top, joined=2).flow(1)
        start_s = max(part.level.start_s for part in self.parts)
        if message.way == "each":
            step_s = max(part.step_s(quick=False) for part in self.parts)
            return start_s + (size - 1) * step_s, self._exchange_s_per_byte
        hops = [part.tree_hops if message.rounds == 2 else part.hops for part in self.parts]
        steps_s = sum(count * part.step_s(quick=quick) for count, part in zip(hops, self.parts, strict=True))
        rate = min(part.flow(part.fewest, quick=quick) for part in self.parts)
        if message.way == "chain":
            return start_s + steps_s, 1 / rate
        return start_s + message.rounds * steps_s, message.rounds * (size - 1) / (size * rate)

    @property
    def _exchange_s_per_byte(self) -> float:
        """Of an all-to-all, with an n-th of its payload for each rank: the level counts that takes longest."""
        return max((self.size - part.near) / self.size * part.below / part.capacity(quick=False) for part in self.parts)
