"""Layer classes timed on this device, forward and backward, by the code that a stage runs of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from galvatron.calibration.alone import Alone
from galvatron.calibration.cases import LayerCase
from galvatron.costs.events import Profile as Observed
from galvatron.costs.events import launches
from galvatron.costs.profile import profile_graph
from galvatron.ir.types import evaluate
from galvatron.profiler.cases import in_turn
from galvatron.profiler.environment import agreed_environment
from galvatron.profiler.hardware import expected_s
from galvatron.profiler.meter import Effort, Meter, Timing
from galvatron.profiler.profile import LayerTime, Profile
from galvatron.runtime import failure
from galvatron.runtime.mesh import World

Told = Callable[[str, float], None]
"""Hears what is measured now, and what share of the work is done."""

ROOM = 1 / 2
"""Of a rank's memory that a layer may take."""


@dataclass(frozen=True)
class MeasuredLayers:
    """A profile with the times of layers, and what was not timed, with the reason; `unfit` are the classes that cannot
    run by themselves."""

    profile: Profile
    left_out: tuple[tuple[str, str], ...]
    unfit: tuple[tuple[str, str], ...]


def measure_layers(
    world: World, cases: Sequence[LayerCase], effort: Effort, told: Told | None = None
) -> MeasuredLayers:
    """Times layer classes, alike on every rank. Collective: all ranks measure at once.

    Args:
        effort: how long all may take, and how sure a time must be.
        told: called again and again, on every rank.

    Raises:
        RankError: another rank failed first.
    """
    with failure.guarded("profiling the layers"):
        environment, taken = agreed_environment(world)
        measuring = _Measuring(Meter(world, effort), environment.memory_bytes, sum(len(c.samples) for c in cases))
        for case in cases:
            measuring.time(case, told or (lambda what, share: None))
        name = f"local:{environment.nodes}x{environment.devices_per_node}"
        profile = Profile(name, environment, taken, classes=tuple(measuring.times))
        return MeasuredLayers(profile, tuple(measuring.left_out), tuple(measuring.unfit.items()))


@dataclass
class _Measuring:
    """Measurements under way, of which so many are `left`."""

    meter: Meter
    memory_bytes: int
    left: int
    times: list[LayerTime] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    unfit: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._all = self.left
        self._begun = time.perf_counter()

    def time(self, case: LayerCase, told: Told) -> None:
        """Times a class at its batch sizes, from the smallest on, as far as these are likely to fit."""
        local, device = case.local, self.meter.world.device
        observed = profile_graph(local.graph, local.cls.mesh, local.differentiable, local.recompute, kind=device.type)
        ends: list[tuple[float, float]] = []
        for samples in case.samples:
            told(f"{case.name}, {samples} samples", 1 - self.left / self._all)
            if reason := self._too_much(case, observed, samples, ends):
                self.left_out.append((f"{case.name}, {samples} samples", reason))
            elif not isinstance(alone := self._alone(case, samples), str):
                ends.append((float(samples), sum(self._timed(case, alone, observed, samples))))
            elif ends:
                self.left_out.append((f"{case.name}, {samples} samples", alone))
            else:
                self.unfit.setdefault(case.name, alone)
            self.left -= 1

    def _alone(self, case: LayerCase, samples: int) -> Alone | str:
        """The class, once it has run forward and backward; why it cannot by itself, if it cannot on some rank."""
        alone, problem = None, ""
        try:
            alone = Alone(case, samples, self.meter.world.device)
            if alone.differentiates:
                alone.both(*alone.values)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            problem = f"it cannot be run by itself on {samples} samples: {error}"
        (failed,) = self.meter.agreed(float(bool(problem)), largest=True)
        if failed or alone is None:
            return problem or "it cannot be run by itself on another rank"
        return alone

    def _too_much(self, case: LayerCase, observed: Observed, samples: int, ends: Sequence[tuple[float, float]]) -> str:
        """Why a batch is too large, or it is too late for it; empty if neither. Ranks agree on it."""
        (late,) = self.meter.agreed(float(self._share_s() <= 0), largest=True)
        if late:
            return f"there was no time left of {self.meter.effort.total_s:.0f} s"
        if _memory_bytes(case, observed, samples) > ROOM * self.memory_bytes:
            return "it takes more than half of the memory"
        if ends and expected_s(ends[0], ends[-1], samples) > self.meter.effort.longest_s:
            return f"a call would take more than {self.meter.effort.longest_s:g} s"
        return ""

    def _timed(self, case: LayerCase, alone: Alone, observed: Observed, samples: int) -> tuple[float, float]:
        """Seconds forward and backward; what both take together, less the forward, is the backward."""
        forward, backward = len(launches(observed.forward)), len(launches(observed.backward))
        share_s = self._share_s() / 2
        first = self.meter.free(in_turn(alone.forward, alone.values), share_s, launches=max(1, forward))
        self._note(case, "forward", samples, first, first.seconds)
        if not alone.differentiates:
            return first.seconds, 0.0
        both = self.meter.free(in_turn(alone.both, alone.values), share_s, launches=max(1, forward + backward))
        backward_s = max(both.seconds - first.seconds, _LEAST_S)
        self._note(case, "backward", samples, both, backward_s)
        return first.seconds, backward_s

    def _note(self, case: LayerCase, how: str, samples: int, timing: Timing, seconds: float) -> None:
        time_ = LayerTime(case.name, case.local.fingerprint, how, samples, seconds, timing.spread, timing.repeats)
        self.times.append(time_)

    def _share_s(self) -> float:
        """What is left of the time for the next batch size."""
        return (self._begun + self.meter.effort.total_s - time.perf_counter()) / max(1, self.left)


_LEAST_S = 1e-9
"""Of a backward that is lost in the spread of the forward."""


def _memory_bytes(case: LayerCase, observed: Observed, samples: int) -> float:
    """What a call needs, with the gradients of all that it is given."""
    graph = case.local.graph
    values = (*graph.inputs, *graph.state)
    given = sum(evaluate(value.type.bytes, samples) for value in values)
    extra = max(observed.forward_extra_bytes(samples), observed.backward_extra_bytes(samples))
    shared = sum(size(samples) for _, size in observed.shared_bytes)
    return 2 * given + observed.saved_bytes(samples) + shared + extra
