"""The loss on a whole data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from galvatron.batches import BatchLike
from galvatron.errors import GalvatronError
from galvatron.runtime import Calls, Part, World, comm, failure

Weight = Callable[[Any], Tensor]
"""From a batch to one number for each of its samples."""


def mean(losses: Iterable[tuple[Tensor, int | Tensor]]) -> float:
    """The mean of the losses of batches, each beside what it counts for.

    Raises:
        GalvatronError: they count for nothing.
    """
    total = count = torch.zeros((), dtype=torch.float64)
    for loss, counts in losses:
        if counts > 0:  # the mean over nothing is no number
            total, count = total + loss.cpu() * counts, count + counts
    if not count > 0:
        raise GalvatronError("there is nothing to evaluate: no batch, or no sample that counts")
    return float(total / count)


def counted(world: World, calls: Calls, batch: BatchLike, samples: int, weight: Weight | None) -> int | Tensor:
    """What all samples of a batch count for together: each one, or its weight. Collective.

    Raises:
        GalvatronError: on a rank, `weight` gives something else than one number for each sample that the rank has.
    """
    if weight is None:
        return samples
    held = list(batch.rows.held if isinstance(batch, Part) else range(samples))
    each = torch.zeros(samples, dtype=torch.float64)
    with calls.agreeing("evaluate"):
        try:
            found = weight(batch)
        except GalvatronError:
            raise
        except Exception as wrong:
            raise GalvatronError(f"the function given as weight= failed: {type(wrong).__name__}: {wrong}") from wrong
        each[held] = _numbers(found, len(held))
    if world.size > 1 and isinstance(batch, Part):
        each = each.to(world.device)
        with failure.guarded("evaluate"):
            comm.all_reduce(each, comm.all_ranks(), "max", phase="batch").wait()
    return each.sum().cpu()


def _numbers(found: Any, samples: int) -> Tensor:
    if not isinstance(found, Tensor) or found.shape != (samples,) or not _is_counted(found):
        shown = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        raise GalvatronError(
            f"weight must give a tensor with one finite number, at least 0, for each sample of what it is given: "
            f"{samples} numbers, not {shown}"
        )
    return found.to("cpu", torch.float64)


def _is_counted(weights: Tensor) -> bool:
    return not weights.is_complex() and bool((weights.isfinite() & (weights >= 0)).all())
