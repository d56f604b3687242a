"""What layers of a step give each other, kept and made whole for someone who looks inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from galvatron.runtime import comm
from galvatron.runtime.mesh import Mesh
from galvatron.runtime.outputs import PHASE, Output
from galvatron.runtime.stage import Stage


class LayerResults:
    """Results of layers of this rank's stages, from a step in which they are kept.

    Args:
        wanted: by stage and layer, how its results are made whole; not used by anyone else.
    """

    def __init__(self, stages: Sequence[Stage], wanted: Mapping[int, Mapping[str, Sequence[Output]]]) -> None:
        self._stages, self._mesh, self._wanted = stages, stages[0].mesh, wanted

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Steps inside the `with` block keep them, all micro-batches of the last step."""
        layers = [(s.layers[name], own) for s in self._stages for name, own in self._wanted[s.index].items()]
        for layer, outputs in layers:
            for output in outputs:
                output.parts = {}
            layer.outputs.extend(outputs)
        try:
            yield
        finally:
            for layer, outputs in layers:
                del layer.outputs[len(layer.outputs) - len(outputs) :]

    def whole(self, samples: int) -> Iterator[tuple[str, Tensor]]:
        """Each of them on rank 0, which alone gets them, in the order of the stages; every rank goes through them."""
        own = [
            (output, stage.epilogue_shards > 1)
            for stage in self._stages
            for outputs in self._wanted[stage.index].values()
            for output in outputs
        ]
        for holder in range(self._mesh.pipeline_degree):
            yield from _of_holder(self._mesh, holder, own, samples)


def _of_holder(
    mesh: Mesh, holder: int, own: Sequence[tuple[Output, bool]], samples: int
) -> Iterator[tuple[str, Tensor]]:
    """The results of one pipeline rank."""
    count = len(own)
    if mesh.pipeline is not None:
        count = comm.broadcast_object(count, mesh.pipeline, holder, phase=PHASE)
    for place in range(count):
        name, value = "", torch.empty(())
        if mesh.pipeline_rank == holder:
            output, stretches = own[place]
            name, value = output.name, output.whole(samples, stretches=stretches).contiguous()
        if mesh.pipeline is not None:
            kind = (name, tuple(value.shape), value.dtype)
            name, shape, dtype = comm.broadcast_object(kind, mesh.pipeline, holder, phase=PHASE)
            if mesh.pipeline_rank != holder:
                value = torch.empty(shape, dtype=dtype, device=mesh.world.device)
            comm.broadcast(value, mesh.pipeline, holder, phase=PHASE).wait()
        if mesh.world.rank == 0:
            yield name, value
