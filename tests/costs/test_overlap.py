"""What runs beside layers, against the queue of communication played event by event."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.costs.model import Front, LayerCost
from galvatron.ir.contention import NOTHING_BESIDE, Contention
from galvatron.ir.zero import BUCKET_BYTES
from galvatron.runtime.parameters import _BUCKET_BYTES

seconds = st.integers(0, 20).map(float)
shares = st.sampled_from([1.0, 0.9, 0.75, 0.5])
contentions = st.builds(Contention, shares, shares)


class Played:
    """A device that computes, and a queue of communication beside it, that slow each other down."""

    def __init__(self, contention: Contention) -> None:
        self.now_s = 0.0
        self._compute, self._communication = contention.compute, contention.communication
        self._queue: deque[list[float]] = deque()
        if self._compute + self._communication <= 1:  # no better than one after the other
            self._compute = self._communication = 0.5

    def start(self, alone_s: float) -> list[float]:
        """Puts a communication at the end of the queue."""
        self._queue.append([alone_s])
        return self._queue[-1]

    def run(self, alone_s: float) -> None:
        """Computes, so long by itself."""
        while alone_s > 1e-12:
            if not self._queue:
                self.now_s += alone_s
                return
            took_s = min(alone_s / self._compute, self._queue[0][0] / self._communication)
            alone_s -= took_s * self._compute
            self._passed(took_s, self._communication)

    def wait(self, communication: list[float] | None = None) -> None:
        """Until a communication, or all, have ended."""
        while self._queue and (communication is None or communication[0] > 0):
            self._passed(self._queue[0][0], 1.0)

    def _passed(self, took_s: float, speed: float) -> None:
        self.now_s += took_s
        self._queue[0][0] -= took_s * speed
        if self._queue[0][0] <= 1e-12:
            self._queue.popleft()[0] = 0.0


def played_sums_s(layers: Sequence[LayerCost]) -> float:
    """By how much sums lengthen a last backward: those of a layer start when its own backward has ended."""
    device = Played(layers[0].contention)
    for layer in reversed(layers):
        device.run(layer.backward_s)
        device.start(layer.sync_s)
    device.wait()
    return device.now_s - sum(layer.backward_s for layer in layers)


def played_level_3_s(layers: Sequence[LayerCost]) -> tuple[float, float]:
    """A forward and a backward of one micro-batch, as `LayerParameters` and `Parameters` start and wait."""
    device = Played(layers[0].contention)
    fetched = [device.start(layers[0].forward_gather_s)]
    for i, layer in enumerate(layers):
        device.wait(fetched[i])
        if i + 1 < len(layers):
            fetched.append(device.start(layers[i + 1].forward_gather_s))
        device.run(layer.forward_s)
    forward_s, device = device.now_s, Played(layers[0].contention)
    order = list(reversed(layers))
    fetched, sums = [device.start(order[0].backward_gather_s)], []
    for i, layer in enumerate(order):
        device.wait(fetched[i])
        if i + 1 < len(order):
            fetched.append(device.start(order[i + 1].backward_gather_s))
        device.run(layer.backward_s)
        if sums:
            device.wait(sums[-1])
        sums.append(device.start(layer.reduce_s))
    device.wait()
    return forward_s, device.now_s


def layer_costs() -> st.SearchStrategy[LayerCost]:
    return st.builds(
        LayerCost,
        forward_s=seconds,
        backward_s=seconds,
        forward_gather_s=seconds,
        backward_gather_s=seconds,
        reduce_s=seconds,
        sync_s=seconds,
        publish_s=seconds,
        bucket_bytes=st.just(float(BUCKET_BYTES)),
    )


def _without_zero(layer: LayerCost) -> LayerCost:
    return replace(layer, backward_gather_s=0.0, reduce_s=0.0)


def exposed_sums_s(layers: Sequence[LayerCost]) -> float:
    front, total = Front(), 0.0
    for layer in layers:
        total += layer.exposed(front).sync_s
        front = front.after(layer.bucket_bytes)
    return total


def test_buckets_are_those_of_the_runtime() -> None:
    assert BUCKET_BYTES == _BUCKET_BYTES


@settings(deadline=None)
@given(seconds, seconds, contentions)
def test_two_things_at_once(compute_s: float, communication_s: float, contention: Contention) -> None:
    device = Played(contention)
    device.start(communication_s)
    device.run(compute_s)
    device.wait()
    together_s = contention.together_s(compute_s, communication_s)
    assert together_s == pytest.approx(device.now_s)
    assert max(compute_s, communication_s) <= together_s <= compute_s + communication_s
    assert contention.together_s(compute_s + 1, communication_s) >= together_s
    assert contention.together_s(compute_s, communication_s + 1) >= together_s


@settings(deadline=None)
@given(layer_costs(), st.integers(1, 6), contentions)
def test_sums_of_equal_layers(layer: LayerCost, count: int, contention: Contention) -> None:
    """The first bucket, of which nothing is hidden, is a layer here; sums that take longer than a backward show what is
    left of each."""
    layers = [_without_zero(replace(layer, contention=contention))] * count
    assert exposed_sums_s(layers) == pytest.approx(played_sums_s(layers))


@settings(deadline=None)
@given(st.lists(layer_costs(), min_size=1, max_size=6), contentions)
def test_sums_of_unlike_layers(layers: list[LayerCost], contention: Contention) -> None:
    """What a layer hides is its own sum: never more than is hidden, but for one layer's."""
    layers = [_without_zero(replace(layer, contention=contention)) for layer in layers]
    exposed_s = exposed_sums_s(layers)
    assert played_sums_s(layers) <= exposed_s + max(layer.sync_s for layer in layers) + 1e-9
    assert exposed_s <= sum(layer.sync_s for layer in layers) + 1e-9


