"""Steps that give what the model returns besides its loss: asked for before them, on every rank after them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from galvatron.runtime import comm
from galvatron.runtime.mesh import Mesh
from galvatron.runtime.outputs import PHASE
from galvatron.runtime.stage import Stage


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
    for holder, outputs in enumerate(comm.gather_objects(kinds, mesh.pipeline, phase=PHASE)):
        for name, (shape, dtype) in outputs.items():
            value = own[name] if name in own else torch.empty(shape, dtype=dtype, device=mesh.world.device)
            comm.broadcast(value, mesh.pipeline, holder, phase=PHASE).wait()
            found[name] = value
    return found
