"""Figures of the last step: what it found, where its time went, and how much memory the ranks needed."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from galvatron.errors import GalvatronError
from galvatron.runtime.comm import now
from galvatron.runtime.comm.clock import Clock, PendingTimes, clock_of
from galvatron.runtime.mesh import World


@dataclass(frozen=True)
class StepMetrics:
    """What is known of a step. Times are those of this rank, on its device, and add up:
    `step_s = compute_s + exposed_communication_s + bubble_s`.

    Attributes:
        loss: on the whole batch, before the update.
        gradient_norm: the global norm before clipping; None where the step did not need it.
        step_s: from the call to the end of the update.
        compute_s: everything but waiting. On an accelerator also the time for which it had nothing to do.
        exposed_communication_s: waiting for collectives; what computation hides is not in it.
        bubble_s: waiting for other stages of the pipeline, message times included.
        waits_s: the two together, by what was waited for: "pipeline", collectives in "layers", "gradients",
            "parameters" (what ZeRO gathers), "totals" (loss and norm), "state".
        update_s: of `compute_s`, from the gradients to the end of the step; 0 without an update.
        peak_bytes: by rank, the most memory in use until the gradients of this step were there. On an accelerator what
            torch has allocated (`torch.cuda.max_memory_allocated`); on the CPU by how much the process has grown at
            most, its own slices of the model included, since it was compiled. None where the system does not tell.
        samples: of the global batch.
        tokens: elements of the first integer input with two dimensions (samples x positions); None without one.
        saving_s: for how long checkpoints held training up between the step before and this one; not of `step_s`.
    """

    loss: float
    gradient_norm: float | None
    step_s: float
    compute_s: float
    exposed_communication_s: float
    bubble_s: float
    peak_bytes: tuple[int, ...] | None
    samples: int
    tokens: int | None
    waits_s: Mapping[str, float] = field(default_factory=dict)
    update_s: float = 0.0
    saving_s: float = 0.0


KEPT = 8
"""Last steps whose figures can be read."""


@dataclass(frozen=True)
class _Step:
    times: PendingTimes
    totals: Tensor
    norm_scale: float | None
    samples: int
    tokens: int | None
    saving_s: float


class Meter:
    """Measures the steps of one rank. What all ranks are to know travels with the loss, in the collective that a step
    ends with anyway; figures are read when they are asked for.

    Args:
        state: parameters and buffers of this rank.

    Attributes:
        memory: of this rank.
        count: of steps so far.
    """

    def __init__(self, world: World, state: Iterable[Tensor]) -> None:
        self._world = world
        self._clock = now.clock = clock_of(world.device)
        self.memory = Memory(world.device, sum(t.nbytes for t in state))
        self._totals: Tensor | None = None
        self._norm_scale: float | None = None
        self._steps: deque[_Step | StepMetrics] = deque(maxlen=KEPT)
        self._saving_s = 0.0
        self.count = 0

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around what holds training up for a checkpoint, between two steps."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._saving_s += time.perf_counter() - begun

    @contextmanager
    def measured_by(self, other: Callable[[Clock], Clock]) -> Iterator[None]:
        """Inside the `with` block steps are measured by what `other` makes of the clock."""
        own = self._clock
        self._clock = other(own)
        try:
            yield
        finally:
            self._clock = now.clock = own

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Steps inside the `with` block do not count afterwards, nor does the memory that is in use in it."""
        before = self._steps.copy(), self._saving_s, self.count
        try:
            with self.memory.undisturbed():
                yield
        finally:
            self._steps, self._saving_s, self.count = before

    @contextmanager
    def step(self, batch: Mapping[str, Tensor], samples: int) -> Iterator[None]:
        """Around one step, in which `totals` is called, on the inputs that hold samples, or a part of these."""
        now.clock = self._clock
        self._clock.start_step()
        yield
        assert self._totals is not None
        times = self._clock.end_step()
        self._steps.append(
            _Step(times, self._totals, self._norm_scale, samples, _tokens(batch, samples), self._saving_s)
        )
        self._saving_s = 0.0
        self.count += 1

    def start_update(self) -> None:
        """The update of the step begins."""
        self._clock.start_update()

    def totals(self, loss: Tensor, squared_norm: Tensor | None, outside: Tensor, scale: float = 1.0) -> Tensor:
        """What is to be summed over the world, as float64: this rank's shares of the loss and of the squared norm, what
        it looked up, and its memory beside zeros for that of the others.

        Args:
            outside: see `Bounds.outside`.
            scale: gradients are this multiple of the true ones.
        """
        totals = loss.new_zeros(4 + self._world.size, dtype=torch.float64)
        totals[0] = loss
        if squared_norm is not None:
            totals[1] = squared_norm
        totals[2:4] = outside
        totals[4 + self._world.rank] = self.memory.peak_bytes()
        self._totals = totals
        self._norm_scale = None if squared_norm is None else scale
        return totals

    def read(self) -> StepMetrics:
        """The figures of the last step that ended.

        Raises:
            GalvatronError: there was none.
        """
        if not self._steps:
            raise GalvatronError("there are no metrics before the first step")
        return self._read(len(self._steps) - 1)

    def pending(self) -> Callable[[], StepMetrics]:
        """Reads the figures of the last step that ended later, when no device need be waited for.

        Raises:
            GalvatronError: there was none.
        """
        if not self._steps:
            raise GalvatronError("there are no metrics before the first step")
        step = self._steps[-1]
        return lambda: _read(step) if isinstance(step, _Step) else step

    def recent(self) -> list[StepMetrics]:
        """The figures of the last steps, `KEPT` at most; without that of the first one of all, in which much is done
        that is not done again."""
        first = 1 if self.count <= KEPT else 0
        return [self._read(index) for index in range(first, len(self._steps))]

    def _read(self, index: int) -> StepMetrics:
        step = self._steps[index]
        if isinstance(step, _Step):
            step = self._steps[index] = _read(step)
        return step


