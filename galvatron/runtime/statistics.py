"""What stages compute once per step of the whole batch, such as how many tokens a loss counts, on ranks that have some
of its samples each.

Where a stage says that `step` of parts of a batch gives terms of a sum (`step_adds`), the ranks add up what it gives of
theirs; elsewhere they gather the inputs that it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from galvatron.runtime import comm
from galvatron.runtime.mesh import process_group
from galvatron.runtime.rows import Rows, Telling
from galvatron.runtime.stage import Stage

_PHASE = "batch"


def prepare(stages: Sequence[Stage]) -> None:
    """Makes the groups of ranks that tell each other of their samples. Collective."""
    mesh = stages[0].mesh
    each = len(mesh.ranks)
    for place in range(mesh.pipeline_degree) if mesh.world.size > 1 else ():
        process_group(range(place * each, (place + 1) * each))


def statistics(stage: Stage, whole: dict[str, Tensor], rows: Rows) -> dict[str, Any]:
    """What the stage computes once per step from the whole batch, of which this rank has `rows`."""
    step = getattr(type(stage), "step", None)  # an attribute of the stage itself may be state of the model
    if step is None:
        return {}
    telling = rows.telling.get(stage.index)
    with torch.no_grad():
        if telling is None:
            return step(stage, **whole)
        sampled = {wanted.variable for wanted in stage.batch_inputs if wanted.whole and wanted.samples}
        own = {name: value[telling.own.to(value.device)] for name, value in whole.items() if name in sampled}
        if not stage.step_adds:
            return step(stage, **whole | {name: _gathered(stage, value, telling) for name, value in own.items()})
        found = step(stage, **whole | own)
        terms = [value.contiguous() for value in found.values()]
        for handle in [comm.all_reduce(term, _group(stage), phase=_PHASE) for term in terms]:
            handle.wait()
        return dict(zip(found, terms, strict=True))


def _group(stage: Stage) -> Any:
    group = process_group(stage.mesh.ranks)
    assert group is not None
    return group


def _gathered(stage: Stage, own: Tensor, telling: Telling) -> Tensor:
    """The samples that all ranks tell, in the order of the batch."""
    most = max(telling.counts)
    part = F.pad(own, [0, 0] * (own.dim() - 1) + [0, most - len(own)]).contiguous()
    parts = part.new_empty(len(telling.counts) * most, *part.shape[1:])
    comm.all_gather(parts, part, _group(stage), phase=_PHASE).wait()
    return parts[telling.order.to(parts.device)]
