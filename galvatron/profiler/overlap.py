"""How much a kernel and a collective slow each other down when both are under way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from galvatron.profiler.collectives import Start, starter
from galvatron.profiler.meter import Call, Meter, synchronize
from galvatron.profiler.profile import Measurement, Overlap
from galvatron.runtime.mesh import Axis

COLLECTIVES = (("all_reduce", ""), ("all_gather", ""), ("reduce_scatter", ""), ("p2p", "both ways"))
KERNELS = ("product", "pointwise")

_LONG_S = {"cpu": 5e-3, "cuda": 5e-4}
_LONG_BYTES = 2**20
"""What a collective must take, and send, for what runs beside it to be seen."""

_SHARE = 0.4
"""Of a collective's time that the kernels beside it take by themselves: they should end first, slowed down too."""

_SIDE = {"cpu": 256, "cuda": 2048}
"""Rows and columns of the matrices."""


def measure_overlap(
    meter: Meter, name: str, how: str, kernel: str, axis: Axis, alone: list[Measurement], share_s: float
) -> Overlap | None:
    """A kernel beside a collective on an axis. Collective: all ranks do it at once.

    Args:
        alone: what was measured of the collective on the axis, on all ranks alike.
        share_s: seconds that it may take.

    Returns:
        None if no message takes long enough.
    """
    device = meter.world.device
    fitting = [m for m in alone if m.seconds >= _LONG_S[device.type] and m.size("bytes") >= _LONG_BYTES]
    long = sorted((m.size("bytes"), m.seconds) for m in fitting)
    if not long:
        return None
    nbytes, collective_s = int(long[0][0]), long[0][1]
    start = starter(name, how, axis, nbytes, device)
    run = kernel_beside(kernel, device)
    once_s = meter.free(run, share_s / 10).seconds
    calls = _calls(run, max(1, round(_SHARE * collective_s / once_s)))

    rounds: list[list[float]] = []
    deadline = time.perf_counter() + share_s
    while True:
        samples = [
            _sample(meter, calls)[-1],
            _sample(meter, lambda: start().wait())[-1],
            *_sample(meter, *_beside(start, calls)),
        ]
        *sums, late = meter.agreed(*samples, float(time.perf_counter() > deadline))
        rounds.append([total / meter.world.size for total in sums])
        least, most = meter.effort.windows
        if len(rounds) >= most or (late and len(rounds) >= least):
            break
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    title = f"{name} {how}".strip()
    return Overlap(title, kernel, axis.size, axis.stride, nbytes, *medians)


def kernel_beside(name: str, device: torch.device) -> Call:
    """One of `KERNELS`, of a size that keeps the device busy."""
    a, b = (torch.randn(_SIDE[device.type], _SIDE[device.type], device=device) for _ in range(2))
    if name == "product":
        return lambda: torch.mm(a, b)
    # Many elements, so that memory is what it waits for.
    x, y = (torch.zeros(2**20 if device.type == "cpu" else 2**25, device=device) for _ in range(2))
    return lambda: torch.add(x, y)


def _calls(run: Call, count: int) -> Call:
    def repeated() -> None:
        for _ in range(count):
            run()

    return repeated


def _beside(start: Start, calls: Call) -> tuple[Call, Call]:
    handles: list[Any] = []

    def started() -> None:
        handles.append(start())
        calls()

    return started, lambda: handles.pop().wait()


def _sample(meter: Meter, *parts: Call) -> list[float]:
    """Seconds until each of some parts has ended, begun on all ranks at once."""
    synchronize(meter.world.device)
    meter.agreed(0.0)
    return _elapsed(meter.world.device, *parts)


def _elapsed(device: torch.device, *parts: Call) -> list[float]:
    mark, passed_s = _clock(device)
    marks = [mark()]
    for part in parts:
        part()
        marks.append(mark())
    synchronize(device)
    return [passed_s(marks[0], later) for later in marks[1:]]


def _clock(device: torch.device) -> tuple[Callable[[], Any], Callable[[Any, Any], float]]:
    """What marks a moment of the computation, and the seconds between two of these."""
    if device.type == "cpu":
        return time.perf_counter, lambda begin, end: end - begin

    def mark() -> torch.Event:
        event = torch.Event(device, enable_timing=True)
        event.record()
        return event

    return mark, lambda begin, end: begin.elapsed_time(end) / 1e3
