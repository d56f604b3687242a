"""Whole tensors under the model's own names, from and to the slices that the ranks hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from galvatron.errors import PlanError, did_you_mean
from galvatron.runtime import comm
from galvatron.runtime.held import HeldState
from galvatron.runtime.materialize import ModelState
from galvatron.runtime.mesh import Mesh, process_group
from galvatron.runtime.parameters import Parameters
from galvatron.runtime.stage import StateSpec


@dataclass(frozen=True)
class Entry:
    """One parameter or buffer as every rank knows it; `dtype` is that of its master where it has one.

    `layout` is printed, and equal where the slices are equal.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str
    requires_grad: bool
    layout: str


def _layout(spec: StateSpec) -> str:
    return ", ".join(f"{place} on {axis.size}@{axis.stride}" for axis, place in spec.sharded)


class Catalogue:
    """What all pipeline ranks hold: for each name its entry and the pipeline ranks that have it, in order.

    Building it is collective.

    Raises:
        PlanError: pipeline ranks that share a tensor lay it out differently or call it by different names.
    """

    def __init__(self, held: HeldState) -> None:
        self.held = held
        self.mesh: Mesh = held.mesh
        own = [
            Entry(name, s.shape, s.master or s.dtype, s.kind, held.get(name).requires_grad, _layout(s))
            for name, s in held.state_specs.items()
        ]
        lists: list[list[Entry]] = [own]
        if self.mesh.pipeline is not None:
            lists = comm.gather_objects(own, self.mesh.pipeline, phase="names of parameters")
        self.entries: dict[str, Entry] = {}
        self.holders: dict[str, tuple[int, ...]] = {}
        for index, entries in enumerate(lists):
            for entry in entries:
                if self.entries.setdefault(entry.name, entry) != entry:
                    raise PlanError(
                        f"{entry.name} lives on pipeline ranks {self.holders[entry.name][0]} and {index} in different "
                        f"layouts: "
                        f"{self.entries[entry.name].layout} and {entry.layout}"
                    )
                self.holders[entry.name] = (*self.holders.get(entry.name, ()), index)

    def shared_groups(self) -> dict[str, dist.ProcessGroup]:
        """For each parameter or buffer that this pipeline rank shares with others, the ranks with this rank's slice of
        it, in the order of `holders`. Collective.
        """
        groups: dict[tuple[int, ...], dist.ProcessGroup | None] = {}
        size = len(self.mesh.ranks)
        for holders in sorted({holders for holders in self.holders.values() if len(holders) > 1}):
            for place in range(size):
                group = process_group(holder * size + place for holder in holders)
                if place == self.mesh.index and self.mesh.pipeline_rank in holders:
                    groups[holders] = group
        return {name: group for name, holders in self.holders.items() if (group := groups.get(holders)) is not None}

    def gather(
        self, wanted: Iterable[str], local: Callable[[str], Tensor], *, rank0_only: bool
    ) -> Iterator[tuple[str, Tensor]]:
        """The whole tensors called `wanted`, on the CPU: on every rank, or on rank 0 with nothing on the others.

        Every rank goes through all of them: each is gathered when it is asked for, so that one at a time is whole.

        Args:
            local: this rank's slice of a tensor that its stages hold; all ranks of the pipeline rank call it.
        """
        for name in wanted:
            owner = self.holders[name][0]
            full = None
            if owner == self.mesh.pipeline_rank:
                full = self.held.state_specs[name].unshard(local(name).detach())
            full = self._send_along(self.entries[name], full, owner, rank0_only)
            if full is not None and (self.mesh.world.rank == 0 or not rank0_only):
                yield name, full.to("cpu", copy=True)

    def _send_along(self, entry: Entry, full: Tensor | None, owner: int, rank0_only: bool) -> Tensor | None:
        """Bring the tensor from the pipeline rank that has it to the ranks that want it."""
        mesh = self.mesh
        if mesh.pipeline is None or (rank0_only and (owner == 0 or mesh.index != 0)):
            return full
        if rank0_only and mesh.pipeline_rank not in (0, owner):
            return None
        value = (
            full.contiguous()
            if full is not None
            else torch.empty(entry.shape, dtype=entry.dtype, device=mesh.world.device)
        )
        if not rank0_only:
            comm.broadcast(value, mesh.pipeline, owner, phase="whole tensors").wait()
        elif mesh.pipeline_rank == owner:
            comm.send([value], mesh.pipeline, 0, phase="whole tensors").wait()
        else:
            comm.receive([value], mesh.pipeline, owner, phase="whole tensors").wait()
        return value


