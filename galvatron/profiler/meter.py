"""How long a call takes: repeated until its median is certain enough, or its share of the time is used up.

All ranks measure at once, since ranks of one machine share its cores, its memory and its links, and all end with the
same figures: what is told from a time is told from what all ranks have agreed on.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from galvatron.profiler.cores import crowding
from galvatron.runtime import comm
from galvatron.runtime.agreement import telling_device
from galvatron.runtime.mesh import World

Call = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How much a measurement may take.

    Attributes:
        name: under which sizes are chosen for it.
        total_s: seconds of a whole profile, roughly.
        window_s: of one window, in which a call is made again and again; its rate is one sample.
        certainty: half of a median's uncertainty, relative to it, that is small enough to stop.
        windows: samples of one call, at the least and at the most; of a call that is longer than a few windows there
            may be fewer, if there is no time.
        longest_s: a call that is expected to take longer is not made.
    """

    name: str
    total_s: float
    window_s: float
    certainty: float
    windows: tuple[int, int]
    longest_s: float


GLANCE = Effort("glance", total_s=4.0, window_s=0.01, certainty=0.1, windows=(2, 5), longest_s=0.1)
"""What `compile` does by itself."""

QUICK = Effort("quick", total_s=60.0, window_s=0.02, certainty=0.03, windows=(3, 15), longest_s=0.6)
FULL = Effort("full", total_s=600.0, window_s=0.06, certainty=0.01, windows=(5, 41), longest_s=5.0)


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of some windows, and how far apart their middle half is, relative to it."""

    seconds: float
    spread: float
    repeats: int


class Meter:
    """Measures calls on this rank's device, together with all ranks of the job.

    Every method is collective: ranks make the same ones in the same order. A call must not depend on what another rank
    does, but for those of `in_step`.
    """

    def __init__(self, world: World, effort: Effort) -> None:
        self.world = world
        self.effort = effort
        self._host = telling_device(world)

    @cached_property
    def turns(self) -> float:
        """Seconds of the clock in which a rank, of one thread, gets one of a core while all compute; 1 where there is a
        core for each. Collective, the first time.

        Above that it is the time of its thread that tells what a call takes: of a window of the clock nobody knows how
        much of the core it had. Ranks take turns, and what else runs on the machine takes its part, which a long window
        shows.
        """
        (threads,) = self.agreed(float(torch.get_num_threads()), largest=True)
        if self.world.device.type != "cpu" or self.world.size == 1 or threads > 1:
            return 1.0
        ranks, cores = crowding(self.world)
        return 1.0 if ranks <= cores else max(ranks / cores, self._stretched())

    def _stretched(self) -> float:
        """Seconds of the clock for one of a core, while all ranks compute."""
        span_s = min(_LONGEST_SPAN_S, self.effort.total_s / 10)
        self.agreed(0.0)
        begun, own = time.perf_counter(), time.thread_time()
        while (passed_s := time.perf_counter() - begun) < span_s:
            pass
        (cores,) = self.agreed((time.thread_time() - own) / passed_s)
        return self.world.size / cores

    def agreed(self, *values: float, largest: bool = False) -> list[float]:
        """The sum of each value over all ranks, or its largest."""
        if self.world.size == 1:
            return list(values)
        kind = torch.float64 if self._host.type == "cpu" else torch.float32
        together = torch.tensor(values, dtype=kind, device=self._host)
        comm.all_reduce(together, comm.all_ranks(), "max" if largest else "sum", phase="a measurement").wait()
        return together.tolist()

    def free(self, call: Call, share_s: float, *, on_host: bool = False, launches: int = 1) -> Timing:
        """Seconds of a call that every rank makes as often as it can: what it takes where ranks share what they run on.

        Args:
            share_s: the time that this may take.
            on_host: it is the time of the process that counts, not that of its device.
            launches: of kernels in one call, roughly.
        """
        single_s = self._first(call)
        window_s = max(self.effort.window_s, 2 * single_s)
        batch = max(1, int(min(1e-4, window_s / 4) / single_s))
        if (turns := self.turns) > 1:
            return self._sampled(lambda: turns * _own_s(call, batch, window_s / turns), share_s)
        if self.world.device.type == "cuda" and not on_host:
            count = max(1, min(_MOST_QUEUED, _MOST_LAUNCHED // launches, int(window_s / single_s)))
            return self._sampled(lambda: _queued_s(call, count, self.world.device), share_s)
        return self._sampled(lambda: _window_s(call, batch, window_s), share_s)

    def of_some(self, call: Call, is_one: bool, share_s: float) -> Timing:
        """The same where only some ranks make the call, and the others wait for them; on the host."""
        if is_one:
            call()
        (ranks,) = self.agreed(float(is_one))
        window_s = self.effort.window_s
        return self._sampled(lambda: _window_s(call, 1, window_s) if is_one else math.inf, share_s, ranks)

    def in_step(self, call: Call, share_s: float) -> Timing:
        """Seconds of a call in which ranks wait for each other, and which each of them makes equally often."""
        single_s = self._first(call)
        count = max(1, min(_MOST_QUEUED, int(self.effort.window_s / single_s)))
        if self.world.device.type == "cuda":
            return self._sampled(lambda: _queued_s(call, count, self.world.device), share_s)
        return self._sampled(lambda: _counted_s(call, count), share_s)

    def _first(self, call: Call) -> float:
        """Seconds of one call that is not the first, on the rank where it takes longest."""
        call()
        synchronize(self.world.device)
        self.agreed(0.0)
        begin = time.perf_counter()
        call()
        synchronize(self.world.device)
        return max(1e-8, *self.agreed(time.perf_counter() - begin, largest=True))

    def _sampled(self, window: Callable[[], float], share_s: float, ranks: float | None = None) -> Timing:
        """The median of what windows say, until it is certain or the share is used up on some rank."""
        least, most = self.effort.windows
        deadline = time.perf_counter() + share_s
        samples: list[float] = []
        while True:
            self.agreed(0.0)
            begun = time.perf_counter()
            seconds = window()
            ended = time.perf_counter()
            is_long = ended - begun > _LONG * self.effort.window_s
            # Rates are added up: ranks that share cores do not get equally much of them in every window.
            rate, long, late = self.agreed(1 / seconds, float(is_long), float(ended > deadline))
            samples.append((ranks or self.world.size) / rate)
            enough = len(samples) >= least or long > 0
            if len(samples) >= most or (enough and late > 0) or (len(samples) >= least and self._is_certain(samples)):
                return Timing(statistics.median(samples), spread_of(samples), len(samples))

    def _is_certain(self, samples: list[float]) -> bool:
        return len(samples) >= 3 and spread_of(samples) / math.sqrt(len(samples)) < 2 * self.effort.certainty


def spread_of(samples: list[float]) -> float:
    """The width of the middle half of some samples, relative to their median; of two, of both."""
    if len(samples) < 2:
        return 0.0
    quarters = statistics.quantiles(samples, n=4, method="inclusive")
    return (quarters[2] - quarters[0]) / statistics.median(samples)


def synchronize(device: torch.device) -> None:
    """Returns when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_LONGEST_SPAN_S = 5.0
