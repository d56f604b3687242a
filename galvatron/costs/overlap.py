"""Which collectives of a layer are worth being started early and waited for late, what runs meanwhile, and in how many
chunks rows are sent.

Beside a collective may run whatever neither needs its result nor is needed for it: a shared expert beside the messages
of the others, the product that makes keys beside the exchange of queries. As much is taken as the message lasts, in
both directions, since a backward runs the same ops in reverse. It pays where more is hidden than the process takes for
two more calls, one in each direction; and in all, where the layer is faster by its own price.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from galvatron.costs.composed import Layer
from galvatron.costs.events import CollectiveCall, hidden_s, kernels_s
from galvatron.costs.parts import passes_of
from galvatron.costs.profile import Doing
from galvatron.ir.collectives import COLLECTIVES
from galvatron.ir.overlap import AS_IT_STANDS, CHUNKS, Arrangement, Order, Window
from galvatron.ir.overlap import arranged as arranged_graph
from galvatron.machine import Machine

Does = Callable[[Arrangement], Doing]
"""What a layer does in an arrangement."""


def arranged(layer: Layer, arrangement: Arrangement) -> Layer:
    """The layer with its collectives beside computation."""
    return layer if arrangement == AS_IT_STANDS else _arranged(layer, arrangement)


@lru_cache(maxsize=1 << 10)
def _arranged(layer: Layer, arrangement: Arrangement) -> Layer:
    graph = arranged_graph(layer.graph, arrangement)
    return layer if graph is layer.graph else Layer(graph, layer.mesh, layer.differentiable)


def arrangement_that_pays(layer: Layer, does: Does, recompute: str, machine: Machine, batch: float) -> Arrangement:
    """The arrangement in which a layer is fastest on a machine, at a local batch size.

    Under `recompute=attention` there are none (`ir.verify.sharding.attention_waits_for_itself`), and nobody asks for
    layers that `torch.compile` compiles, which makes one kernel of ops that a window would part.
    """
    if recompute == "attention":
        return AS_IT_STANDS
    best, best_s = AS_IT_STANDS, math.inf
    for found in _arrangements(layer, does, machine, batch):
        if best == AS_IT_STANDS:
            best_s = _seconds(layer, does(best), machine, batch)
        seconds = _seconds(arranged(layer, found), does(found), machine, batch)
        if seconds < best_s:
            best, best_s = found, seconds
        elif found.chunks > 1:
            break  # more of them cost more yet
    return best


def _arrangements(layer: Layer, does: Does, machine: Machine, batch: float) -> Iterator[Arrangement]:
    """The arrangements that may pay: one for each number of chunks with which anything may run beside a collective."""
    for chunks in CHUNKS:
        cut = Arrangement(chunks)
        parts = arranged(layer, cut)
        if chunks > 1 and parts is layer or not parts.independent:
            continue
        if windows := tuple(_windows(parts, does(cut), machine, batch)):
            yield replace(cut, windows=windows)


def _seconds(layer: Layer, doing: Doing, machine: Machine, batch: float) -> float:
    """Both passes of a layer, by its kernels even where it was measured as a whole: nobody measures it with windows."""
    passes = passes_of(replace(doing.on(layer.groups), fingerprint=""), machine, batch)
    forward_s = max(passes.forward_s + passes.forward_communication_s, passes.forward_host_s)
    return forward_s + max(passes.backward_s + passes.backward_communication_s, passes.backward_host_s)


def _windows(layer: Layer, doing: Doing, machine: Machine, batch: float) -> Iterator[Window]:
    """A window for each collective that pays for itself, the first ones first; each second of an op is beside one at
    most. Messages on an axis follow each other, so that what needs a later one is not there to be computed beside an
    earlier one."""
    order, ops = Order(layer.graph), layer.graph.ops
    sent = [i for i, op in enumerate(ops) if op.namespace == "comm" and COLLECTIVES[op.target].sent]
    left = {i: [kernels_s(events, machine, batch) for events in doing.by_op[i]] for i in layer.quiet if ops[i].results}
    for start in layer.independent:
        axis = layer.axes[start]
        assert axis is not None
        later = (order.needing(i) for i in sent if i > start and layer.axes[i] == axis)
        candidates = order.independent(start) & left.keys() - set[int]().union(*later)
        lasting_s = _communicating_s(layer, doing, machine, batch, start)
        taken = dict(_taken({index: left[index] for index in sorted(candidates)}, lasting_s))
        computing_s = [sum(own[way] for own in taken.values()) for way in (0, 1)]
        hidden = (hidden_s(machine, axis, *both) for both in zip(computing_s, lasting_s, strict=True))
        if taken and sum(hidden) > _two_calls_s(machine):
            window = Window(ops[start].results[0].name, tuple(ops[index].results[0].name for index in taken))
            order.add(window)
            for index, own in taken.items():
                left[index] = [before - now for before, now in zip(left[index], own, strict=True)]
            yield window


def _taken(left: Mapping[int, Sequence[float]], lasting_s: Sequence[float]) -> Iterator[tuple[int, list[float]]]:
    """The ops that run beside a message for as long as it lasts in each direction, with their seconds beside it."""
    missing = list(lasting_s)
    for index, seconds in left.items():
        own = [min(pair) for pair in zip(seconds, missing, strict=True)]
        missing = [before - now for before, now in zip(missing, own, strict=True)]
        if any(own):
            yield index, own


def _communicating_s(layer: Layer, doing: Doing, machine: Machine, batch: float, start: int) -> list[float]:
    """Seconds of what a collective sends that may be under way, forward and backward."""
    axis = layer.axes[start]
    assert axis is not None
    sent = ([e for e in events if isinstance(e, CollectiveCall) and not e.at_once] for events in doing.by_op[start])
    return [sum(machine.collective_s(e.kind, e.payload_bytes(batch), axis) for e in each) for each in sent]


def _two_calls_s(machine: Machine) -> float:
    """What the process takes for one more call in each direction."""
    return machine.host_s(1, 0) + machine.host_s(1, 0, backward=True) + machine.dispatched_s(2, 0)
