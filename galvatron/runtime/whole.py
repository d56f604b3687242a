"""Optimizers whose rule reads whole parameters: each is updated by one of the ranks of its stage.

A rank's optimizer gets every such parameter of its stages, in its whole shape. The one that *owns* a parameter has its
value and its gradient during the update, and keeps its state; on the others it has no gradient, so that no optimizer
does anything for it, and no memory. Stages that share a parameter each update their own, alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from galvatron.errors import GalvatronError
from galvatron.runtime.held import HeldState
from galvatron.runtime.mesh import process_group
from galvatron.runtime.owners import Owners
from galvatron.runtime.parameters import Parameters
from galvatron.runtime.pieces import Piece


@dataclass(frozen=True)
class WholeParameters:
    """A function from parameters to an optimizer whose rule is not element-wise, such as `torch.optim.Adafactor`, for
    `compile(optimizer=...)`. Parameters may not depend on each other.

    Attributes:
        build: as `optimizer=` of `compile`; it gets the whole parameters of this rank's stages.
        which: whether the rule reads a parameter whole, by name and shape; None, all. It may be given others in parts,
            as an element-wise rule is.

    Raises:
        GalvatronError: one of them is no function.
    """

    build: Callable[[list[Any]], torch.optim.Optimizer]
    which: Callable[[str, tuple[int, ...]], bool] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.build, (torch.optim.Optimizer, WholeParameters)) or not callable(self.build):
            raise GalvatronError(
                "WholeParameters takes a function from parameters to a torch.optim.Optimizer, not "
                f"{type(self.build).__name__}"
            )
        if self.which is not None and not callable(self.which):
            raise GalvatronError(
                "which= of WholeParameters must be a function from a name and a shape to True or False, or None, not "
                f"{type(self.which).__name__}"
            )

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
        parameters: what the optimizer gets, by name; where the owner has all of a parameter, the parameter itself.
    """

    def __init__(self, wanted: Collection[str], parameters: Parameters, held: HeldState) -> None:
        mesh, self._trained = held.mesh, parameters.trained
        size = len(mesh.ranks)
        places = range(mesh.world.size // size)
        groups = [process_group(range(place * size, (place + 1) * size)) for place in places] if size > 1 else []
        specs = {name: held.state_specs[name] for name in self._trained if size > 1 and name in wanted}
        pieces = {name: Piece(name, name, spec, *parameters.part(name)) for name, spec in specs.items()}
        self._owners = Owners(pieces, groups[mesh.pipeline_rank] if groups else None, mesh.index, mesh.world.device)
        self.parameters: dict[str, nn.Parameter] = {}
        for name, spec in specs.items():
            own = self._trained[name]
            if not (self.owns(name) and pieces[name].is_whole and own.shape == spec.shape):
                own = nn.Parameter(torch.empty(spec.shape, dtype=own.dtype, device=own.device))
                own.untyped_storage().resize_(0)
            self.parameters[name] = own

    def owns(self, name: str) -> bool:
        """Whether this rank updates a parameter."""
        return self._owners.owns(name)

    def over(self, trained: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """What the optimizer gets of all that is trained."""
        return {name: self.parameters.get(name, own) for name, own in trained.items()}

    @contextmanager
    def gathered(self, unreached: Iterable[str] = ()) -> Iterator[None]:
        """Around the update: before it owners get values and gradients, but of what the step has not reached no
        gradients; after it they give the new values to the ranks that keep parts of them. Collective over the ranks of
        a stage."""
        with torch.no_grad():
            self._owners.bring(self.parameters, self._parts, self._taken)
        for name in self.parameters.keys() & set(unreached):
            self.parameters[name].grad = None
        yield
        with torch.no_grad():
            self._give(self.parameters, self.parameters)
        for name, own in self.parameters.items():
            if not self._is_here(name):
                own.grad = None
                own.untyped_storage().resize_(0)

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Values take the place of parameters, on all ranks that have parts of them.

        Collective over the ranks of a stage.

        Args:
            values: by name, of some that this rank owns.
        """
        with torch.no_grad():
            self._give(self._owners.together(values), values)

    def _give(self, names: Collection[str], values: Mapping[str, Tensor]) -> None:
        self._owners.give(
            names,
            lambda name: [self._trained[name].detach()],
            lambda name: [values[name].detach().to(self._trained[name].dtype)],
        )

    def _parts(self, name: str) -> list[Tensor]:
        """This rank's part of value and gradient, which is 0 where nothing in the batch reached a parameter."""
        own = self._trained[name]
        return [own.detach(), torch.zeros_like(own) if own.grad is None else own.grad]

    def _taken(self, name: str) -> list[Tensor]:
        """The memory that value and gradient come to."""
        own = self.parameters[name]
        if self._is_here(name):
            return self._parts(name)
        own.untyped_storage().resize_(own.nbytes)
        own.grad = torch.empty_like(own)
        return [own.detach(), own.grad]

    def _is_here(self, name: str) -> bool:
        """Whether the optimizer gets what the layers read."""
        return self.parameters[name] is self._trained[name]