"""Of seeing what ranks get of the cores. Linux lets other programs have their part of these second by second."""

_LONG = 4
"""Windows that a call may take before one of it is enough where there is no time."""

_MOST_QUEUED = 200
"""Calls of one window whose number is fixed: a device takes so many before the host must wait."""

_MOST_LAUNCHED = 1000
"""Kernels that a device takes before it has begun the first: then the host waits, and the device would wait for it."""

_CYCLES_PER_S = 2e9
"""At which a device waits, at the most, so that what is launched meanwhile runs without gaps."""


def _window_s(call: Call, batch: int, window_s: float) -> float:
    """Seconds of one of the calls that are made in a window."""
    made, begin = 0, time.perf_counter()
    while True:
        for _ in range(batch):
            call()
        made += batch
        passed_s = time.perf_counter() - begin
        if passed_s >= window_s:
            return passed_s / made


def _own_s(call: Call, batch: int, window_s: float) -> float:
    """Seconds of the thread for one of the calls that it makes in so many seconds of its own."""
    made, begin = 0, time.thread_time()
    while True:
        for _ in range(batch):
            call()
        made += batch
        passed_s = time.thread_time() - begin
        if passed_s >= window_s:
            return passed_s / made


def _counted_s(call: Call, count: int) -> float:
    """Seconds of one of so many calls."""
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count


def _queued_s(call: Call, count: int, device: torch.device) -> float:
    """Seconds on the device of one of so many calls, which all are launched before the first one runs."""
    begin = time.perf_counter()
    call()
    launched_s = time.perf_counter() - begin
    start, end = (torch.Event(device, enable_timing=True) for _ in range(2))
    synchronize(device)
    torch.cuda._sleep(int(min(0.5, 1.5 * count * launched_s) * _CYCLES_PER_S))  # pyright: ignore[reportPrivateUsage]
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / count
