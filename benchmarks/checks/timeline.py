"""What a device does over several steps in a row: its kernels, once it is warm, and what lies between them."""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common.clocks import synchronize
from torch.profiler import ProfilerActivity, profile

WARM_S = 1.0
"""After so long the clock of a device is that which its power allows."""

STEPS = 5
MOST_GAPS = 12
MOST_CHARACTERS = 100
"""Of the name of a kernel."""

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Gap:
    """Seconds of a step in which nothing runs between two kernels, and how often that is so."""

    behind: str
    before: str
    count: float
    seconds: float


@dataclass(frozen=True)
class Timeline:
    """One of several steps in a row.

    Attributes:
        step_s: from one step to the next, under the profiler.
        busy_s: of that, in which something runs on the device.
        kernels: name → (launches, seconds), copies among them.
        idle_s: the rest by how long it lasts at a stretch: up to so many microseconds.
        gaps: those that come to most, by the kernels around them.
        clock_mhz, watts: of the device while it is warm, in the middle.
    """

    step_s: float
    busy_s: float
    kernels: dict[str, tuple[float, float]]
    idle_s: dict[str, float]
    gaps: list[Gap]
    clock_mhz: float | None
    watts: float | None


def timeline(step: Callable[[], Any], device: torch.device) -> Timeline:
    """Runs steps until the device is warm, and then watches some."""
    with watched() as readings:
        began = time.perf_counter()
        while time.perf_counter() - began < WARM_S:
            step()
            synchronize(device)
        readings.clear()
        for _ in range(STEPS):
            step()
        synchronize(device)
        clock_mhz, watts = readings.medians()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(STEPS):
            step()
        synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return read(events, STEPS, clock_mhz, watts)


def read(
    events: list[dict[str, Any]], steps: int, clock_mhz: float | None = None, watts: float | None = None
) -> Timeline:
    """The events of a trace, as torch's profiler writes them, microseconds."""
    ran = sorted(
        (e["ts"], e["ts"] + e["dur"], e["name"][:MOST_CHARACTERS]) for e in events if e.get("cat") in ON_DEVICE
    )
    kernels: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    between: dict[tuple[str, str], list[float]] = defaultdict(list)
    end, last = ran[0][0], ""
    for begun, ended, name in ran:
        count, seconds = kernels[name]
        kernels[name] = count + 1 / steps, seconds + (ended - begun) / 1e6 / steps
        if begun > end:
            between[last, name].append((begun - end) / 1e6)
        if ended > end:
            end, last = ended, name
    whole_s = (end - ran[0][0]) / 1e6
    lengths = [length for each in between.values() for length in each]
    idle_s = {
        f"{most * 1e6:.0f}": sum(length for length in lengths if least < length <= most) / steps
        for least, most in ((0.0, 2e-6), (2e-6, 1e-5), (1e-5, 1e-4), (1e-4, 10.0))
    }
    gaps = [Gap(*names, len(each) / steps, sum(each) / steps) for names, each in between.items()]
    gaps.sort(key=lambda gap: gap.seconds, reverse=True)
    return Timeline(
        step_s=whole_s / steps,
        busy_s=(whole_s - sum(lengths)) / steps,
        kernels=dict(kernels),
        idle_s=idle_s,
        gaps=gaps[:MOST_GAPS],
        clock_mhz=clock_mhz,
        watts=watts,
    )


@dataclass
class Readings:
    """What a GPU says of itself while it works."""

    clock_mhz: list[float] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)

    def clear(self) -> None:
        self.clock_mhz.clear()
        self.watts.clear()

    def medians(self) -> tuple[float | None, float | None]:
        """Of the clock and the power; None where it said nothing."""
        clock_mhz, watts = (statistics.median(each) if each else None for each in (self.clock_mhz, self.watts))
        return clock_mhz, watts


@contextmanager
def watched(every_s: float = 0.01) -> Iterator[Readings]:
    """Readings of the current GPU meanwhile; none where its management library is not there."""
    readings, over = Readings(), threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            try:
                clock, milliwatts = torch.cuda.clock_rate(), torch.cuda.power_draw()
            except (RuntimeError, AttributeError, ModuleNotFoundError):
                return
            readings.clock_mhz.append(clock)
            readings.watts.append(milliwatts / 1e3)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield readings
    finally:
        over.set()
        thread.join()
