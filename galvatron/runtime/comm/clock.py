"""How long a rank waits: on the CPU the host's time around waits, on other devices events beside them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from galvatron.runtime.comm.message import PIPELINE, Message

Begun = Any
"""What a clock remembers of the beginning of a wait."""


LAYERS = "layers"
"""What collectives are for that are a part of a layer, forward or backward."""


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one step: all of it, what of that was spent waiting, and the update that it ends with.

    `waits_s` are by what was waited for: other stages (`PIPELINE`), collectives in `LAYERS`, or the phase of a message,
    such as "gradients".
    """

    step_s: float
    waits_s: Mapping[str, float]
    update_s: float = 0.0

    @property
    def pipeline_s(self) -> float:
        """Waiting for other stages."""
        return self.waits_s.get(PIPELINE, 0.0)

    @property
    def communication_s(self) -> float:
        """Waiting for collectives."""
        return sum(self.waits_s.values()) - self.pipeline_s


def purpose(message: Message) -> str:
    """What a wait is for, as in `StepTimes.waits_s`."""
    if message.kind == PIPELINE:
        return PIPELINE
    return LAYERS if message.phase in ("forward", "backward") else message.phase


class Clock(Protocol):
    def started(self, message: Message) -> None:
        """A communication begins, which may be waited for later."""
        ...

    def begin(self) -> Begun: ...

    def end(self, wait: Message, begun: Begun) -> None: ...

    def start_step(self) -> None:
        """Forget the waits so far."""
        ...

    def start_update(self) -> None:
        """What comes now until the end of the step is the update."""
        ...

    def end_step(self) -> PendingTimes:
        """The times since `start_step`."""
        ...

    def front(self) -> Message | None:
        """The wait that the device, behind the host, is in now."""
        ...


class PendingTimes(Protocol):
    def read(self) -> StepTimes:
        """The times; waits for the end of the step if the device has not reached it."""
        ...


class HostClock:
    """For work that the host itself waits for."""

    def __init__(self) -> None:
        self.start_step()

    def started(self, message: Message) -> None:
        pass

    def begin(self) -> float:
        return time.perf_counter()

    def end(self, wait: Message, begun: float) -> None:
        what = purpose(wait)
        self._waits_s[what] = self._waits_s.get(what, 0.0) + time.perf_counter() - begun

    def start_step(self) -> None:
        self._waits_s: dict[str, float] = {}
        self._updated: float | None = None
        self._started = time.perf_counter()

    def start_update(self) -> None:
        self._updated = time.perf_counter()

    def end_step(self) -> PendingTimes:
        ended = time.perf_counter()
        update_s = 0.0 if self._updated is None else ended - self._updated
        return _Known(StepTimes(ended - self._started, dict(self._waits_s), update_s))

    def front(self) -> None:
        return None


@dataclass(frozen=True)
class _Known:
    times: StepTimes

    def read(self) -> StepTimes:
        return self.times


_Span = tuple[Message, torch.Event, torch.Event]
_MOST_SPANS = 1 << 16


class DeviceClock:
    """For devices that run behind the host: events in the stream of the computation, read when the step is over.

    An event is in the stream before and after each wait, so that the oldest span whose end the device has not reached
    is the wait that it is in, if it has reached the beginning.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.start_step()

    def started(self, message: Message) -> None:
        pass

    def begin(self) -> torch.Event:
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event

    def end(self, wait: Message, begun: torch.Event) -> None:
        if len(self._spans) >= _MOST_SPANS:  # communication outside of steps, where nobody forgets it
            self._spans = []
            self._reached = 0
        self._spans.append((wait, begun, self.begin()))

    def start_step(self) -> None:
        self._spans: list[_Span] = []
        self._reached = 0
        self._updated: torch.Event | None = None
        self._started = self.begin()

    def start_update(self) -> None:
        self._updated = self.begin()

    def end_step(self) -> PendingTimes:
        return _Recorded(self._started, self._updated, self.begin(), tuple(self._spans))

    def front(self) -> Message | None:
        spans = self._spans  # the step's own list, also when another step starts meanwhile
        reached = min(self._reached, len(spans))
        while reached < len(spans) and spans[reached][2].query():
            reached += 1
        if spans is self._spans:
            self._reached = reached
        return spans[reached][0] if reached < len(spans) and spans[reached][1].query() else None


@dataclass(frozen=True)
class _Recorded:
    started: torch.Event
    updated: torch.Event | None
    ended: torch.Event
    spans: tuple[_Span, ...]

    def read(self) -> StepTimes:
        self.ended.synchronize()
        waits_s: dict[str, float] = {}
        for wait, begun, end in self.spans:
            what = purpose(wait)
            waits_s[what] = waits_s.get(what, 0.0) + begun.elapsed_time(end) / 1e3
        update_s = 0.0 if self.updated is None else self.updated.elapsed_time(self.ended) / 1e3
        return StepTimes(self.started.elapsed_time(self.ended) / 1e3, waits_s, update_s)


def clock_of(device: torch.device) -> Clock:
    """The clock for what runs on a device."""
    return HostClock() if device.type == "cpu" else DeviceClock(device)
