"""What one rank has of each tensor of the model, in place: for those who write it to files and read it back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from galvatron.runtime.full_state import Catalogue, ModelNames
from galvatron.runtime.parameters import Parameters
from galvatron.runtime.stage import Stage, StateSpec


@dataclass(frozen=True)
class Piece:
    """This rank's part of a parameter or buffer: the elements from `begin` to `end` of its slice, seen flat.

    Attributes:
        name: the first one that the model has for it.
        held_as: the name that the stages use.
        spec: how the slice is cut from the whole.
        tensor: the memory; what the optimizer updates, in the type that it updates, where the parameter is trained.
        first: whether no pipeline rank before this one has the same slice.
        updated: whether this rank's optimizer updates it, if it is trained; else another rank of the stage does.
    """

    name: str
    held_as: str
    spec: StateSpec
    tensor: Tensor
    begin: int
    end: int
    first: bool = True
    updated: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether this is all of the tensor."""
        return self.spec.shards == 1 and self.end - self.begin == self.spec.local_numel


def pieces_of(
    stages: Sequence[Stage], catalogue: Catalogue, names: ModelNames, parameters: Parameters
) -> Iterator[Piece]:
    """The parts of all that the steps of a run change or that the model's `state_dict` has."""
    first_names: dict[str, str] = {}
    for name, held in names.aliases.items():
        first_names.setdefault(held, name)
    kept = {names.aliases[name] for name in names.persistent if name in names.aliases}
    kept |= {update.name for stage in stages for update in stage.updates}
    for name, spec in catalogue.held.state_specs.items():
        if spec.kind == "parameter" or spec.written_by is not None or name in kept:
            tensor, begin, end = parameters.part(name)
            first = catalogue.holders[name][0] == catalogue.mesh.pipeline_rank
            yield Piece(first_names[name], name, spec, tensor, begin, end, first)
    for name, value in names.unused.items():
        spec = StateSpec(name, tuple(value.shape), value.dtype, (), "buffer")
        yield Piece(name, name, spec, value, 0, value.numel())
