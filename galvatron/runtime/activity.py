"""What this rank does now: written by the one place that every communication of the runtime passes, read by the watch
when a job must be explained that hangs or fails.

    with communicating("all_reduce", axis.group, total):
        axis.group.allreduce(total).wait()

Writing costs about a microsecond and never waits. One job runs in a process, so there is one record: `now`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from galvatron.runtime.clock import Begun, Clock, HostClock

Place = tuple[int, str, int]
"""Stage, layer and micro-batch."""

Chunk = tuple[int, str, int]
"""Stage, "forward", "backward", "weight gradients" or "epilogue", and micro-batch."""

Expected = dict[Chunk, int]
"""Which chunks a pipeline waits for the input of, and the ranks that send it."""


class Activity:
    """What a rank does.

    Attributes:
        operation: the communication that the host waits in; it stays when an error leaves it.
        place: the layer whose forward runs, or whose communication the backward runs.
        chunk: what the pipeline computes.
        phase: what messages are for, where it is neither the forward nor the backward of a layer.
        stages: the stages of this rank.
        clock: measures the waits.
    """

    __slots__ = ("chunk", "clock", "operation", "phase", "place", "stages")

    def __init__(self) -> None:
        self.clock: Clock = HostClock()
        self.stages: tuple[int, ...] = ()
        self.reset()

    def reset(self) -> None:
        """Forget what was left by an error."""
        self.operation: communicating | None = None
        self.place: Place | None = None
        self.chunk: Chunk | None = None
        self.phase: str | None = None

    def wait(self) -> communicating | None:
        """What this rank waits in: the host, or else the device behind it."""
        return self.operation or self.clock.front()


now = Activity()


class communicating:
    """Around the call of one communication and the wait for it, so that both are known to be going on and are timed.

    For work that goes on beside the computation, around its call, and again around the wait.

    Args:
        kind: as in the IR: "all_reduce", "all_gather", ...; "pipeline" is the wait for another stage.
        group: the ranks that take part.
        tensor: the whole tensor, as one rank sees it.
        expected: of the wait for another stage: what is to be received; empty when something is sent.
    """

    __slots__ = ("before", "begun", "dtype", "expected", "group", "kind", "nbytes", "phase", "place")

    def __init__(
        self,
        kind: str,
        group: dist.ProcessGroup | None,
        tensor: Tensor | None = None,
        *,
        expected: Expected | None = None,
    ) -> None:
        self.kind = kind
        self.group = group
        self.nbytes = 0
        self.dtype: torch.dtype | None = None
        if tensor is not None:
            self.nbytes, self.dtype = tensor.nbytes, tensor.dtype
        self.expected = expected or {}
        self.place = now.place
        self.phase = now.phase or ("backward" if torch._C._current_graph_task_id() != -1 else "forward")

    def __enter__(self) -> None:
        self.before = now.operation
        now.operation = self
        self.begun: Begun = now.clock.begin()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        now.clock.end(self, self.begun)
        if kind is None:
            now.operation = self.before
