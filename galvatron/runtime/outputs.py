"""What the model returns besides its loss: kept while it is computed, where it is asked for, and made whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from galvatron.runtime import comm
from galvatron.runtime.collectives import gather_full
from galvatron.runtime.mesh import Axis, Mesh
from galvatron.runtime.slices import Sharded, in_cutting_order

if TYPE_CHECKING:
    from galvatron.runtime.stage import Stage

_PHASE = "outputs"


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

    def take(self, results: Any, micro_batch: int) -> None:
        """A call of the layer, for one micro-batch, has ended with these results."""
        if self.parts is not None:
            value = (results if isinstance(results, tuple) else (results,))[self.result]
            # What is a view may be one of state, which is not there for long, or changes in the next step.
            self.parts[micro_batch] = value.clone() if value._is_view() else value

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
            comm.all_reduce(local, axis.group, phase=_PHASE).wait()
        slices = in_cutting_order((axis, place) for axis, place in places.items() if isinstance(place, Sharded))
        for axis, place in reversed(slices):
            local = gather_full(local, axis, place)
            if place.padded:
                local = local.narrow(place.dim, 0, shape[place.dim])
        return local


def ask(stages: Iterable[Stage], *, wanted: bool) -> None:
    """A forward begins in which the outputs are `wanted`, or are not."""
    for stage in stages:
        stage.asked = wanted
        for output in stage.outputs:
            output.parts = {} if wanted else None


def gathered(stages: Iterable[Stage], mesh: Mesh, samples: int) -> dict[str, Tensor]:
    """The outputs of a forward that has ended, whole, on every rank of the job. Collective."""
    own = {
        output.name: output.whole(samples, stretches=stage.epilogue_shards > 1).contiguous()
        for stage in stages
        for output in stage.outputs
    }
    if mesh.pipeline is None:
        return own
    kinds = {name: (tuple(value.shape), value.dtype) for name, value in own.items()}
    found: dict[str, Tensor] = {}
    for holder, outputs in enumerate(comm.gather_objects(kinds, mesh.pipeline, phase=_PHASE)):
        for name, (shape, dtype) in outputs.items():
            value = own[name] if name in own else torch.empty(shape, dtype=dtype, device=mesh.world.device)
            comm.broadcast(value, mesh.pipeline, holder, phase=_PHASE).wait()
            found[name] = value
    return found
