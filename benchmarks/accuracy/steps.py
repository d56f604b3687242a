"""Steps of plans, measured: one job of several ranks takes all plans of a model."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TextIO

import torch
import torch.distributed as dist
from common import memory
from common.measure import in_turn

import galvatron
from accuracy.plans import Model
from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.profiler.meter import spread_of

TOGETHER = 6
"""Programs that are in memory at a time, and take turns."""

SPAN_S = 1.0
"""Of a turn: where ranks go before other programs, Linux lets these have a twentieth of each second."""


@dataclass(frozen=True)
class Measured:
    """What steps of one plan took.

    Attributes:
        step_s: wall-clock seconds of a step on the slowest rank, turn by turn.
        cpu_s: of all ranks together.
        thread_s: by rank, CPU seconds of the thread that computes; the rest of `cpu_s` is that of the communication
            library. Median.
        compute_s, waiting_s, bubble_s: by rank, medians of `compiled.metrics`: computing, waiting for collectives, and
            waiting for other stages.
        peak_bytes: by rank, what tensors held at the most in a step that was not the first.
    """

    step_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    thread_s: tuple[float, ...]
    compute_s: tuple[float, ...]
    waiting_s: tuple[float, ...]
    bubble_s: tuple[float, ...]
    peak_bytes: tuple[int, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.step_s)

    @property
    def spread(self) -> float:
        """How far apart the middle half of the steps is, relative to the median."""
        return spread_of(list(self.step_s))


def _adamw(parameters: list[Any]) -> torch.optim.Optimizer:
    """An optimizer that does all of its work and leaves weights as they are: a router that learned the one batch would
    choose otherwise in each step."""
    return torch.optim.AdamW(parameters, lr=0.0)


class _Running:
    """A compiled plan on this rank, and the figures of its steps."""

    def __init__(self, model: Model, plan: str, cluster: Cluster) -> None:
        gc.collect()
        self.times: list[tuple[float, float, float, float]] = []
        batch = model.batch()
        with memory.watched() as watched:
            compiled = galvatron.compile(model.build(), batch, plan=plan, cluster=cluster, optimizer=_adamw)
            gc.collect()
            compiled.train_step(batch)  # it makes the optimizer's state
            watched.begin()
            compiled.train_step(batch)
        self.peak_bytes = watched.peak_bytes
        self._compiled, self._batch = compiled, batch

    def step(self) -> None:
        begun = time.thread_time()
        self._compiled.train_step(self._batch)
        thread_s, found = time.thread_time() - begun, self._compiled.metrics
        self.times.append((thread_s, found.compute_s, found.exposed_communication_s, found.bubble_s))

    def figures(self) -> tuple[Any, ...]:
        """Medians of all steps but the first two, and the peak."""
        return *map(statistics.median, zip(*self.times[2:], strict=True)), self.peak_bytes


def measured(
    model: Model, cluster: Cluster, rounds: int, told: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each plan the fields of `Measured`, or `{"refused": why}`. Collective, alike on all ranks."""
    for first in range(0, len(model.plans), TOGETHER):
        running: dict[str, _Running] = {}
        for plan in model.plans[first : first + TOGETHER]:
            told(f"{plan}: compiling")
            try:
                running[plan] = _Running(model, plan, cluster)
            except GalvatronError as error:
                told(f"{plan}: refused: {error}")
                yield plan, {"refused": str(error)}
        steps = {plan: one.step for plan, one in running.items()}
        times = in_turn(steps, rounds, warm=1, before=1, span_s=SPAN_S) if running else {}
        for plan, one in running.items():
            own = one.figures()
            everyone: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, own)
            found = Measured(tuple(times[plan].wall_s), tuple(times[plan].cpu_s), *zip(*everyone, strict=True))
            told(f"{plan}: {found.median_s:.3f} s")
            yield plan, asdict(found)


def teller(path: str, is_one: bool) -> Callable[[str], None]:
    """What writes lines of progress to a file of another process, such as where it shows its errors."""
    file: TextIO | None = None
    if is_one:
        with suppress(OSError):
            file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - it is open as long as the process

    def tell(line: str) -> None:
        if file is not None:
            print(line, file=file, flush=True)

    return tell