@settings(deadline=None)
@given(layer_costs(), st.integers(1, 6), contentions)
def test_gathers_and_sums_of_equal_layers(layer: LayerCost, count: int, contention: Contention) -> None:
    """Up to one layer's: the first gather, and in the backward the last sum, are beside nothing."""
    layers = [replace(layer, contention=contention)] * count
    forward_s, backward_s = played_level_3_s(layers)
    times = layers[0].times
    told_s = count * times.forward_s, count * (times.input_s + times.weight_s)
    assert abs(forward_s - told_s[0]) <= layer.forward_gather_s + 1e-9
    assert abs(backward_s - told_s[1]) <= layer.backward_gather_s + layer.reduce_s + 1e-9


@settings(deadline=None)
@given(st.lists(layer_costs(), min_size=1, max_size=6))
def test_where_nothing_is_gained_all_is_exposed(layers: list[LayerCost]) -> None:
    for layer in (replace(layer, contention=NOTHING_BESIDE) for layer in layers):
        sent_s = layer.forward_gather_s + layer.backward_gather_s + layer.reduce_s
        assert layer.micro_batch_s == pytest.approx(layer.compute_s + sent_s)
        assert layer.exposed(Front(0.0)).seconds == pytest.approx(layer.sync_s + layer.publish_s)


@settings(deadline=None)
@given(layer_costs(), layer_costs(), contentions, st.integers(0, 2).map(lambda n: n * BUCKET_BYTES / 2))
def test_more_never_takes_less(a: LayerCost, b: LayerCost, contention: Contention, missing: float) -> None:
    """Of anything: also of computation that hides what is sent."""
    least = {name: min(getattr(a, name), getattr(b, name)) for name in vars(a) if name.endswith("_s")}
    fewer, more = replace(a, **least, contention=contention), replace(a, contention=contention)
    front = Front(missing)
    assert fewer.micro_batch_s <= more.micro_batch_s + 1e-9
    assert fewer.micro_batch_s + fewer.exposed(front).seconds <= more.micro_batch_s + more.exposed(front).seconds + 1e-9


def test_a_process_that_launches_more_slowly_than_the_device_computes() -> None:
    layer = LayerCost(2.0, 4.0, forward_communication_s=1.0, forward_host_s=5.0, backward_host_s=3.0)
    assert (layer.forward_pass_s, layer.backward_pass_s, layer.host_s) == (5.0, 4.0, 2.0)
    assert layer.micro_batch_s == layer.compute_s + layer.communication_s + layer.host_s == 9.0
