"""One pass over a device and its links: everything that a profile of the hardware has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product

import torch

from galvatron.profiler.cases import Case, sizes_of
from galvatron.profiler.collectives import axis_of, axis_shapes, collective_cases, starter
from galvatron.profiler.cores import crowding
from galvatron.profiler.environment import agreed_environment, device_facts
from galvatron.profiler.grids import GRIDS, MESSAGE_BYTES
from galvatron.profiler.host import host_cases
from galvatron.profiler.kernels import kernel_cases
from galvatron.profiler.memory import memory_facts
from galvatron.profiler.meter import GLANCE, Effort, Meter
from galvatron.profiler.overlap import COLLECTIVES, KERNELS, kernel_beside, measure_overlap
from galvatron.profiler.profile import Environment, Measurement, Overlap, Profile
from galvatron.runtime import failure
from galvatron.runtime.mesh import Axis, World

Told = Callable[[str, float], None]
"""Hears what is measured now, and what share of the work is done."""

AT_A_GLANCE = "at_a_glance"
"""A fact of a profile: 1 if nobody asked for it, so that it may be taken anew."""

ROOM = 1 / 4
"""Of a rank's memory that a measurement may take."""

Point = tuple[float, float]
"""What a time grows with, and seconds."""

_STEP_WEIGHT, _OVERLAP_WEIGHT = 3.0, 10.0
"""Shares of the time of one communication and one overlap, in those of one kernel: they wait for the slowest rank, and
spread more."""


def profile_hardware(world: World, effort: Effort, told: Told | None = None) -> Profile:
    """What the devices and links of this job can do, alike on every rank. Collective: all ranks measure at once.

    Args:
        effort: how long it may take, and how fine it is.
        told: called again and again, on every rank.

    Raises:
        RankError: another rank failed first.
    """
    with failure.guarded("profiling the hardware"):
        environment, taken = agreed_environment(world)
        measuring = _Measuring(Meter(world, effort), environment, told or (lambda what, share: None))
        facts = memory_facts(world)
        facts = dict(zip(facts, measuring.meter.agreed(*facts.values(), largest=True), strict=True))
        if world.device.type == "cpu":
            facts["sharing_ranks"], facts["sharing_cores"] = map(float, crowding(world))
        facts |= device_facts(world.device) | {AT_A_GLANCE: float(effort.name == GLANCE.name)}
        measuring.kernels()
        measuring.links()
        return Profile(
            name=f"local:{environment.nodes}x{environment.devices_per_node}",
            environment=environment,
            taken=taken,
            facts=tuple(facts.items()),
            measurements=tuple(measuring.found.values()),
            overlaps=tuple(measuring.overlaps),
        )


def measured_again(world: World, profile: Profile) -> list[tuple[Measurement, float]]:
    """A product and a collective of a profile, and what they take at a glance now, on every rank alike. Collective."""
    with failure.guarded("checking the profile"):
        meter = Meter(world, GLANCE)
        found: list[tuple[Measurement, float]] = []
        products = {m.key: m for m in profile.of("product", "nn", "f32")}
        cases = kernel_cases(GRIDS[world.device.type, GLANCE.name], world.device)
        kernels = [case for case in cases if case.key in products]
        if kernels:
            largest = max(kernels, key=lambda case: case.amount)
            found.append((products[largest.key], meter.free(largest.prepare(), _AGAIN_S).seconds))
        reduced = [m for m in profile.of("all_reduce", dtype="f32") if m.is_among(world.size, 1)]
        reduced = [m for m in reduced if m.size("bytes") <= _AGAIN_BYTES]
        if reduced:
            before = max(reduced, key=lambda m: m.size("bytes"))
            with axis_of(world, world.size, 1) as axis:
                start = starter("all_reduce", "", axis, int(before.size("bytes")), world.device)
                found.append((before, meter.in_step(lambda: start().wait(), _AGAIN_S).seconds))
        return found


_AGAIN_S = 0.05
"""For each of what is measured again."""

_AGAIN_BYTES = 2**20
"""Of its message at the most."""


def expected_s(first: Point, last: Point, amount: float) -> float:
    """Seconds of a larger call than those of two points, on the line through these: what any call takes is no reason to
    expect more of a large one."""
    (least, least_s), (most, most_s) = first, last
    slope = max(0.0, most_s - least_s) / (most - least) if most > least else 0.0
    return most_s + max(0.0, amount - most) * slope


