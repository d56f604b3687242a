"""Which collectives of a layer are worth being started early and waited for late, and what runs meanwhile.

Beside a collective may run whatever neither needs its result nor is needed for it: a shared expert beside the messages
of the others, the product that makes keys beside the exchange of queries. As much is taken as the message lasts, in
both directions, since a backward runs the same ops in reverse. It pays where more is hidden than the process takes for
two more calls, one in each direction; and in all, where the layer is faster by its own price.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

from galvatron.costs.composed import Layer
from galvatron.costs.events import CollectiveCall, hidden_s, kernels_s
from galvatron.costs.parts import passes_of
from galvatron.costs.profile import Doing
from galvatron.ir.overlap import Order, Window, overlapped
from galvatron.machine import Machine

Does = Callable[[tuple[Window, ...]], Doing]
"""What a layer does with windows."""


def with_windows(layer: Layer, windows: tuple[Window, ...]) -> Layer:
    """The layer with its collectives beside computation."""
    return _with_windows(layer, windows) if windows else layer


@lru_cache(maxsize=1 << 10)
def _with_windows(layer: Layer, windows: tuple[Window, ...]) -> Layer:
    return Layer(overlapped(layer.graph, windows), layer.mesh, layer.differentiable)


def windows_that_pay(layer: Layer, does: Does, recompute: str, machine: Machine, batch: float) -> tuple[Window, ...]:
    """The windows with which a layer is fastest on a machine, at a local batch size.

    Under `recompute=attention` there are none (`ir.verify.sharding.attention_waits_for_itself`), and nobody asks for
    layers that `torch.compile` compiles, which makes one kernel of ops that a window would part.
    """
    if recompute == "attention" or not layer.independent:
        return ()
    doing = does(())
    windows = tuple(_windows(layer, doing, machine, batch))
    if not windows:
        return ()
    other = with_windows(layer, windows)
    faster = _seconds(other, does(windows), machine, batch) < _seconds(layer, doing, machine, batch)
    return windows if faster else ()


def _seconds(layer: Layer, doing: Doing, machine: Machine, batch: float) -> float:
    """Both passes of a layer, by its kernels even where it was measured as a whole: nobody measures it with windows."""
    passes = passes_of(replace(doing.on(layer.groups), fingerprint=""), machine, batch)
    forward_s = max(passes.forward_s + passes.forward_communication_s, passes.forward_host_s)
    return forward_s + max(passes.backward_s + passes.backward_communication_s, passes.backward_host_s)


def _windows(layer: Layer, doing: Doing, machine: Machine, batch: float) -> Iterator[Window]:
    """A window for each collective that pays for itself, the first ones first; an op is in one at most."""
    order, used = Order(layer.graph), set[int]()
    for start in layer.independent:
        lasting_s, computing_s = _communicating_s(layer, doing, machine, batch, start), [0.0, 0.0]
        beside: list[int] = []
        for index in sorted(order.independent(start) - used):
            own_s = [kernels_s(events, machine, batch) for events in doing.by_op[index]]
            if layer.axes[index] is None and layer.graph.ops[index].results and any(own_s):
                beside.append(index)
                computing_s = [before + own for before, own in zip(computing_s, own_s, strict=True)]
            if all(own >= lasting for own, lasting in zip(computing_s, lasting_s, strict=True)):
                break
        axis = layer.axes[start]
        assert axis is not None
        hidden = (hidden_s(machine, axis, *both) for both in zip(computing_s, lasting_s, strict=True))
        if beside and sum(hidden) > _two_calls_s(machine):
            names = [layer.graph.ops[index].results[0].name for index in (start, *beside)]
            window = Window(names[0], tuple(names[1:]))
            order.add(window)
            used.update(beside)
            yield window


def _communicating_s(layer: Layer, doing: Doing, machine: Machine, batch: float, start: int) -> list[float]:
    """Seconds of what a collective sends that may be under way, forward and backward."""
    axis = layer.axes[start]
    assert axis is not None
    sent = ([e for e in events if isinstance(e, CollectiveCall) and not e.at_once] for events in doing.by_op[start])
    return [sum(machine.collective_s(e.kind, e.payload_bytes(batch), axis) for e in each) for each in sent]


def _two_calls_s(machine: Machine) -> float:
    """What the process takes for one more call in each direction."""
    return machine.host_s(1, 0) + machine.host_s(1, 0, backward=True) + machine.dispatched_s(2, 0)
