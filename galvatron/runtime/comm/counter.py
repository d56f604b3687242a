"""Counting what a rank sends: a debug mode that watches every call of the communication library.

    with rt.CommunicationCounter() as counter:
        compiled.forward_backward(batch)
    print(counter)

It sees what is really sent, by generated code, by the runtime and by torch itself, and costs nothing while it is off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from galvatron.runtime.comm.activity import now
from galvatron.runtime.comm.library import direction

_KINDS = {
    "allreduce_": "all_reduce",
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "alltoall_base_": "all_to_all",
    "send": "p2p",
    "broadcast_": "broadcast",
    "gather_": "gather",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}
"""Ops of the communication library and of its functional form (DTensor's), and what they are called in the IR. A
message counts where it is sent."""

_UNCOUNTED = {"recv_", "barrier", "monitored_barrier_", "wait_tensor", "_wrap_tensor_autograd"}


@dataclass(frozen=True, order=True)
class Channel:
    """Messages of one kind on one group of ranks: `size` ranks, `stride` apart.

    `phase` is "forward", "backward" (recomputation included), "gradients" (their sum, once per step) or "totals" (loss
    and norm).
    """

    phase: str
    kind: str
    size: int
    stride: int


class CommunicationCounter(TorchDispatchMode):
    """Counts the messages of this rank while it is entered; entered again it adds to them.

    Attributes:
        messages: how often each channel was used.
        sent_bytes: the payload, as in `Machine.collective_s`: the whole tensor as one rank sees it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.messages: Counter[Channel] = Counter()
        self.sent_bytes: Counter[Channel] = Counter()

    def counts(self, phase: str) -> Counter[tuple[str, tuple[int, int]]]:
        """The messages of one phase by kind and by size and stride of the group."""
        return Counter({(c.kind, (c.size, c.stride)): n for c, n in self.messages.items() if c.phase == phase})

    def payload_bytes(self, phase: str) -> Counter[tuple[str, tuple[int, int]]]:
        """The bytes of one phase by kind and by size and stride of the group."""
        return Counter({(c.kind, (c.size, c.stride)): n for c, n in self.sent_bytes.items() if c.phase == phase})

    def __str__(self) -> str:
        return "\n".join(
            f"{c.phase:9} {c.kind:14} {c.size} ranks, stride {c.stride}: {self.messages[c]} x, {self.sent_bytes[c]} B"
            for c in sorted(self.messages)
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind is not Tensor and kind is not nn.Parameter for kind in types):
            return NotImplemented  # a DTensor, say, which is to do its own part first: what it sends comes by here
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count(func._opname, args, result)
        return result

    def _count(self, op: str, args: tuple[Any, ...], result: Any) -> None:
        if op in _UNCOUNTED:
            return
        ranks = dist.get_process_group_ranks(_group(args))
        channel = Channel(
            direction() if now.operation is None else now.operation.phase,
            _KINDS.get(op, op),
            len(ranks),
            ranks[1] - ranks[0] if len(ranks) > 1 else 1,
        )
        self.messages[channel] += 1
        # Operand and result may both be among the tensors; the larger one is the whole tensor.
        self.sent_bytes[channel] += max((sum(t.nbytes for t in _tensors(one)) for one in (*args, result)), default=0)


def _group(args: tuple[Any, ...]) -> dist.ProcessGroup:
    for arg in args:
        if isinstance(arg, torch.ScriptObject) and "ProcessGroup" in str(arg._type()):
            return dist.ProcessGroup.unbox(arg)
    if isinstance(args[-1], str):
        return dist.distributed_c10d._resolve_process_group(args[-1])  # type: ignore[arg-type]  # a GroupName is a str
    raise AssertionError("a call of the communication library without a process group")


def _tensors(arg: Any) -> Iterator[Tensor]:
    if isinstance(arg, Tensor):
        yield arg
    elif isinstance(arg, (list, tuple)):
        for item in arg:
            yield from _tensors(item)
