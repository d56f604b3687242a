"""What is recorded of a device that is behind the host: moments in its own stream, in seconds of the host's clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from galvatron.runtime import comm, recording
from galvatron.runtime.comm import now
from galvatron.runtime.mesh import World
from galvatron.runtime.metrics import Meter
from galvatron.runtime.recording import Recorder


class FakeEvent:
    """An event of a device, one second after the one before."""

    recorded = 0

    def __init__(self, device: torch.device, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeEvent.recorded += 1
        self.at_s = float(FakeEvent.recorded)

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * (end.at_s - self.at_s)


def test_a_device_behind_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(0, 1, torch.device("meta"))
    monkeypatch.setattr(torch, "Event", FakeEvent)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    monkeypatch.setattr(recording.time, "perf_counter", lambda: 100.0)
    monkeypatch.setattr(now, "clock", now.clock)
    meter = Meter(world, [])
    meter.memory = SimpleNamespace(peak_bytes=lambda: 0.0, used_bytes=lambda: 7.0)  # type: ignore[assignment]  # a stand-in
    stage: Any = SimpleNamespace(mesh=SimpleNamespace(world=world), layers={}, index=0)
    pipeline: Any = SimpleNamespace(watched=None)
    recorder = Recorder([stage], pipeline, meter)
    FakeEvent.recorded = 0
    with recorder.recording():
        comm.start("all_gather", None, (), list).wait()  # outside of steps
        with meter.step({}, 4):
            handle = comm.start("reduce_scatter", None, (), list, phase="gradients")
            pipeline.watched(recording.Kind.BACKWARD, lambda stage, micro_batch: handle.wait())(0, 3)
            meter.start_update()
            meter.totals(torch.zeros(()), None, torch.zeros(2))
    records, levels = recorder.read()
    assert pipeline.watched is None
    assert [(record.what, record.name) for record in records] == [
        ("communication", "gradients"), ("computation", "BACKWARD"), ("update", "update"), ("step", "step"),
    ]  # fmt: skip
    sent, computed, update, step = records
    assert step.begin_s < sent.begin_s < computed.begin_s < sent.end_s < computed.end_s < update.begin_s < step.end_s
    assert computed.begin_s < sent.end_s - sent.waited_s and sent.waited_s > 0
    assert (computed.stage, computed.micro_batch, step.step) == (0, 3, 0)
    assert step.begin_s > 100.0 and step.end_s < 100.0 + FakeEvent.recorded
    assert levels == ((computed.begin_s, 7.0), (computed.end_s, 7.0))
