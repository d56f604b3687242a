"""Every call of the communication library: it is started, and its handle is waited for where its tensors are needed.

    handle = comm.all_gather(whole, part, axis.group)
    ...                                                  # what runs meanwhile
    handle.wait()

While it is started and while it is waited for a communication is on record, so that a job that hangs or fails can say
where; the wait is timed. So what overlaps with what is decided by where `wait` stands, and by nothing else. A new kind
of communication is one function here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from galvatron.runtime.comm.activity import now
from galvatron.runtime.comm.message import Expected, Message
from galvatron.runtime.comm.silent import SilentGroup

Reduction = Literal["sum", "max", "min"]


class Waitable(Protocol):
    """What the library gives for a call."""

    def wait(self) -> Any:
        """Returns when the call has ended; on a device, when all that is launched later comes after it."""
        ...


class Handle:
    """A communication under way; its tensors belong to the library until it was waited for."""

    __slots__ = ("_held", "_works", "message")

    def __init__(self, message: Message, works: Sequence[Waitable], held: Sequence[Tensor]) -> None:
        self.message = message
        self._works = works
        self._held = held

    def wait(self) -> None:
        """Returns when the tensors can be read and written: on a device, by what is launched later."""
        self.message.place = now.place
        _timed(self.message, self._finish)

    def _finish(self) -> None:
        for work in self._works:
            work.wait()
        self._works, self._held = (), ()


def start(
    kind: str,
    group: dist.ProcessGroup | None,
    tensors: Sequence[Tensor],
    call: Callable[[], Sequence[Waitable]],
    phase: str | None = None,
    expected: Expected | None = None,
) -> Handle:
    """Start a communication.

    Args:
        kind, group, expected: see `Message`.
        tensors: what must stay until the wait is over; first the whole tensor, as one rank sees it.
        call: does it, and gives what is to be waited for.
        phase: what it is for, where that is neither the forward nor the backward of a layer.
    """
    message = _message(kind, group, tensors, phase, expected)
    now.clock.started(message)
    if isinstance(group, SilentGroup):
        group.communicated(kind, tensors)
        return Handle(message, (), tensors)
    before, now.operation = now.operation, message
    works = call()
    now.operation = before
    return Handle(message, works, tensors)


def _timed(message: Message, call: Callable[[], Any]) -> None:
    """Call something that waits for a communication."""
    before, now.operation = now.operation, message
    begun = now.clock.begin()
    call()
    now.clock.end(message, begun)
    now.operation = before


def _message(
    kind: str,
    group: dist.ProcessGroup | None,
    tensors: Sequence[Tensor],
    phase: str | None,
    expected: Expected | None = None,
    patient: bool = False,
) -> Message:
    phase = phase or direction()
    nbytes, dtype = (tensors[0].nbytes, tensors[0].dtype) if tensors else (0, None)
    return Message(kind, group, phase, now.place, nbytes, dtype, expected, patient)


def direction() -> str:
    """Whether a backward runs here, or else counts as a forward."""
    return "backward" if torch._C._current_graph_task_id() != -1 else "forward"


def all_ranks() -> dist.ProcessGroup:
    """The group of all ranks of the job."""
    group = dist.group.WORLD
    assert group is not None, "a job of one process has nobody to communicate with"
    return group


# Tensors are contiguous, and `group` are the ranks that call alike, in its order.


def all_reduce(x: Tensor, group: dist.ProcessGroup, op: Reduction = "sum", *, phase: str | None = None) -> Handle:
    """Reduce over the ranks, in place."""
    raw = wire(x) if x.is_complex() else x
    return start("all_reduce", group, (x,), lambda: [group.allreduce([raw], _REDUCE[op])], phase)


def all_gather(whole: Tensor, part: Tensor, group: dist.ProcessGroup, *, phase: str | None = None) -> Handle:
    """Lay the parts of all ranks end to end."""
    to, own = wire(whole), wire(part)
    return start("all_gather", group, (whole, part), lambda: [group._allgather_base(to, own)], phase)


def reduce_scatter(part: Tensor, whole: Tensor, group: dist.ProcessGroup, *, phase: str | None = None) -> Handle:
    """Sum over the ranks; each gets its part of the sum."""
    to, own = wire(part), wire(whole)
    return start("reduce_scatter", group, (whole, part), lambda: [group._reduce_scatter_base(to, own, _SUM)], phase)


def all_to_all(
    received: Tensor,
    sent: Tensor,
    group: dist.ProcessGroup,
    *,
    received_parts: Sequence[int] = (),
    sent_parts: Sequence[int] = (),
    phase: str | None = None,
) -> Handle:
    """Each rank gives every rank a part, and gets one of each.

    Args:
        received_parts, sent_parts: how much comes from, and goes to, each rank: of as many equal parts of the memory as
            these add up to; empty, all alike.
    """
    to, own = wire(received), wire(sent)
    by, of = _sizes(to, received_parts), _sizes(own, sent_parts)
    return start("all_to_all", group, (sent, received), lambda: [group.alltoall_base(to, own, by, of)], phase)


def broadcast(x: Tensor, group: dist.ProcessGroup, source: int, *, phase: str | None = None) -> Handle:
    """Give all ranks what the one at place `source` of the group has."""
    options, raw = dist.BroadcastOptions(), wire(x)
    options.rootRank = source
    return start("broadcast", group, (x,), lambda: [group.broadcast([raw], options)], phase)


def exchange(
    sent: Tensor, received: Tensor, group: dist.ProcessGroup, target: int, source: int, *, phase: str | None = None
) -> Handle:
    """Send to one place of the group and receive from another: all ranks at once, round a ring."""

    def both() -> Sequence[Waitable]:
        there = dist.P2POp(dist.isend, wire(sent), group=group, group_peer=target)
        back = dist.P2POp(dist.irecv, wire(received), group=group, group_peer=source)
        return dist.batch_isend_irecv([there, back])

    return start("ring", group, (sent, received), both, phase)


def send(
    tensors: Sequence[Tensor], group: dist.ProcessGroup, target: int, *, kind: str = "p2p", phase: str | None = None
) -> Handle:
    """Send to one place of the group."""
    raw = [[wire(x)] for x in tensors]
    return start(kind, group, tensors, lambda: [group.send(x, target, 0) for x in raw], phase)


def receive(
    tensors: Sequence[Tensor],
    group: dist.ProcessGroup,
    source: int,
    *,
    kind: str = "p2p",
    phase: str | None = None,
    expected: Expected | None = None,
) -> Handle:
    """Receive from one place of the group, in the order in which that sends."""
    raw = [[wire(x)] for x in tensors]
    return start(kind, group, tensors, lambda: [group.recv(x, source, 0) for x in raw], phase, expected)


def gather_objects(own: Any, group: dist.ProcessGroup, *, phase: str) -> list[Any]:
    """What all ranks give, in their order; waits for it."""
    found: list[Any] = [None] * group.size()
    _timed(_message("all_gather", group, (), phase), lambda: dist.all_gather_object(found, own, group=group))
    return found


def gather_objects_on_first(own: Any, group: dist.ProcessGroup, *, phase: str) -> list[Any]:
    """What all ranks give, in their order, on the first rank of the group, and nothing on the others; waits for it."""
    found: list[Any] | None = [None] * group.size() if group.rank() == 0 else None
    _timed(_message("gather", group, (), phase), lambda: dist.gather_object(own, found, group=group, group_dst=0))
    return found or []


def broadcast_object(own: Any, group: dist.ProcessGroup, source: int, *, phase: str, patient: bool = False) -> Any:
    """What the rank at place `source` of the group gives; waits for it.

    Args:
        patient: that rank may take as long as it likes.
    """
    box = [own]
    message = _message("broadcast", group, (), phase, patient=patient)
    _timed(message, lambda: dist.broadcast_object_list(box, group=group, group_src=source))
    return box[0]


def wire(x: Tensor) -> Tensor:
    """The flat memory of a contiguous tensor in a type that every backend knows: booleans travel as bytes, complex
    numbers as pairs of real ones."""
    flat = x.view(-1)
    if x.dtype == torch.bool:
        return flat.view(torch.uint8)
    return torch.view_as_real(flat).view(-1) if x.is_complex() else flat


def _sizes(flat: Tensor, parts: Sequence[int]) -> list[int]:
    """Parts of flat memory in elements."""
    return [count * flat.numel() // (sum(parts) or 1) for count in parts]


def _options(operation: Any) -> dist.AllreduceOptions:
    options = dist.AllreduceOptions()
    options.reduceOp = operation
    return options


_REDUCE: dict[Reduction, dist.AllreduceOptions] = {
    "sum": _options(dist.ReduceOp.SUM),
    "max": _options(dist.ReduceOp.MAX),
    "min": _options(dist.ReduceOp.MIN),
}
_SUM = dist.ReduceScatterOptions()  # its operation is the sum
