"""What this rank does now: written by those who do it, read by the watch when a job must be explained that hangs or
fails. Writing costs less than a microsecond and never waits. One job runs in a process, so there is one record: `now`.
"""

from __future__ import annotations

from galvatron.runtime.comm.clock import Clock, HostClock
from galvatron.runtime.comm.message import Chunk, Message, Place


class Activity:
    """What a rank does.

    Attributes:
        operation: the communication that the host starts or waits for; it stays when an error leaves it.
        place: the layer whose forward runs, or whose communication the backward runs.
        chunk: what the pipeline computes.
        stages: the stages of this rank.
        clock: measures the waits.
    """

    __slots__ = ("chunk", "clock", "operation", "place", "stages")

    def __init__(self) -> None:
        self.clock: Clock = HostClock()
        self.stages: tuple[int, ...] = ()
        self.reset()

    def reset(self) -> None:
        """Forget what was left by an error."""
        self.operation: Message | None = None
        self.place: Place | None = None
        self.chunk: Chunk | None = None

    def wait(self) -> Message | None:
        """What this rank waits in: the host, or else the device behind it."""
        return self.operation or self.clock.front()


now = Activity()
