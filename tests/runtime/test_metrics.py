"""The figures of a step: parts that add up, waits that are seen as what they are, and nothing that is waited for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from galvatron.runtime import comm
from galvatron.runtime.comm import clock, now
from galvatron.runtime.metrics import Memory
from tests.ranks import run_ranks
from tests.runtime import small_model as small


def figures(world: rt.World, plan: tuple[int, int, int]) -> dict[str, Any]:
    pp, dp, tp = plan
    stages = small.make_stages(small.make_mesh(world, pp, dp, tp), dp, tp)
    torch.manual_seed(3)
    executor = rt.Executor(
        stages,
        microbatches=2,
        model=rt.ModelState(small.Model().double()),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        max_grad_norm=0.3,
    )
    with pytest.raises(GalvatronError, match="before the first step"):
        _ = executor.metrics
    batch = small.batch(8)
    loss = float(executor.forward_backward(batch))
    first = executor.metrics
    norm = float(executor.gradient_norm())
    with rt.CommunicationCounter() as counter:
        executor.train_step(batch)
    second = executor.metrics
    totals = sum(number for channel, number in counter.messages.items() if channel.phase == "totals")
    assert (first.loss, first.gradient_norm) == (loss, None)
    assert second.loss == loss
    assert second.gradient_norm == pytest.approx(norm, rel=1e-12)
    for metrics in (first, second):
        parts = metrics.compute_s + metrics.exposed_communication_s + metrics.bubble_s
        assert parts == pytest.approx(metrics.step_s)
        assert min(metrics.compute_s, metrics.exposed_communication_s, metrics.bubble_s) >= 0
        waited_s = metrics.exposed_communication_s + metrics.bubble_s
        assert sum(metrics.waits_s.values()) == pytest.approx(waited_s)
        assert (metrics.samples, metrics.tokens) == (8, 8 * small.LENGTH)
    assert first.update_s == 0 < second.update_s < second.compute_s
    assert executor.recent == [second], "the first step of all does not count"
    return {
        "peak_bytes": second.peak_bytes,
        "totals": totals,
        "communication": second.exposed_communication_s > 0,
        "bubble": second.bubble_s > 0,
    }


@pytest.mark.parametrize("plan", [(1, 1, 1), (2, 1, 1), (1, 2, 1)])
def test_what_a_step_says(plan):
    ranks = math.prod(plan)
    results = run_ranks(figures, ranks, plan)
    for result in results:
        assert result["peak_bytes"] == results[0]["peak_bytes"], "all ranks know the memory of all"
        assert result["peak_bytes"] is None or len(result["peak_bytes"]) == ranks
        assert result["totals"] == (ranks > 1), "one collective carries all figures"
        assert result["communication"] == (ranks > 1)
        assert result["bubble"] == (plan[0] > 1)


class FakeEvent:
    """An event of a device that has reached what the test says."""

    reached = 0.0
    next_at = 0.0
    waits = 0

    def __init__(self, device: torch.device, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeEvent.next_at += 1.0
        self.at = FakeEvent.next_at

    def query(self) -> bool:
        return self.at <= FakeEvent.reached

    def synchronize(self) -> None:
        FakeEvent.waits += 1

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * (end.at - self.at)


def test_a_device_behind_the_host(monkeypatch):
    monkeypatch.setattr(clock.torch, "Event", FakeEvent)
    device = clock.clock_of(torch.device("meta"))  # the step starts in second 1
    monkeypatch.setattr(now, "clock", device)
    monkeypatch.setattr(now, "operation", None)  # a wait that failed stays on record
    for kind in ("all_reduce", "pipeline", "all_gather"):
        comm.start(kind, None, (), list).wait()  # seconds 2 to 3, 4 to 5, 6 to 7
    device.start_update()  # second 8
    pending = device.end_step()  # second 9
    assert now.operation is None
    # Of what the host has gone past, the device is in the wait whose beginning it has reached and whose end it has not.
    fronts = []
    for reached in range(10):
        FakeEvent.reached = reached
        wait = now.wait()
        fronts.append(wait and wait.kind)
    assert fronts == [None, None, "all_reduce", None, "pipeline", None, "all_gather", None, None, None]
    assert FakeEvent.waits == 0
    times = pending.read()
    assert times == clock.StepTimes(step_s=8.0, waits_s={"layers": 2.0, "pipeline": 1.0}, update_s=1.0)
    assert (times.communication_s, times.pipeline_s) == (2.0, 1.0)
    assert FakeEvent.waits == 1


def test_memory_that_is_in_use_for_a_while_can_be_left_out():
    memory = Memory(torch.device("cpu"), 0)
    if math.isnan(memory.peak_bytes()):
        pytest.skip("the system does not tell")
    before = memory.peak_bytes()
    with memory.undisturbed():
        torch.ones(1 << 24)
        assert memory.peak_bytes() > before + (1 << 25)
    assert before <= memory.peak_bytes() < before + (1 << 25)
    torch.ones(1 << 24)
    assert memory.peak_bytes() > before + (1 << 25)
