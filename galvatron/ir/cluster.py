"""Clusters: equal devices, and the levels of the network between them."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from math import prod

from galvatron.errors import ClusterError, did_you_mean
from galvatron.ir import cluster_file, limits, networks
from galvatron.ir.collectives import MESSAGES
from galvatron.ir.curves import Points
from galvatron.ir.device import Device
from galvatron.ir.documents import read_json
from galvatron.ir.measurements import CURVES
from galvatron.ir.network import Level, MeasuredCollective
from galvatron.ir.records import read_members
from galvatron.ir.types import DTYPE_BYTES

RESERVE_SHARE = 1 / 16


@dataclass(frozen=True)
class Cluster:
    """Equal devices, joined by levels of links: those of a node by the first, nodes by the next, and so on.

    Ranks are numbered such that what the first level joins follows each other, then what the second does. A collective
    that was measured on groups of some shape takes there what was measured, and elsewhere what the levels say
    (`galvatron.machine.collectives`).

    Attributes:
        sharing: where ranks share the cores of a processor, (how many of them compute, the seconds of a computation
            relative to those when all compute), for so many ranks from the first one on; empty where each rank has a
            device of its own, and is as fast whatever others do.
    """

    name: str
    device: Device
    levels: tuple[Level, ...]
    collectives: tuple[MeasuredCollective, ...] = ()
    sharing: Points = ()

    @property
    def world_size(self) -> int:
        return prod(level.parts for level in self.levels)

    def __str__(self) -> str:
        return self.name

    @property
    def default_budget_bytes(self) -> int:
        """Memory that a plan may fill on each device when the user names no budget.

        That is what the device has, less what is taken before any tensor is (`Device.reserved_bytes`), less a sixteenth
        for allocator fragmentation and short-lived workspaces.
        """
        return max(0, int(self.device.memory_bytes * (1 - RESERVE_SHARE)) - self.device.reserved_bytes)

    @staticmethod
    def parse(text: str) -> Cluster:
        """Reads `"a100-80g:2x8"`: device preset, nodes × devices per node; `"gb200:2x18x4"`: racks of so many nodes;
        or the name of a file, `"mine.toml"`.

        Raises:
            ClusterError: malformed text, unknown preset (with the nearest known ones), or no devices.
        """
        if text.strip().endswith(".toml"):
            return Cluster.load(text.strip())
        return Cluster(*networks.described(text))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Cluster:
        """Reads a cluster that someone wrote as a TOML file (`galvatron.ir.cluster_file`).

        Raises:
            ClusterError: the file cannot be read, or has what no cluster has; says what.
            ParseError: it is no TOML.
        """
        cluster = Cluster(*cluster_file.read(path))
        cluster.check()
        return cluster

    def to_json(self) -> str:
        """The whole description as one line of JSON; `from_json` gives back an equal cluster."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Cluster:
        """Reads what `to_json` wrote.

        Raises:
            ParseError: malformed JSON.
            ClusterError: a field is missing, unknown or of the wrong type.
        """
        cluster = read_members(Cluster, read_json(text, "cluster"), "cluster", ClusterError)
        cluster.check()
        return cluster

    def check(self) -> None:
        """Checks what a cluster must be: of positive sizes and rates, and not larger than `limits.DEVICES`.

        Raises:
            ClusterError: names the field.
        """
        rates = [(f"matmul_flop_per_s.{dtype}", rate) for dtype, rate in self.device.matmul_flop_per_s]
        if not rates:
            raise ClusterError("cluster field 'matmul_flop_per_s' must have at least one rate")
        for dtype, _ in self.device.matmul_flop_per_s:
            if dtype not in DTYPE_BYTES:
                told = did_you_mean(dtype, DTYPE_BYTES)
                raise ClusterError(f"cluster field 'matmul_flop_per_s': unknown element type {dtype!r}; {told}")
        records = (self, self.device, *self.levels, *self.collectives)
        numbers = [(f.name, getattr(r, f.name)) for r in records for f in dataclasses.fields(r)]
        for name, number in (*numbers, *rates):
            if type(number) in (int, float) and (number < 0 or (number == 0 and not _may_be_zero(name))):
                raise ClusterError(f"cluster field {name!r} must be positive, not {number}")
            if type(number) is float and not _is_sensible(name, number):
                raise ClusterError(f"cluster field {name!r} is {number}: no device or link is like that")
        self.device.check()
        if self.device.curves and self.device.curves not in CURVES:
            raise ClusterError(f"cluster field 'curves': {did_you_mean(self.device.curves, CURVES)}")
        if self.device.memory_bytes > limits.SIZE:
            raise ClusterError(f"cluster field 'memory_bytes' must be at most {limits.SIZE}")
        if self.device.reserved_bytes >= self.device.memory_bytes:
            raise ClusterError(
                f"cluster field 'reserved_bytes' is {self.device.reserved_bytes}, and 'memory_bytes' is "
                f"{self.device.memory_bytes}: nothing is left"
            )
        if not 1 <= len(self.levels) <= limits.LEVELS:
            raise ClusterError(f"a cluster has from 1 to {limits.LEVELS} levels, not {len(self.levels)}")
        if self.world_size > limits.DEVICES:
            raise ClusterError(f"a cluster of more than {limits.DEVICES} devices")
        for level in self.levels:
            level.contention.check()
            if (level.quick_bytes_per_s is None) != (level.quick_step_s is None):
                raise ClusterError(f"cluster level {level.name!r} has only one of quick_bytes_per_s and quick_step_s")
        for measured in self.collectives:
            _check_measured(measured)
        _check_sharing(self.sharing, self.world_size)

    def with_twice_the_bandwidth(self) -> Cluster:
        """The same on every level of links but for that; what was measured of collectives takes half as long."""

        def faster(level: Level) -> Level:
            quick, pair = level.quick_bytes_per_s, level.pair_bytes_per_s
            return dataclasses.replace(
                level,
                bytes_per_s=2 * level.bytes_per_s,
                quick_bytes_per_s=quick and 2 * quick,
                pair_bytes_per_s=pair and 2 * pair,
            )

        def quicker(one: MeasuredCollective) -> MeasuredCollective:
            points, beyond = tuple((size, seconds / 2) for size, seconds in one.points), one.beyond_bytes_per_s
            return dataclasses.replace(one, points=points, beyond_bytes_per_s=beyond and 2 * beyond)

        levels, collectives = tuple(map(faster, self.levels)), tuple(map(quicker, self.collectives))
        return dataclasses.replace(self, levels=levels, collectives=collectives)

    def level_of(self, size: int, stride: int) -> int:
        """The index of the outermost level that some group of `size` ranks, `stride` apart, reaches.

        Groups are the axes of a stage mesh: blocks of `size · stride` ranks, aligned to a multiple of that.
        """
        joined = 1
        for index, level in enumerate(self.levels):
            joined *= level.parts
            if joined % (size * stride) == 0:
                return index
        return len(self.levels) - 1

    def slows_down(self, size: int, stride: int) -> bool:
        """Whether some such group reaches a level whose links are slower than those between neighbours."""
        reached = self.levels[: self.level_of(size, stride) + 1]
        return any(level.bytes_per_s < self.levels[0].bytes_per_s for level in reached)


