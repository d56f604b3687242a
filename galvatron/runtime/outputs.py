"""One value that the model returns besides its loss: kept as it is computed, where it is asked for, and made whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from galvatron.runtime import comm
from galvatron.runtime.collectives import gather_full
from galvatron.runtime.mesh import Axis
from galvatron.runtime.slices import Sharded, in_cutting_order

PHASE = "outputs"
"""What ranks do when they make outputs whole."""


def taken(results: Any, number: int, state: Iterable[Tensor]) -> Tensor:
    """One of the results of a layer, to be kept until the step has ended: a copy where it is a part of the layer's
    `state`, which is not there for long, or changes at the end of the step."""
    value = (results if isinstance(results, tuple) else (results,))[number].detach()
    memory = value.untyped_storage().data_ptr()
    return value.clone() if any(tensor.untyped_storage().data_ptr() == memory for tensor in state) else value


@dataclass(frozen=True)
class PartialSum:
    """A term of a sum on every rank of the axis."""


@dataclass
class Output:
    """One result of one layer, which the model returns under a name.

    `shape(n)` is its whole shape for `n` samples, `places(n)` where it lives; on an axis that is not named it is the
    same on every rank. The micro-batches have slices of it where it is `along`, terms of a sum where it is `summed`,
    and otherwise all the same.
    """

    name: str
    result: int
    shape: Callable[[int], tuple[int, ...]]
    places: Callable[[int], Mapping[Axis, Sharded | PartialSum]]
    along: Sharded | None
    summed: bool
    parts: dict[int, Tensor] | None = None
    """By micro-batch, what was computed in the running step; None where nobody asks for it."""

    def take(self, results: Any, state: Iterable[Tensor], micro_batch: int) -> None:
        """A call of the layer, for one micro-batch, has ended with these results."""
        if self.parts is not None:
            self.parts[micro_batch] = taken(results, self.result, state)

    def whole(self, samples: int, *, stretches: bool) -> Tensor:
        """The output of all micro-batches on every rank of the stage, in the order of the batch; forgets the parts.
        Collective.

        Args:
            samples: how many the whole batch has.
            stretches: each micro-batch has a stretch of every data-parallel shard, not a stretch of the batch.
        """
        assert self.parts, f"no layer has computed the output {self.name!r}"
        parts, self.parts = [self.parts[i] for i in sorted(self.parts)], None
        if len(parts) == 1 or self.along is None:
            only = torch.stack(parts).sum(0) if self.summed else parts[-1]
            return self._unsharded(only.to(parts[0].dtype), samples)
        if stretches:
            return self._unsharded(self.along.join(torch.stack(parts)), samples)
        each = samples // len(parts)
        return self.along.join(torch.stack([self._unsharded(part, each) for part in parts]))

    def _unsharded(self, local: Tensor, samples: int) -> Tensor:
        """The whole of what the ranks have of `samples` samples."""
        places, shape = self.places(samples), self.shape(samples)
        for axis in (axis for axis, place in places.items() if isinstance(place, PartialSum)):
            local = local.contiguous().clone()
            comm.all_reduce(local, axis.group, phase=PHASE).wait()
        slices = in_cutting_order((axis, place) for axis, place in places.items() if isinstance(place, Sharded))
        for axis, place in reversed(slices):
            local = gather_full(local, axis, place)
            if place.padded:
                local = local.narrow(place.dim, 0, shape[place.dim])
        return local
