"""Reading a checkpoint: every rank what it needs, once all of them have found that they can."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron.checkpoints import folders, optimizer
from galvatron.checkpoints.index import Index
from galvatron.checkpoints.parts import FoundPart, damaged, read_parts
from galvatron.checkpoints.saving import gathered, state_key, value_key
from galvatron.errors import GalvatronError, did_you_mean
from galvatron.runtime import failure
from galvatron.runtime.averaging import KEY as AVERAGE
from galvatron.runtime.averaging import type_of_average
from galvatron.runtime.boxes import Box, Patch, patches_of, whole_box
from galvatron.runtime.joined import updated_by


@dataclass(frozen=True)
class Checkpoint:
    """What was loaded.

    Attributes:
        path: its folder.
        step, extra, loaders: as `save` was given them.
        metrics: figures of the last step before it was saved, as in `compiled.metrics`; None if there was none.
    """

    path: Path
    step: int
    extra: dict[str, Any]
    metrics: dict[str, Any] | None
    loaders: dict[str, Any]


_LOG = logging.getLogger("galvatron")


class Reader:
    """A checkpoint in a folder, and what this rank needs of it.

    Nothing is changed before `load` is called, and that fails only where the disk does.

    Raises:
        GalvatronError: files are missing or damaged, or it is the checkpoint of another model or optimizer.
    """

    def __init__(self, folder: Path, executor: rt.Executor) -> None:
        self._folder, self._executor = folder, executor
        self._index = Index.read(folder)
        self._parts: dict[str, list[FoundPart]] = defaultdict(list)
        for name, size in self._index.files.items():
            for part in read_parts(folder / name, size, self._index.checkpoint):
                self._parts[part.key].append(part)
        self._pieces = executor.pieces()
        self._trained = executor.trained_pieces() if executor.optimizer else []
        self._patches = {piece.name: patches_of(piece) for piece in self._pieces}
        self._patches_of_state = {piece.name: patches_of(piece) for piece in self._trained}
        self._needed: list[tuple[FoundPart, Box]] = []
        self._check()
        self._run = self._run_state()
        for part, box in self._needed:
            part.verify(box)

    @property
    def checkpoint(self) -> Checkpoint:
        """What it is."""
        return Checkpoint(self._folder, self._index.step, self._index.extra, self._index.metrics, self._index.loaders)

    def load_optimizer(self) -> None:
        """Let the optimizer take its state over.

        Raises:
            GalvatronError: it does not; it has the state that it had.
        """
        if self._executor.optimizer is not None:
            optimizer.load(self._executor.optimizer, self._trained, self._index.parameters, self._state)

    def load(self) -> None:
        """Take over what else there is. Collective."""
        for piece in self._pieces:
            own = piece.tensor.detach()
            flat = own.view(-1) if own.is_contiguous() else own.new_zeros(own.numel())
            self._fill(value_key(piece.name), self._patches[piece.name], flat)
            if not own.is_contiguous():
                own.copy_(flat.view(own.shape))
        self._executor.publish()
        self._executor.load_state(self._run)

    def _check(self) -> None:
        known = self._executor.model_names
        for name in (key.removeprefix("model/") for key in self._index.shapes if key.startswith("model/")):
            if name not in known:
                raise GalvatronError(
                    f"{self._folder} is of another model: this one has no {name!r}; {did_you_mean(name, known)}; "
                    "nothing was loaded"
                )
        for piece in self._pieces:
            self._check_tensor(value_key(piece.name), piece)
            self._check_type(piece)
        if self._executor.optimizer is None:
            return
        optimizer.check(self._executor.optimizer, self._trained, self._index.parameters)
        used = updated_by(self._executor.optimizer)
        for piece in self._trained:
            if id(piece.tensor) not in used or not piece.updated:
                continue
            state = self._index.parameters[piece.name]
            for key in state.elements:
                self._check_cover(state_key(piece.name, key), self._patches_of_state[piece.name])
            for key in state.tensors:
                self._check_whole(state_key(piece.name, key), piece)

    def _check_tensor(self, key: str, piece: rt.Piece) -> None:
        shape = self._index.shapes.get(key)
        if shape is None:
            raise GalvatronError(f"{self._folder} has no {key!r}, which this model needs; nothing was loaded")
        if shape != piece.spec.shape:
            raise GalvatronError(
                f"{piece.name} has shape {shape} in {self._folder} but {piece.spec.shape} in the model; nothing was "
                "loaded"
            )
        self._check_cover(key, self._patches[piece.name])

    def _check_type(self, piece: rt.Piece) -> None:
        own = piece.tensor.dtype
        for part in self._parts.get(value_key(piece.name), ()):
            if part.dtype.is_floating_point != own.is_floating_point or part.dtype.is_complex != own.is_complex:
                raise GalvatronError(
                    f"{piece.name} has element type {part.dtype} in {self._folder} but {own} in the model; nothing was "
                    "loaded"
                )

    def _check_whole(self, key: str, piece: rt.Piece) -> None:
        shape = self._index.shapes.get(key, ())
        if shape and not piece.is_whole:
            raise GalvatronError(
                f"the optimizer's {key!r} in {self._folder} is not one number per element of {piece.name!r}, of which "
                "this plan gives the rank a slice: use a plan that leaves parameters whole; nothing was loaded"
            )
        box = whole_box(shape)
        self._check_cover(key, [Patch(box, 0, box, box)])

    def _check_cover(self, key: str, patches: Sequence[Patch]) -> None:
        for patch in patches:
            shared = [(p, common) for p in self._parts.get(key, ()) if (common := self._common(p, patch)) is not None]
            self._needed += shared
            if any(one.meet(other) for (_, one), (_, other) in combinations(shared, 2)):
                raise damaged(self._folder, f"of {key!r} it has elements twice")
            if (found := sum(common.count for _, common in shared)) != patch.box.count:
                raise damaged(
                    self._folder,
                    f"of {key!r} it has {found} of the {patch.box.count} elements from {patch.box.at} on",
                )

    def _common(self, part: FoundPart, patch: Patch) -> Box | None:
        if len(part.box.at) != len(patch.box.at):
            raise damaged(part.file.path, f"{part.key!r} has {len(part.box.at)} dimensions, not {len(patch.box.at)}")
        return part.box.meet(patch.box)

    def _fill(self, key: str, patches: Sequence[Patch], flat: Tensor) -> None:
        """Read the elements of a part."""
        for patch in patches:
            target = patch.of(flat)
            for part in self._parts.get(key, ()):
                if (common := self._common(part, patch)) is not None:
                    with part.reading() as found:
                        patch.box.cut(target, common).copy_(part.box.cut(found, common))

    def _state(self, piece: rt.Piece, key: str) -> Tensor:
        """A tensor of the optimizer's state."""
        full = state_key(piece.name, key)
        dtype = self._type(full)
        if key in self._index.parameters[piece.name].tensors:
            box = whole_box(self._index.shapes.get(full, ()))
            patches = [Patch(box, 0, box, box)]
            value = torch.zeros(box.sizes, dtype=dtype)
        else:
            # State in the type of its parameter there has the parameter's type here as well.
            own = piece.tensor
            patches = self._patches_of_state[piece.name]
            if dtype == self._type(value_key(piece.name)):
                dtype = type_of_average(own) if key == AVERAGE else own.dtype
            value = torch.zeros(own.shape, dtype=dtype, device=own.device)
        self._fill(full, patches, value.view(-1))
        return value

    def _type(self, key: str) -> torch.dtype | None:
        return next((part.dtype for part in self._parts.get(key, ())), None)

    def _run_state(self) -> rt.RunState:
        """Where the run was. The loss scale belongs to the precision: where that has changed, it is the one here."""
        own = self._executor.state()
        saved = self._index.run
        if (own["loss_scale"] is None) != (saved.get("loss_scale") is None):
            saved = {**saved, "loss_scale": own["loss_scale"], "good_steps": own["good_steps"]}
        try:
            return rt.RunState.read(saved, scaled=own["loss_scale"] is not None)
        except GalvatronError as error:
            raise damaged(self._folder / folders.INDEX, str(error)) from error


def load(
    world: rt.World,
    executor: rt.Executor,
    directory: Path,
    check: Callable[[Mapping[str, Any]], None] = lambda loaders: None,
    missing_ok: bool = False,
) -> Checkpoint | None:
    """Goes on from a checkpoint: the one in this folder, or the last complete one in this directory. Collective.

    Args:
        check: refuses places of data loaders that do not fit.
        missing_ok: whether there may be none; then nothing is done.

    Raises:
        GalvatronError: see `Reader`, or `check`; nothing was changed then.
    """
    with rt.together(world, "load"):
        chosen = folders.chosen(directory, missing_ok=missing_ok) if world.rank == 0 else None
    folder = gathered(world, chosen, "load")[0]
    if folder is None:
        return None
    with rt.together(world, "load"):
        reader = Reader(folder, executor)
        check(reader.checkpoint.loaders)
        reader.load_optimizer()
    with failure.guarded("load"):
        reader.load()
    if world.rank == 0:
        _LOG.info("loaded step %d from %s", reader.checkpoint.step, folder)
    return reader.checkpoint
