"""Seconds on a device: events in its stream on a GPU, the host's clock on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Run = Callable[[], Any]


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a step, round by round: on the device, and those for which the host was busy giving it work."""

    step_s: list[float]
    host_s: list[float]


def steps_in_turn(
    steps: Mapping[str, Run], device: torch.device, *, rounds: int, each: int = 2, warm: int = 2
) -> dict[str, StepTimes]:
    """Times of each step over rounds in which every one runs `each` times in a row, each round beginning with another.

    Within a row nothing waits for the device, as in a training loop that logs nothing.

    Args:
        warm: rounds before those that are timed.
    """
    times = {name: StepTimes([], []) for name in steps}
    names = list(steps)
    for turn in range(warm + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            step_s, host_s = _row(steps[name], device, each)
            if turn >= warm:
                times[name].step_s.append(step_s)
                times[name].host_s.append(host_s)
    return times


def _row(step: Run, device: torch.device, each: int) -> tuple[float, float]:
    synchronize(device)
    began = time.perf_counter()
    seconds = _between(lambda: [step() for _ in range(each)], device)
    host_s = time.perf_counter() - began
    synchronize(device)
    whole_s = seconds()
    return whole_s / each, (host_s if device.type == "cuda" else whole_s) / each


def _between(run: Run, device: torch.device) -> Callable[[], float]:
    """Runs it; what is returned tells the seconds, once the device is there."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        passed = time.perf_counter() - began
        return lambda: passed
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    run()
    after.record()
    return lambda: before.elapsed_time(after) / 1e3
