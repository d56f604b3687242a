"""Profiles: what was measured of a device and of the links of a job, and where."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TypeVar

from galvatron.errors import ClusterError, did_you_mean
from galvatron.ir.records import Table
from galvatron.ir.types import DTYPE_BYTES

ENTRIES = 2**16
"""Measurements that a profile has at the most."""

DIRECTIONS = ("forward", "backward")
"""Of what is measured of a layer."""

_LONGEST_S = 1e6


@dataclass(frozen=True)
class Environment:
    """What measurements depend on: those of one are of no use in another.

    Attributes:
        device: its name, or that of the processor.
        kind: torch's name of its type, `"cpu"` or `"cuda"`.
        memory_bytes: of one device, or one rank's share of the machine's.
        cores: that all ranks of a node may use together.
        threads: with which one rank computes on the host.
        backend: of the process group, such as `"gloo"`; `"none"` without one.
        torch: its version.
    """

    device: str
    kind: str
    memory_bytes: int
    cores: int
    threads: int
    nodes: int
    devices_per_node: int
    backend: str
    torch: str

    @property
    def world_size(self) -> int:
        return self.nodes * self.devices_per_node

    def differences(self, other: Environment) -> list[str]:
        """In what another environment is not this one, in words: `torch 2.11.0, not 2.13.0`. Empty if in nothing."""
        found = []
        for field in dataclasses.fields(self):
            own, there = getattr(self, field.name), getattr(other, field.name)
            if own != there and not (field.name == "memory_bytes" and abs(own - there) <= _ALIKE * own):
                found.append(f"{field.name.replace('_', ' ')} {there}, not {own}")
        return found


_ALIKE = 0.03
"""By how much memory may differ: what a kernel keeps for itself is not the same after each start."""


@dataclass(frozen=True)
class Measurement:
    """Seconds of one call.

    Attributes:
        name: of the kernel or collective.
        how: which of its variants: `"forward"`, `"backward"`, the layout of a product, `"both ways"`.
        dtype: the element type.
        sizes: by name, such as `m`, `n`, `k`, or `bytes`, `group` and `stride`.
        seconds: the median.
        spread: how far apart the middle half of the samples is, relative to the median.
        repeats: the number of samples.
    """

    name: str
    how: str
    dtype: str
    sizes: Table
    seconds: float
    spread: float
    repeats: int

    @property
    def key(self) -> tuple[str, str, str, Table]:
        """What is measured: of two measurements of one key the later one counts."""
        return self.name, self.how, self.dtype, self.sizes

    def size(self, name: str) -> float:
        """One of its sizes, 0 if it has none of that name."""
        return dict(self.sizes).get(name, 0.0)

    def is_among(self, group: int, stride: int) -> bool:
        """Whether it is a communication in groups of so many ranks, so far apart."""
        return self.size("group") == group and self.size("stride") == stride


@dataclass(frozen=True)
class Overlap:
    """A kernel and a collective that run at the same time, the collective for longer.

    Attributes:
        collective, kernel: their names; the collective is of `bytes` among `group` ranks, `stride` apart.
        kernel_s, collective_s: seconds of each by itself; of the kernel's as many calls as were made.
        kernel_beside_s: seconds of these calls beside the collective.
        both_s: seconds until both have ended.
    """

    collective: str
    kernel: str
    group: int
    stride: int
    bytes: int
    kernel_s: float
    collective_s: float
    kernel_beside_s: float
    both_s: float

    @property
    def key(self) -> tuple[str, str, int, int, int]:
        return self.collective, self.kernel, self.group, self.stride, self.bytes

    @property
    def kernel_speed(self) -> float:
        """What is left of the kernel's speed beside the collective, from 0 to 1."""
        return min(1.0, self.kernel_s / self.kernel_beside_s)

    @property
    def collective_speed(self) -> float:
        """What is left of the collective's speed beside the kernel, from 0 to 1: what remained of it when the kernel
        had ended took as long as by itself."""
        remained_s = max(0.0, self.both_s - self.kernel_beside_s)
        return min(1.0, max(0.0, self.collective_s - remained_s) / self.kernel_beside_s)


@dataclass(frozen=True)
class LayerTime:
    """What a layer class takes on one rank under a strategy, its collectives excepted.

    Attributes:
        name: of class and strategy, for readers.
        fingerprint: of what the rank runs of it (`galvatron.ir.fingerprints`): graphs alike share it.
        how: `"forward"` or `"backward"`, what is computed again included.
        samples: of a micro-batch, on the rank.
        seconds, spread, repeats: see `Measurement`.
    """

    name: str
    fingerprint: str
    how: str
    samples: int
    seconds: float
    spread: float
    repeats: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.fingerprint, self.how, self.samples


