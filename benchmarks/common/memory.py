"""How much memory tensors come to hold at the most: `torch.cuda.max_memory_allocated`, for the CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.profiler import ProfilerActivity, profile


class TensorMemory:
    """What `watched` saw.

    Attributes:
        peak_bytes: the most that was held after `begin` (all of the time, without it); known when `watched` has ended.
        left_bytes: held in the end.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.left_bytes = 0
        self._begin_ns = 0

    def begin(self) -> None:
        """From now on the peak counts."""
        self._begin_ns = time.time_ns()


@contextmanager
def watched() -> Iterator[TensorMemory]:
    """Watches what this thread and its backward passes allocate on the CPU, and free; slows them down.

    What the communication library holds outside of tensors is not seen.
    """
    memory = TensorMemory()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        yield memory
    profiler: Any = recorded.profiler  # its results are missing from torch's type stubs
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        before, memory.left_bytes = memory.left_bytes, memory.left_bytes + event.nbytes()
        if event.start_ns() >= memory._begin_ns:
            memory.peak_bytes = max(memory.peak_bytes, before, memory.left_bytes)
