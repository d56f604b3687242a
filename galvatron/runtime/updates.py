"""State that forward writes: the new values that layers make during a step, and when they take the place of the old."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from galvatron.runtime import comm
from galvatron.runtime.stage import Stage


def forget(stages: Iterable[Stage]) -> None:
    """A step begins: what an earlier one made and did not write is not written any more."""
    for stage in stages:
        for amount in (*stage.amounts, *stage.updates, *(amount for amount, _ in stage.reaches)):
            amount.value = None


def close(stages: Iterable[Stage], statistics: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """All micro-batches are through: makes the new values that follow from what these add up to.

    Args:
        statistics: by stage, what `Stage.step` gave.

    Returns:
        The parameters that nothing in the step has reached, where a stage can tell, alike on all its ranks.
    """
    unreached: list[str] = []
    for stage in stages:
        found = {amount.name: amount.value for amount in stage.amounts}
        if found:
            with torch.no_grad():
                stage.closing(**found, **statistics[stage.index])
        for amount in stage.amounts:
            amount.value = None
        for amount, parameters in stage.reaches:
            assert amount.value is not None, "no layer has told which parameters are reached"
            for names, is_reached in zip(parameters, amount.value.tolist(), strict=True):
                unreached += () if is_reached else names
            amount.value = None
    return unreached


@dataclass(frozen=True)
class SharedUpdate:
    """A piece of state that several pipeline ranks keep: the ranks with its slice, and which of them writes it."""

    name: str
    group: dist.ProcessGroup
    writer: int


def shared(
    stages: Sequence[Stage], groups: Mapping[str, dist.ProcessGroup], holders: Mapping[str, tuple[int, ...]]
) -> list[SharedUpdate]:
    """What some stages of this rank write and other pipeline ranks read, or the other way round, in the order in which
    all ranks exchange it.

    Args:
        groups: `Catalogue.shared_groups`.
        holders: the pipeline ranks that keep each piece of state.
    """
    writers = {update.name: stage.index for stage in stages for update in stage.updates}
    for stage in stages:
        specs = stage.state_specs.values()
        writers.update((spec.name, spec.written_by) for spec in specs if spec.written_by is not None)
    rank_of = stages[0].mesh.holders
    return [
        SharedUpdate(name, groups[name], holders[name].index(rank_of[writers[name]]))
        for name in sorted(writers)
        if name in groups
    ]


def write(stages: Sequence[Stage], shared: Iterable[SharedUpdate]) -> None:
    """The step has ended: the state becomes what its layers made. Until then they read what it was before.

    Collective over the pipeline ranks that share what is written.
    """
    made = [(stage.table(update.name)[update.name], update) for stage in stages for update in stage.updates]
    kept = {tensor.untyped_storage().data_ptr() for stage in stages for tensor in stage.buffers()} if made else set()
    values: list[tuple[Tensor, Tensor]] = []
    for state, update in made:
        value = update.value
        assert value is not None, f"no layer has made a new {update.name}"
        value = state + value if update.adds else value
        # What is a view of state must not change while that is written.
        values.append((state, value.clone() if value.untyped_storage().data_ptr() in kept else value))
        update.value = None
    with torch.no_grad():
        for state, value in values:
            state.copy_(value)
    for one in shared:
        tensor = next(stage.table(one.name)[one.name] for stage in stages if one.name in stage.state_specs)
        comm.broadcast(tensor.detach(), one.group, one.writer, phase="state").wait()
