"""What a step gives besides its loss: what the model returns, or what layers give each other. It is asked for before
the step, and made whole after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from galvatron.runtime import comm
from galvatron.runtime.mesh import Mesh
from galvatron.runtime.outputs import PHASE, Output
from galvatron.runtime.stage import Stage


def ask(stages: Iterable[Stage], *, wanted: bool) -> None:
    """A forward begins in which the outputs are `wanted`, or are not."""
    for stage in stages:
        stage.asked = wanted
        for output in stage.outputs:
            output.parts = {} if wanted else None


def gathered(stages: Iterable[Stage], mesh: Mesh, samples: int) -> dict[str, Tensor]:
    """The outputs of a forward that has ended, whole, on every rank of the job. Collective."""
    return dict(_whole([(stage, output) for stage in stages for output in stage.outputs], mesh, samples))


class LayerResults:
    """Results of layers of this rank's stages, for someone who looks inside.

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
        own = [(s, output) for s in self._stages for outputs in self._wanted[s.index].values() for output in outputs]
        return (result for result in _whole(own, self._mesh, samples) if self._mesh.world.rank == 0)


def _whole(own: Sequence[tuple[Stage, Output]], mesh: Mesh, samples: int) -> Iterator[tuple[str, Tensor]]:
    """Outputs of this rank's stages and those of the other pipeline ranks, in their order, made whole one after the
    other on every rank, so that no more than one is in memory that nobody keeps. Collective."""
    counts = [len(own)] if mesh.pipeline is None else comm.gather_objects(len(own), mesh.pipeline, phase=PHASE)
    for holder, count in enumerate(counts):
        for place in range(count):
            name, value = "", torch.empty(())
            if mesh.pipeline_rank == holder:
                stage, output = own[place]
                value = output.whole(samples, stretches=stage.epilogue_shards > 1).contiguous()
                name = output.name
            if mesh.pipeline is not None:
                kind = (name, tuple(value.shape), value.dtype)
                name, shape, dtype = comm.broadcast_object(kind, mesh.pipeline, holder, phase=PHASE)
                if mesh.pipeline_rank != holder:
                    value = torch.empty(shape, dtype=dtype, device=mesh.world.device)
                comm.broadcast(value, mesh.pipeline, holder, phase=PHASE).wait()
            yield name, value
