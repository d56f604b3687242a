"""What a rank does in its steps, and when: recorded around its layers, its computations and its communications while
someone looks, and by nothing of it otherwise.

    recorder = Recorder(stages, pipeline, meter)
    with recorder.recording():
        ...                             # steps
    records, levels = recorder.read()

The backward of a layer begins when the gradient of one of its results is there, or when it begins to wait for
parameters after that, and lasts until that of the next layer does. On an accelerator moments are those of its stream.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from galvatron.runtime.comm import Message
from galvatron.runtime.comm.clock import Clock, PendingTimes, purpose
from galvatron.runtime.comm.library import direction
from galvatron.runtime.comm.message import PIPELINE
from galvatron.runtime.metrics import Meter
from galvatron.runtime.pipeline import Perform, Pipeline
from galvatron.runtime.stage import Layer, Stage
from galvatron.schedules import Action, Kind

STEP, UPDATE, COMPUTATION, LAYER, SENT, COMMUNICATION = (
    "step",
    "update",
    "computation",
    "layer",
    "sent",
    "communication",
)
"""What records are of."""


@dataclass(frozen=True)
class Record:
    """Something that a rank does.

    Attributes:
        what: one of the words above.
        name: of a computation, and of what is sent or received, its kind; of a layer "forward", "backward" or
            "recompute"; of another communication what it is for (`purpose`).
        step: the number of the step, from 0.
        begin_s, end_s: seconds of the host's clock.
        waited_s: of a communication, for how long before its end the rank did nothing else.
        layer: its name in its stage.
        operation, phase, nbytes: of a communication, as in `Message`.
    """

    what: str
    name: str
    step: int
    begin_s: float
    end_s: float
    waited_s: float = 0.0
    stage: int | None = None
    layer: str | None = None
    micro_batch: int | None = None
    operation: str = ""
    phase: str = ""
    nbytes: int = 0


class _Note(NamedTuple):
    """A record whose moments are not known yet."""

    record: Record
    begin: Any
    waiting: Any
    end: Any


_Key = tuple[int, str]
"""A stage and a layer of it."""


class Recorder:
    """Records the steps of one rank."""

    def __init__(self, stages: Sequence[Stage], pipeline: Pipeline, meter: Meter) -> None:
        self._stages, self._pipeline, self._meter = stages, pipeline, meter
        self._moments = _Moments(stages[0].mesh.world.device)
        self._notes: list[_Note] = []
        self._levels: list[tuple[Any, float]] = []
        self._step, self._in_step = -1, False
        self._micro_batch: int | None = None
        self._inside: tuple[_Key, Any] | None = None
        """The layer whose forward runs, and since when."""
        self._entered: dict[_Key, Any] = {}
        """The layers whose backward has begun in the running computation, and when."""
        self._since: Any = None
        """When a backward began to wait for parameters, of which no layer has begun yet: those of the next one."""

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside the `with` block steps are recorded."""
        self._moments.start()
        with ExitStack() as stack:
            stack.enter_context(self._meter.measured_by(partial(_RecordingClock, self)))
            stack.callback(setattr, self._pipeline, "watched", None)
            self._pipeline.watched = self._watched
            for stage in self._stages:
                for name, layer in stage.layers.items():
                    self._attach((stage.index, name), layer, stack)
            yield

    def read(self) -> tuple[tuple[Record, ...], tuple[tuple[float, float], ...]]:
        """What was recorded, and bytes in use by the moments at which these were asked for; waits for the device."""
        self._moments.finish()
        seconds = self._moments.seconds
        records = tuple(
            _timed(note.record, seconds(note.begin), seconds(note.waiting), seconds(note.end)) for note in self._notes
        )
        levels = tuple((seconds(mark), used) for mark, used in self._levels if not math.isnan(used))
        return records, levels

    def note(self, what: str, name: str, begin: Any, *, waiting: Any = None, end: Any = None, **more: Any) -> None:
        """Something has ended, now unless it says when; outside of steps nothing is noted."""
        if not self._in_step:
            return
        end = self.mark() if end is None else end
        record = Record(what, name, self._step, 0.0, 0.0, **more)
        self._notes.append(_Note(record, begin, end if waiting is None else waiting, end))

    def mark(self) -> Any:
        """This moment."""
        return self._moments.mark()

    def start_step(self) -> None:
        """A step begins."""
        self._step, self._in_step = self._step + 1, True

    def end_step(self, begin: Any) -> None:
        """It has ended."""
        self.note(STEP, STEP, begin)
        self._in_step = False

    def waited(self, message: Message, begin: Any, waiting: Any) -> None:
        """A communication has ended.

        Args:
            begin: when it began.
            waiting: since when the rank has waited for it.
        """
        name, (stage, layer, micro_batch) = purpose(message), self._place(message)
        if name == "parameters" and direction() == "backward" and self._since is None:
            self._since = waiting
        if message.expected:
            ((stage, what, micro_batch),) = message.expected
            name = (Kind.RECV_F if what == "forward" else Kind.RECV_B).name
        self.note(
            COMMUNICATION,
            name,
            begin,
            waiting=waiting,
            stage=stage,
            layer=layer,
            micro_batch=micro_batch,
            operation=message.kind,
            phase=message.phase,
            nbytes=message.nbytes,
        )

    def _place(self, message: Message) -> tuple[int | None, str | None, int | None]:
        if message.place is not None:
            return message.place
        if self._inside is not None:
            return *self._inside[0], self._micro_batch
        if self._entered:
            return *next(reversed(self._entered)), self._micro_batch
        return None, None, self._micro_batch

    def _watched(self, kind: Kind, perform: Perform) -> Perform:
        def around(stage: int, micro_batch: int) -> None:
            begin, first = self.mark(), len(self._notes)
            if kind in (Kind.SEND_F, Kind.SEND_B):
                self.note(SENT, kind.name, begin, end=begin, stage=stage, micro_batch=micro_batch)
            if not Action(kind, stage, micro_batch).computes:
                return perform(stage, micro_batch)
            self._levels.append((begin, self._meter.memory.used_bytes()))
            self._micro_batch = micro_batch
            perform(stage, micro_batch)
            end = self.mark()
            for note in self._notes[first:]:  # it begins when what it waits for is there
                if note.record.what == COMMUNICATION and note.record.operation == PIPELINE:
                    begin = note.end
            self.note(COMPUTATION, kind.name, begin, end=end, stage=stage, micro_batch=micro_batch)
            self._note_backwards(end)
            self._levels.append((end, self._meter.memory.used_bytes()))
            self._micro_batch = None

        return around

    def _note_backwards(self, end: Any) -> None:
        """A computation has ended, and with it the last of the backwards in it."""
        ends = [*list(self._entered.values())[1:], end]
        for ((stage, layer), begin), until in zip(self._entered.items(), ends, strict=False):
            more = {"stage": stage, "layer": layer, "micro_batch": self._micro_batch}
            self.note(LAYER, "backward", begin, end=until, **more)
        self._entered.clear()

    def _attach(self, key: _Key, layer: Layer, stack: ExitStack) -> None:
        def begins(*_: Any) -> None:
            self._inside = key, self.mark()

        def ends(_: Any, args: tuple[Any, ...], results: Any) -> None:
            assert self._inside is not None
            self.note(LAYER, "forward", self._inside[1], stage=key[0], layer=key[1], micro_batch=self._micro_batch)
            self._inside = None
            for result in results if isinstance(results, tuple) else (results,):
                if isinstance(result, Tensor) and result.grad_fn is not None and all(result is not a for a in args):
                    result.register_hook(lambda _: self._enter(key))

        function = layer.function
        stack.callback(setattr, layer, "function", function)
        layer.function = partial(self._again, key, function)
        for handle in (layer.register_forward_pre_hook(begins), layer.register_forward_hook(ends)):
            stack.callback(handle.remove)

    def _enter(self, key: _Key) -> None:
        """The gradient of a result of a layer is there."""
        if key in self._entered or self._pipeline.watched is None:
            return
        self._entered[key] = self.mark() if self._since is None else self._since
        self._since = None

    def _again(self, key: _Key, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The function of a layer, whose calls in a backward are recomputation."""
        if direction() == "forward":
            return function(*args, **kwargs)
        begin = self.mark()
        try:
            return function(*args, **kwargs)
        finally:
            self.note(LAYER, "recompute", begin, stage=key[0], layer=key[1], micro_batch=self._micro_batch)


class _RecordingClock:
    """A clock that tells a recorder of what it measures."""

    def __init__(self, recorder: Recorder, clock: Clock) -> None:
        self._recorder, self._clock = recorder, clock
        self._started: dict[Message, Any] = {}
        self._begun: Any = None
        self._update: Any = None

    def started(self, message: Message) -> None:
        self._started[message] = self._recorder.mark()

    def begin(self) -> tuple[Any, Any]:
        return self._clock.begin(), self._recorder.mark()

    def end(self, wait: Message, begun: tuple[Any, Any]) -> None:
        own, waiting = begun
        self._clock.end(wait, own)
        self._recorder.waited(wait, self._started.pop(wait, waiting), waiting)

    def start_step(self) -> None:
        self._clock.start_step()
        self._recorder.start_step()
        self._begun, self._update = self._recorder.mark(), None

    def start_update(self) -> None:
        self._clock.start_update()
        self._update = self._recorder.mark()

    def end_step(self) -> PendingTimes:
        if self._update is not None:
            self._recorder.note(UPDATE, UPDATE, self._update)
        self._recorder.end_step(self._begun)
        return self._clock.end_step()

    def front(self) -> Message | None:
        return self._clock.front()


class _Moments:
    """Moments of the computation on a device, as seconds of the host's clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first: tuple[float, torch.Event] | None = None

    def start(self) -> None:
        """Moments from now on can be told."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
            self._first = time.perf_counter(), self._event()

    def finish(self) -> None:
        """Moments up to now can be told."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)

    def mark(self) -> Any:
        """This moment."""
        return time.perf_counter() if self._first is None else self._event()

    def seconds(self, mark: Any) -> float:
        """A moment, told."""
        if self._first is None:
            return mark
        begun_s, first = self._first
        return begun_s + first.elapsed_time(mark) / 1e3

    def _event(self) -> torch.Event:
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event


def _timed(record: Record, begin_s: float, waiting_s: float, end_s: float) -> Record:
    return replace(record, begin_s=begin_s, end_s=end_s, waited_s=end_s - waiting_s)