def _read(step: _Step) -> StepMetrics:
    times = step.times.read()
    loss, squared_norm, _, _, *peaks = step.totals.tolist()
    return StepMetrics(
        loss=loss,
        gradient_norm=None if step.norm_scale is None else math.sqrt(squared_norm) / step.norm_scale,
        step_s=times.step_s,
        compute_s=times.step_s - times.communication_s - times.pipeline_s,
        exposed_communication_s=times.communication_s,
        bubble_s=times.pipeline_s,
        peak_bytes=None if any(math.isnan(peak) for peak in peaks) else tuple(map(int, peaks)),
        samples=step.samples,
        tokens=step.tokens,
        waits_s=times.waits_s,
        update_s=times.update_s,
        saving_s=step.saving_s,
    )


def _tokens(batch: Mapping[str, Tensor], samples: int) -> int | None:
    """Tokens of a batch of so many samples."""
    integers = (v for v in batch.values() if not (v.is_floating_point() or v.is_complex() or v.dtype == torch.bool))
    return next((samples * v.size(1) for v in integers if v.dim() == 2), None)


class Memory:
    """Bytes in use by this rank: on an accelerator what torch has allocated, on the CPU by how much the process has
    grown since, with its own slices of the model; NaN where nobody knows.

    The highest resident size of the process is forgotten first, since compiling may have needed more than training.
    """

    def __init__(self, device: torch.device, state_bytes: int) -> None:
        self._device = device
        self._before = math.nan
        self._earlier = 0.0
        """The most before it was last forgotten."""
        if device.type == "cpu":
            with suppress(OSError, ImportError, ValueError):
                before = _resident_bytes() - state_bytes
                self._forget_peak()
                self._before = float(before)

    def peak_bytes(self) -> float:
        """The most so far."""
        if self._device.type != "cpu":
            return max(self._earlier, float(torch.accelerator.max_memory_allocated(self._device)))
        if math.isnan(self._before):
            return math.nan
        import resource

        return max(self._earlier, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self._before)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """What is in use inside the `with` block, and no longer behind it, does not count to the most: what torch or
        the system has counted as that is set back."""
        earlier = self.peak_bytes()
        try:
            yield
        finally:
            if not math.isnan(earlier):
                self._earlier = earlier
                self._forget_peak()

    def _forget_peak(self) -> None:
        """The most in use is what is in use now."""
        if self._device.type != "cpu":
            return torch.accelerator.reset_peak_memory_stats(self._device)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # see proc_pid_clear_refs(5)

    def used_bytes(self) -> float:
        """What is in use now."""
        if self._device.type != "cpu":
            return float(torch.accelerator.memory_allocated(self._device))
        return math.nan if math.isnan(self._before) else max(0.0, _resident_bytes() - self._before)


def _resident_bytes() -> int:
    import resource

    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
