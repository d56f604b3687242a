"""State that forward writes: the new values that layers make during a step, and when they take the place of the old."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from galvatron.runtime.stage import Stage


@dataclass
class Update:
    """The new value of a piece of state: one result of one layer, in whole on every rank that keeps the state.

    It is the same in each micro-batch, or a term of a sum over them where it is `summed`. Where it `adds`, it comes on
    top of the old value.
    """

    name: str
    result: int
    summed: bool
    adds: bool
    value: Tensor | None = None

    def take(self, results: Any) -> None:
        """A call of the layer, for one micro-batch, has ended with these results."""
        value = (results if isinstance(results, tuple) else (results,))[self.result].detach()
        self.value = self.value + value if self.summed and self.value is not None else value


def forget(stages: Iterable[Stage]) -> None:
    """A step begins: what an earlier one made and did not write is not written any more."""
    for stage in stages:
        for update in stage.updates:
            update.value = None


def write(stages: Iterable[Stage]) -> None:
    """The step has ended: the state becomes what its layers made. Until then they read what it was before."""
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
