"""What the stages of one rank hold together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from galvatron.errors import PlanError
from galvatron.runtime.stage import Stage, StateSpec


class HeldState:
    """The parameters and buffers of all stages of this rank. One that several stages share is there once: one tensor,
    to which each of those stages adds its gradient.

    Attributes:
        state_specs: by name, in the order of the stages.

    Raises:
        PlanError: two stages share a tensor and lay it out differently.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self.mesh = stages[0].mesh
        self.state_specs: dict[str, StateSpec] = {}
        self._owner: dict[str, Stage] = {}
        for stage in stages:
            for name, spec in stage.state_specs.items():
                if self.state_specs.setdefault(name, spec) != spec:
                    first = self._owner[name].index
                    raise PlanError(
                        f"stages {first} and {stage.index} of pipeline rank {self.mesh.pipeline_rank} share {name} in "
                        f"different layouts: {self.state_specs[name].placements} and {spec.placements}"
                    )
                self._owner.setdefault(name, stage)

    def get(self, name: str) -> Tensor:
        """The tensor called `name`."""
        return self._owner[name].table(name)[name]

    def put(self, name: str, tensor: Tensor) -> None:
        """Let all stages that hold `name` read this tensor."""
        for stage in self.stages:
            if name in stage.state_specs:
                stage.table(name)[name] = tensor