class ModelNames:
    """The model's names for the tensors of the catalogue.

    Attributes:
        aliases: every name of a tensor that some stage holds to the name that the stages use.
        persistent: the names of the model's `state_dict`.
        unused: tensors of the `state_dict` that the program never reads, whole, on the CPU.
    """

    def __init__(self, catalogue: Catalogue, model: ModelState | None) -> None:
        if model is None:
            self.aliases = {name: name for name in catalogue.entries}
            self.persistent = tuple(catalogue.entries)
            self.unused: dict[str, Tensor] = {}
            return
        held: dict[str, str] = {}
        for name in catalogue.entries:
            first = model.canonical.get(name)
            if first is None:
                raise PlanError(f"the model has no {name!r}; {did_you_mean(name, model.canonical)}")
            if first in held:
                raise PlanError(f"{name!r} and {held[first]!r} are one tensor of the model but two of the program")
            held[first] = name
        self.aliases = {name: held[first] for name, first in model.canonical.items() if first in held}
        self.persistent = model.persistent
        rest = [name for name in model.persistent if name not in self.aliases]
        firsts = {model.canonical[name] for name in rest}
        values = {name: value.to("cpu", model.type_of(name), copy=True) for name, value in model.read(firsts)}
        self.unused = {name: values[model.canonical[name]] for name in rest}


def check(catalogue: Catalogue, names: ModelNames, values: Any) -> None:
    """Whether a `state_dict` can be taken over; the same answer on every rank.

    Raises:
        PlanError: a name is missing or unknown, or a value is no tensor of the shape and kind of type that it is for.
    """
    if not isinstance(values, Mapping):
        raise PlanError(f"a state is a mapping from names to tensors, not {type(values).__name__}")
    known = set(names.persistent) | set(names.aliases)
    unknown = [name for name in values if name not in known]
    if unknown:
        raise PlanError(f"the model has no {unknown[0]!r}; {did_you_mean(str(unknown[0]), known)}")
    given = {names.aliases[name] for name in values if name in names.aliases}
    persistent = {names.aliases[name] for name in names.persistent if name in names.aliases}
    missing = sorted(persistent - given)
    if missing:
        near = f"; {did_you_mean(missing[0], values)}" if values else ": it is empty; full_state_dict gives a whole one"
        raise PlanError(f"the state has no {missing[0]!r} ({len(missing)} missing){near}")
    for name, value in values.items():
        if name in names.aliases:
            entry = catalogue.entries[names.aliases[name]]
            _check_value(name, value, entry.shape, entry.dtype)
        else:
            _check_value(name, value, tuple(names.unused[name].shape), names.unused[name].dtype)


def _check_value(name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor):
        raise PlanError(f"{name!r} is {type(value).__name__} in the state, not a tensor")
    if value.is_meta or value.layout is not torch.strided or value.is_nested:
        raise PlanError(f"{name!r} is a tensor without values, or not a dense one, in the state")
    if tuple(value.shape) != shape:
        raise PlanError(f"{name} has shape {tuple(value.shape)} in the state but {shape} in the model")
    if _kind(value.dtype) != _kind(dtype):
        raise PlanError(f"{name!r} has dtype {value.dtype} in the state but {dtype} in the model")


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "truth values"
    return "complex" if dtype.is_complex else "floating" if dtype.is_floating_point else "whole"


def load(held: HeldState, parameters: Parameters, names: ModelNames, values: Mapping[str, Tensor]) -> None:
    """Take this rank's slices out of a whole `state_dict` that was checked; a tied tensor may come under any of its
    names.
    """
    given = {names.aliases[name]: name for name in values if name in names.aliases}
    for name, spec in held.state_specs.items():
        if name in given:
            parameters.write(name, spec.shard(values[given[name]]))
    for name in names.unused:
        if name in values:
            names.unused[name] = values[name].detach().to("cpu", names.unused[name].dtype, copy=True)
