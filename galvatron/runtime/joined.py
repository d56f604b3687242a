"""Several optimizers as one: what `optimizer=` of `compile` returns where parameters follow different rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch.optim import Optimizer

from galvatron.errors import GalvatronError


class JoinedOptimizer(Optimizer):
    """One optimizer of the groups of several, which share no parameter: like any other for schedulers and checkpoints.

    JoinedOptimizer(torch.optim.Muon(matrices), torch.optim.AdamW(others))

    Attributes:
        optimizers: the several.

    Raises:
        GalvatronError: there are none, or something is no optimizer, or one that is joined already.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        wrong = [type(one).__name__ for one in optimizers if not isinstance(one, Optimizer)]
        if wrong or not optimizers:
            raise GalvatronError(
                "JoinedOptimizer makes one of several, as in JoinedOptimizer(Muon(matrices), AdamW(others)), not of "
                f"{wrong[0] if wrong else 'none'}"
            )
        if any(isinstance(one, JoinedOptimizer) for one in optimizers):
            raise GalvatronError("a JoinedOptimizer of a JoinedOptimizer: join all of them in one")
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._counts = [len(optimizer.param_groups) for optimizer in optimizers]
        self.optimizers = optimizers
        for optimizer in optimizers:
            self.state.update(optimizer.state)
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's returns the loss of a closure
        """A step of each."""
        for optimizer in self.optimizers:
            optimizer.step()

    def load_state_dict(self, state_dict: Any) -> None:
        """As torch's."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let groups and state be the same objects here and in the optimizers."""
        begin = 0
        for optimizer, count in zip(self.optimizers, self._counts, strict=True):
            optimizer.param_groups = self.param_groups[begin : begin + count]
            optimizer.state = self.state
            begin += count


class Updated(NamedTuple):
    """How an optimizer updates a parameter: the class of the rule, and the group that the parameter is in."""

    rule: str
    group: Mapping[str, Any]


def updated_by(optimizer: Optimizer) -> dict[int, Updated]:
    """How each parameter is updated, by its `id`."""
    several = optimizer.optimizers if isinstance(optimizer, JoinedOptimizer) else (optimizer,)
    return {
        id(parameter): Updated(type(one).__name__, group)
        for one in several
        for group in one.param_groups
        for parameter in group["params"]
    }
