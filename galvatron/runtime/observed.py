"""`PipelineStage` that says what it computes and whom it waits for: between two chunks a schedule only waits.

That holds for every schedule of torch, so nothing here knows their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage

from galvatron.runtime.activity import communicating, now


@contextmanager
def running_schedule(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Around the run of a schedule whose stages are `ObservedStage`s."""
    now.expected.clear()
    communicating("pipeline", group).__enter__()
    yield
    assert now.operation is not None
    now.operation.__exit__(None)


class ObservedStage(PipelineStage):
    """Counts every moment outside of its chunks as waiting for other stages."""

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        return self._expecting(super().get_fwd_recv_ops(fwd_chunk_id), "forward", fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        return self._expecting(super().get_bwd_recv_ops(bwd_chunk_id), "backward", bwd_chunk_id)

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        return self._computing(super().forward_one_chunk, "forward", fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        return self._computing(super().backward_one_chunk, "backward", bwd_chunk_id, *args, **kwargs)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        return self._computing(super().backward_weight_one_chunk, "weight gradients", bwd_chunk_id, *args, **kwargs)

    def _expecting(self, ops: list[dist.P2POp], phase: str, microbatch: int) -> list[dist.P2POp]:
        if ops:
            now.expected[self.stage_index, phase, microbatch] = ops[0].peer
        return ops

    def _computing(self, chunk: Callable[..., Any], phase: str, microbatch: int, *args: Any, **kwargs: Any) -> Any:
        wait = now.operation
        assert wait is not None
        wait.__exit__(None)
        now.chunk = (self.stage_index, phase, microbatch)
        wait.expected = {now.chunk: now.expected.pop(now.chunk)} if now.chunk in now.expected else {}
        result = chunk(microbatch, *args, **kwargs)
        now.chunk = now.place = None
        communicating("pipeline", wait.group).__enter__()
        return result