@dataclass
class _Measuring:
    """A pass under way.

    Attributes:
        found, overlaps: what was measured so far.
    """

    meter: Meter
    environment: Environment
    told: Told
    found: dict[tuple[object, ...], Measurement] = field(default_factory=dict)
    overlaps: list[Overlap] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begun = time.perf_counter()
        self._ends: dict[tuple[object, ...], tuple[Point, Point]] = {}
        self._kernels = [
            *host_cases(self.device),
            *kernel_cases(GRIDS[self.device.type, self.effort.name], self.device),
        ]
        self._messages = MESSAGE_BYTES[self.effort.name]
        is_all = self.effort.name != GLANCE.name
        self._shapes = axis_shapes(self.meter.world.size, self.environment.devices_per_node, all_of_them=is_all)
        self._overlaps = list(product(COLLECTIVES, KERNELS)) if self._shapes and is_all else []
        self._left = len(self._kernels) + sum(self._axis_weight(size) for size, _ in self._shapes)
        self._left += _OVERLAP_WEIGHT * len(self._overlaps)
        self._all = self._left

    @property
    def device(self) -> torch.device:
        return self.meter.world.device

    @property
    def effort(self) -> Effort:
        return self.meter.effort

    def kernels(self) -> None:
        """All kernels, and the host; on a processor also what ranks take of its cores from each other."""
        self._measure(self._kernels, 1.0, "")
        per_node = self.environment.devices_per_node
        if self.device.type == "cpu" and per_node > 1:
            for name, ranks in product(KERNELS, sorted({1, max(1, per_node // 2), per_node})):
                is_one = self.meter.world.rank % per_node < ranks
                timing = self.meter.of_some(kernel_beside(name, self.device), is_one, self._share_s(1.0))
                measured = Measurement(
                    "shared cores", name, "f32", sizes_of(ranks=ranks), timing.seconds, timing.spread, timing.repeats
                )
                self.found[measured.key] = measured

    def links(self) -> None:
        """All shapes of groups, and on that of all ranks what runs beside them."""
        for size, stride in self._shapes:
            with axis_of(self.meter.world, size, stride) as axis:
                left = self._left - self._axis_weight(size)
                cases = collective_cases(axis, self._messages, self.device)
                self._measure(cases, _STEP_WEIGHT, f" of {size} ranks, {stride} apart")
                self._left = left
                if size == self.meter.world.size:
                    self._beside(axis)

    def _axis_weight(self, size: int) -> float:
        return _STEP_WEIGHT * len(self._messages) * (8 if size == 2 else 7)

    def _share_s(self, weight: float) -> float:
        """What is left of the time for something, if all gets as much of it as its weight says."""
        left_s = self._begun + self.effort.total_s - time.perf_counter()
        return max(0.0, left_s) * weight / max(weight, self._left)

    def _measure(self, cases: Iterable[Case], weight: float, where: str) -> None:
        for case in cases:
            self.told(f"{case.name} {case.how}".strip() + where, 1 - self._left / self._all)
            if self._fits(case):
                measured = self._timed(case, self._share_s(weight))
                self.found[measured.key] = measured
                point = case.amount, measured.seconds * case.calls
                first, _ = self._ends.get(self._series(case), (point, point))
                self._ends[self._series(case)] = first, point
            self._left -= weight

    def _fits(self, case: Case) -> bool:
        """Whether a call takes neither too much memory nor, on a line through the first and the last one of its series,
        too long. Ranks agree on it, since they have the same figures of everything."""
        if case.memory_bytes > ROOM * self.environment.memory_bytes:
            return False
        ends = self._ends.get(self._series(case))
        return ends is None or expected_s(*ends, case.amount) <= self.effort.longest_s

    @staticmethod
    def _series(case: Case) -> tuple[object, ...]:
        return (*case.series, *((n, s) for n, s in case.sizes if n in ("group", "stride")))

    def _timed(self, case: Case, share_s: float) -> Measurement:
        call = case.prepare()
        if case.in_step:
            timing = self.meter.in_step(call, share_s)
        else:
            timing = self.meter.free(call, share_s, on_host=case.on_host)
        seconds = timing.seconds / case.calls
        return Measurement(case.name, case.how, case.dtype, case.sizes, seconds, timing.spread, timing.repeats)

    def _beside(self, axis: Axis) -> None:
        for (name, how), kernel in self._overlaps:
            self.told(f"{name} beside a {kernel} kernel", 1 - self._left / self._all)
            alone = [
                m for m in self.found.values()
                if (m.name, m.how, m.dtype, m.size("group")) == (name, how, "f32", axis.size)
            ]  # fmt: skip
            overlap = measure_overlap(self.meter, name, how, kernel, axis, alone, self._share_s(_OVERLAP_WEIGHT))
            if overlap is not None:
                self.overlaps.append(overlap)
            self._left -= _OVERLAP_WEIGHT
