"""What the cost of a layer is put together from: what it runs, what its parameters cost, and an epilogue behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from galvatron.costs.columns import stacked
from galvatron.costs.events import Profile, collectives_s, computing_s
from galvatron.costs.memory import Memory
from galvatron.costs.model import Repeated
from galvatron.ir.arrays import chosen
from galvatron.ir.contention import Contention
from galvatron.machine import Machine


@dataclass(frozen=True)
class End:
    """What runs behind the micro-batches: of an epilogue its seconds, the most memory that it takes, and the bytes of
    the gradients that it hands back; seconds of what makes new values of state when the step ends."""

    seconds: float = 0.0
    peak_bytes: float = 0.0
    gradient_bytes: float = 0.0
    update_s: float = 0.0


@dataclass(frozen=True)
class Sent:
    """Seconds of the collectives of parameters, by themselves; see `LayerCost`."""

    forward_gather_s: float
    backward_gather_s: float
    reduce_s: float
    sync_s: float
    publish_s: float
    start_s: float


@dataclass(frozen=True)
class Passes:
    """What a layer runs in a micro-batch but for its parameters: seconds and bytes as in `LayerCost` and `Profile`."""

    forward_s: float
    backward_s: float
    weight_s: float
    forward_host_s: float
    backward_host_s: float
    forward_communication_s: float
    backward_communication_s: float
    saved_bytes: float
    forward_extra_bytes: float
    backward_extra_bytes: float
    summing_extra_bytes: float


def passes_of(profile: Profile, machine: Machine, batch: float) -> Passes:
    """What is run at a local batch size."""
    there, back = profile.forward_dispatches, profile.backward_dispatches
    forward_s, backward_s, weight_s = computing_s(profile, machine, batch)
    return Passes(
        forward_s=forward_s,
        backward_s=backward_s,
        weight_s=weight_s,
        forward_host_s=machine.host_s(there.ops, there.views),
        backward_host_s=machine.host_s(back.ops, back.views, backward=True),
        forward_communication_s=collectives_s(profile.forward, machine, batch),
        backward_communication_s=collectives_s(profile.backward, machine, batch),
        saved_bytes=profile.saved_bytes(batch),
        forward_extra_bytes=profile.forward_extra_bytes(batch),
        backward_extra_bytes=profile.backward_extra_bytes(batch),
        summing_extra_bytes=profile.summing_extra_bytes(batch),
    )


@dataclass(frozen=True)
class Parameters:
    """What the parameters of a layer cost, whatever the micro-batch: most as in `LayerCost`.

    `accumulated_s` and `host_s` lengthen its backward. Under ZeRO, whole values and gradients are there while it runs:
    `gathered_bytes`, in its backward `regathered_bytes`, and `summed_bytes` of its own, `arriving_bytes` of values of
    the layer behind, `returning_bytes` of the one before, `leaving_bytes` of gradients of the layer behind, and of
    these what is added to sums, `leaving_added_bytes`.
    """

    sent: Sent
    accumulated_s: float
    host_s: float
    state: Memory
    late_bytes: float
    update_bytes: float
    bucket_bytes: float
    update_s: float
    contention: Contention
    repeated: tuple[Repeated, ...]
    gathered_bytes: float
    regathered_bytes: float
    summed_bytes: float
    arriving_bytes: float
    returning_bytes: float
    leaving_bytes: float
    leaving_added_bytes: float

    @staticmethod
    def of(many: Sequence[Parameters]) -> Parameters:
        """Many as one of arrays; all repeat parameters of the same layers."""
        repeated = zip(*(one.repeated for one in many), strict=True)
        return replace(stacked(many), repeated=tuple(map(Repeated.of, repeated)))


def beside(passes: Passes, own: Parameters, end: End, *, several: bool) -> Memory:
    """What a layer takes at its worst moment beside all state and what is kept of it for the backward.

    Under ZeRO, parameters of a neighbour are on their way meanwhile: the values of the layer that runs next, and the
    gradients of the one that ran before.

    Args:
        several: whether a step has several micro-batches.
    """
    leaving_bytes = own.leaving_bytes + (own.leaving_added_bytes if several else 0.0)
    back_bytes = own.regathered_bytes + own.returning_bytes + leaving_bytes
    moments = (
        (passes.forward_extra_bytes + end.gradient_bytes, own.gathered_bytes + own.arriving_bytes),
        (passes.backward_extra_bytes + end.gradient_bytes, back_bytes),
        (passes.summing_extra_bytes + end.gradient_bytes, back_bytes + own.summed_bytes),
        (end.peak_bytes, 0.0),
    )
    working_bytes, communication_bytes = moments[0]
    for working, communication in moments[1:]:
        more = working + communication > working_bytes + communication_bytes
        working_bytes = chosen(more, working, working_bytes)
        communication_bytes = chosen(more, communication, communication_bytes)
    return Memory(working=working_bytes, communication=communication_bytes)
