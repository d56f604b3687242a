"""What one communication is, in the words in which a job is explained that hangs or fails."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

Place = tuple[int, str, int]
"""Stage, layer and micro-batch."""

Chunk = tuple[int, str, int]
"""Stage, "forward", "backward", "weight gradients" or "epilogue", and micro-batch."""

Expected = dict[Chunk, int]
"""Which chunks a pipeline waits for the input of, and the ranks that send it."""

PIPELINE = "pipeline"
"""The kind of what a stage sends to another one."""


@dataclass(slots=True, eq=False)
class Message:
    """A communication: what it is, who takes part, and what for.

    Attributes:
        kind: as in the IR: "all_reduce", "all_gather", ...; `PIPELINE` between stages.
        group: the ranks that take part; None where nobody knows.
        phase: "forward" or "backward" of a layer, or what it is for besides: "gradients", "totals", ...
        place: the layer that runs, or that waits for it.
        nbytes, dtype: of the whole tensor, as one rank sees it.
        expected: between stages, what is to be received; empty when something is sent.
        patient: it may take as long as it likes.
    """

    kind: str
    group: dist.ProcessGroup | None
    phase: str
    place: Place | None = None
    nbytes: int = 0
    dtype: torch.dtype | None = None
    expected: Expected | None = None
    patient: bool = False