def _check_measured(measured: MeasuredCollective) -> None:
    """Checks what a curve is made of.

    Raises:
        ClusterError: names the collective.
    """
    what = f"measured collective {measured.name!r} of {measured.size} ranks, {measured.stride} apart"
    if measured.name not in MESSAGES:
        raise ClusterError(f"{what}: unknown; {did_you_mean(measured.name, MESSAGES)}")
    if measured.size < 2:
        raise ClusterError(f"{what}: a group has at least two ranks")
    if not measured.points:
        raise ClusterError(f"{what} has no points")
    (last_size, last_s), *others = measured.points
    if min(last_size, last_s) <= 0:
        raise ClusterError(f"{what} has a size or time that is not positive")
    for size, seconds in others:
        if size <= last_size or seconds < last_s:
            raise ClusterError(f"{what}: sizes must rise from point to point, and seconds must not fall")
        last_size, last_s = size, seconds


def _check_sharing(sharing: Points, world_size: int) -> None:
    """Checks that more ranks never compute faster, and all together never less.

    Raises:
        ClusterError: they do.
    """
    before_ranks, before = 0.0, 0.0
    for ranks, share in sharing:
        if not (before_ranks < ranks <= world_size and 0 < share <= 1 and before <= share):
            raise ClusterError(f"cluster field 'sharing': {share} for {ranks} ranks is no share, or less than before")
        if before_ranks and share / ranks > before / before_ranks * (1 + 1e-9):
            raise ClusterError(f"cluster field 'sharing': {ranks} ranks do less together than {before_ranks}")
        before_ranks, before = ranks, share
    if sharing and sharing[-1] != (world_size, 1.0):
        raise ClusterError(f"cluster field 'sharing' must end with 1 for all {world_size} ranks")


def _is_sensible(name: str, number: float) -> bool:
    """Whether a time or rate is one that can be counted with."""
    return number <= 1e6 if _may_be_zero(name) else 1 <= number <= 1e30


def _may_be_zero(name: str) -> bool:
    """Times may, and what is counted beside the size of something; but neither sizes nor rates."""
    counted_beside = ("cards", "reserved_bytes", "workspace_bytes")
    return (name.endswith("_s") and not name.endswith("_per_s")) or name in counted_beside
