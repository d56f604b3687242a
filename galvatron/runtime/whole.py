"""Optimizers whose rule reads whole parameters: each is updated by one of the ranks of its stage.

A rank's optimizer gets every such parameter of its stages, in its whole shape. The one that *owns* a parameter has its
value and its gradient during the update, and keeps its state; on the others it has no gradient, so that no optimizer
does anything for it, and no memory. Parameters are shared out by size. Stages that share a parameter each update their
own, alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from galvatron.errors import GalvatronError
from galvatron.runtime import comm
from galvatron.runtime.held import HeldState
from galvatron.runtime.mesh import process_group
from galvatron.runtime.parameters import Parameters


@dataclass(frozen=True)
class WholeParameters:
    """A function from parameters to an optimizer whose rule is not element-wise, such as `torch.optim.Adafactor`, for
    `compile(optimizer=...)`. Parameters may not depend on each other.

    Attributes:
        build: as `optimizer=` of `compile`; it gets the whole parameters of this rank's stages.
        which: whether the rule reads a parameter whole, by name and shape; None, all. It may be given others in parts,
            as an element-wise rule is.
    """

    build: Callable[[list[Any]], torch.optim.Optimizer]
    which: Callable[[str, tuple[int, ...]], bool] | None = None

    def of(self, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """The names of the parameters that the rule reads whole.

        Raises:
            GalvatronError: `which` fails.
        """
        try:
            return frozenset(n for n, shape in shapes.items() if self.which is None or bool(self.which(n, shape)))
        except Exception as error:
            raise GalvatronError(
                f"the function given as which= of WholeParameters failed: {type(error).__name__}: {error}"
            ) from error


class WholeUpdate:
    """The parameters of this rank's stages that are updated whole. Building it is collective.

    Args:
        wanted: the names of parameters whose rule reads them whole, alike on all ranks.

    Attributes:
        parameters: what the optimizer gets, by name.
    """

    def __init__(self, wanted: Collection[str], parameters: Parameters, held: HeldState) -> None:
        mesh, self._parameters = held.mesh, parameters
        size = len(mesh.ranks)
        places = range(mesh.world.size // size)
        groups = [process_group(range(place * size, (place + 1) * size)) for place in places] if size > 1 else []
        self._group = groups[mesh.pipeline_rank] if groups else None
        specs = {name: held.state_specs[name] for name in parameters.trained}
        self._specs = {name: spec for name, spec in specs.items() if size > 1 and name in wanted}
        self._index, loads = mesh.index, [0] * size
        self._owner: dict[str, int] = {}
        for name in sorted(self._specs, key=lambda name: (-math.prod(self._specs[name].shape), name)):
            self._owner[name] = loads.index(min(loads))
            loads[self._owner[name]] += math.prod(self._specs[name].shape)
        self.parameters: dict[str, nn.Parameter] = {}
        for name, spec in self._specs.items():
            blank = torch.empty(spec.shape, dtype=spec.master or spec.dtype, device=mesh.world.device)
            blank.untyped_storage().resize_(0)
            self.parameters[name] = nn.Parameter(blank)

    def owns(self, name: str) -> bool:
        """Whether this rank updates a parameter."""
        return self._owner[name] == self._index

    def over(self, trained: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """What the optimizer gets of all that is trained."""
        return {name: self.parameters.get(name, own) for name, own in trained.items()}

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Around the update: before it owners get values and gradients, after it they give the new values to the other
        ranks. Collective over the ranks of a stage."""
        for name, spec in self._specs.items():
            value, gradient = (
                spec.unshard(local.detach())
                for local in (self._parameters.read(name), self._parameters.read_gradient(name))
            )
            if self.owns(name):
                own = self.parameters[name]
                own.untyped_storage().resize_(own.nbytes)
                with torch.no_grad():
                    own.copy_(value)
                own.grad = gradient.clone()
        yield
        for name, spec in self._specs.items():
            own = self.parameters[name]
            made = own.detach() if self.owns(name) else torch.empty_like(own)
            assert self._group is not None
            comm.broadcast(made, self._group, self._owner[name], phase="parameters").wait()
            self._parameters.write(name, spec.shard(made))
            own.grad = None
            own.untyped_storage().resize_(0)