@dataclass(frozen=True)
class Profile:
    """What was measured in one environment.

    Attributes:
        name: for readers; also that of the cluster.
        taken: the date of the latest measurement, as ISO 8601.
        facts: numbers that are no times: bytes, and ratios.
        measurements: at most one of each key.
        classes: of layers, of the models that were measured (`galvatron profile model`).
    """

    name: str
    environment: Environment
    taken: str
    facts: Table = ()
    measurements: tuple[Measurement, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    classes: tuple[LayerTime, ...] = ()

    def fact(self, name: str) -> float | None:
        """One of its facts, None if it is not known."""
        return dict(self.facts).get(name)

    def of(self, name: str, how: str | None = None, dtype: str | None = None) -> list[Measurement]:
        """The measurements of one name, of one variant, of one element type."""
        return [
            m for m in self.measurements
            if m.name == name and how in (None, m.how) and dtype in (None, m.dtype)
        ]  # fmt: skip

    def updated(self, later: Profile) -> Profile:
        """This profile with what a later one of the same environment has measured anew, or first."""
        return dataclasses.replace(
            later,
            facts=tuple((dict(self.facts) | dict(later.facts)).items()),
            measurements=_updated(self.measurements, later.measurements),
            overlaps=_updated(self.overlaps, later.overlaps),
            classes=_updated(self.classes, later.classes),
        )

    def check(self) -> None:
        """Checks what a profile must be: of positive, finite sizes and times.

        Raises:
            ClusterError: names the measurement.
        """
        environment = self.environment
        numbers = [(f.name, getattr(environment, f.name)) for f in dataclasses.fields(environment)]
        for name, number in numbers:
            if type(number) is int and not 1 <= number <= 2**63 - 1:
                raise ClusterError(f"profile {self.name!r}: {name} is {number}, which no machine has")
        for name, number in self.facts:
            if not 0 <= number <= 1e30:
                raise ClusterError(f"profile {self.name!r}: fact {name!r} is {number}")
        for group in (self.measurements, self.overlaps, self.classes):
            if len(group) > ENTRIES:
                raise ClusterError(f"profile {self.name!r} has {len(group)} entries; at most {ENTRIES} are read")
            if len({entry.key for entry in group}) < len(group):
                raise ClusterError(f"profile {self.name!r} has two entries of one key")
            for entry in group:
                _check_entry(self.name, entry)


Entry = TypeVar("Entry", Measurement, Overlap, LayerTime)

_FINGERPRINT = re.compile("[0-9a-f]{16}")


def _updated(earlier: tuple[Entry, ...], later: tuple[Entry, ...]) -> tuple[Entry, ...]:
    found = {entry.key: entry for entry in earlier} | {entry.key: entry for entry in later}
    return tuple(found.values())


def _check_entry(profile: str, entry: Measurement | Overlap | LayerTime) -> None:
    what = f"profile {profile!r}: {entry.collective if isinstance(entry, Overlap) else entry.name}"
    for field in dataclasses.fields(entry):
        number = getattr(entry, field.name)
        if type(number) is float and field.name != "spread" and not 0 < number <= _LONGEST_S:
            raise ClusterError(f"{what}: {field.name} is {number}, not a time that anything takes")
        if type(number) is int and not 1 <= number <= 2**63 - 1:
            raise ClusterError(f"{what}: {field.name} is {number}")
    if not isinstance(entry, Overlap) and not 0 <= entry.spread <= 1e6:
        raise ClusterError(f"{what}: spread is {entry.spread}")
    if isinstance(entry, LayerTime):
        if not _FINGERPRINT.fullmatch(entry.fingerprint):
            raise ClusterError(f"{what}: {entry.fingerprint!r} is no fingerprint of a layer")
        if entry.how not in DIRECTIONS:
            raise ClusterError(f"{what}: how is {entry.how!r}; {did_you_mean(entry.how, DIRECTIONS)}")
    if isinstance(entry, Measurement):
        if entry.dtype not in DTYPE_BYTES:
            raise ClusterError(f"{what}: {did_you_mean(entry.dtype, DTYPE_BYTES)}")
        for name, size in entry.sizes:
            if not 0 < size <= 1e30:
                raise ClusterError(f"{what}: size {name!r} is {size}")
