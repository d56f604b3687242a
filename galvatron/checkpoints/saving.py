"""Writing a checkpoint: every rank its own parts, each part by one of the ranks that have it."""

from __future__ import annotations

import errno
import json
import logging
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron.checkpoints import folders, optimizer
from galvatron.checkpoints.index import Index, ParameterState
from galvatron.checkpoints.parts import Part, PartFile, check_type
from galvatron.errors import GalvatronError
from galvatron.ir.documents import read_json
from galvatron.ir.files import check_path
from galvatron.ir.json_values import finite, unsayable, with_words
from galvatron.runtime import comm, failure
from galvatron.runtime.beside import Beside
from galvatron.runtime.boxes import Box, Patch, patches_of, whole_box
from galvatron.runtime.joined import updated_by
from galvatron.units import format_bytes

_LOG = logging.getLogger("galvatron")


class Saver:
    """Writes the checkpoints of a program, one at a time. Every method is collective."""

    def __init__(self, world: rt.World, executor: rt.Executor) -> None:
        self._world, self._executor = world, executor
        self._under_way: Beside | None = None

    def save(
        self,
        directory: Path,
        *,
        step: int,
        keep: int | None,
        extra: Mapping[str, Any],
        loaders: Mapping[str, Any] | None = None,
        background: bool = False,
    ) -> Path:
        """Writes a checkpoint into a new folder, whose path is returned.

        Args:
            loaders: the places of data loaders, by name.
            background: return as soon as what is written is copied, and write it while training goes on; `finish` tells
                whether it was.

        Raises:
            GalvatronError: a rank cannot write its part, or has what a checkpoint cannot have; nothing is left of it
                then. Or the one before, in the background, could not be written.
        """
        self.finish()
        world, executor = self._world, self._executor
        with rt.together(world, "save"):
            own = _Own(executor)
        everything = gathered(world, own.described, "save")
        checkpoint = everything[0].proposed_name
        with rt.together(world, "save"):
            parts = own.parts(_shared_out([described.tensors for described in everything])[world.rank])
            if background:
                parts = [part.copied() for part in parts]
            elif world.device.type != "cpu":
                torch.accelerator.synchronize(world.device)  # another thread reads them
            content = PartFile(parts, checkpoint) if parts else None
        folder: Path | None = None
        with rt.together(world, "save"), _writing(directory):
            if world.rank == 0:
                folder = folders.begin(directory, step)
        file = f"rank_{world.rank:05d}.safetensors"
        told = gathered(world, (folder, file, content.size if content else 0), "save")
        path, sizes = told[0][0], {file: size for _, file, size in told if size}
        try:
            with rt.together(world, "save"):
                index = (
                    _text(_index(executor, everything, sizes, step, extra, loaders or {})) if world.rank == 0 else ""
                )
        except GalvatronError:
            if world.rank == 0:
                folders.discard(path)
            raise

        def write() -> None:
            with _logged(background), _writing(path / file):
                if content:
                    content.write(path / file)

        def finish() -> None:
            with _logged(background), _writing(path):
                folders.finish(path, index, sizes)
            _LOG.info("saved step %d in %s (%s)", step, folders.final(path), format_bytes(sum(sizes.values())))
            if keep is not None:
                folders.keep_last(directory, keep)

        self._under_way = Beside(world, "save", write, finish, lambda: folders.discard(path))
        if not background:
            self.finish()
        return folders.final(path)

    def finish(self) -> None:
        """Returns when no checkpoint is being written.

        Raises:
            GalvatronError: the last one could not be written; nothing is left of it.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.finish()


_Tensor = tuple[str, tuple[int, ...], tuple[Box, ...]]
"""The key of a tensor, its shape, and the boxes of it that a rank has."""


@dataclass(frozen=True)
class _Described:
    """What a rank could write, in words."""

    tensors: list[_Tensor]
    parameters: dict[str, ParameterState]
    proposed_name: str = field(default_factory=lambda: uuid.uuid4().hex)


class _Own:
    """What this rank has.

    Raises:
        GalvatronError: something of it is nothing that a checkpoint can have.
    """

    def __init__(self, executor: rt.Executor) -> None:
        self._held: dict[str, tuple[Tensor, Sequence[Patch]]] = {}
        tensors: list[_Tensor] = []
        parameters: dict[str, ParameterState] = {}
        for piece in executor.pieces():
            if piece.first:
                tensors += self._take(piece, {value_key(piece.name): piece.tensor}, {value_key(piece.name)})
        for piece, (state, kept) in _states(executor):
            parameters[piece.name] = state
            elements = {state_key(piece.name, key) for key in state.elements}
            tensors += self._take(piece, {state_key(piece.name, key): v for key, v in kept.items()}, elements)
        self.described = _Described(tensors, parameters)

    def _take(self, piece: rt.Piece, found: Mapping[str, Tensor], elements: Collection[str]) -> Iterator[_Tensor]:
        """What this rank has of tensors that belong to a piece; of `elements` it has what it has of that."""
        patches = patches_of(piece)
        for key, value in found.items():
            check_type(key, value.dtype)
            shape = piece.spec.shape if key in elements else tuple(value.shape)
            box = whole_box(shape)
            own = patches if key in elements else [Patch(box, 0, box, box)]
            self._held[key] = value.detach().reshape(-1), own
            yield key, shape, tuple(patch.box for patch in own)

    def parts(self, keys: Sequence[str]) -> list[Part]:
        """What is to be written of these tensors."""
        return [
            Part(key, patch.box, patch.of(flat))
            for key in keys
            for flat, patches in (self._held[key],)
            for patch in patches
            if patch.box.count
        ]


def _states(executor: rt.Executor) -> Iterator[tuple[rt.Piece, tuple[ParameterState, dict[str, Tensor]]]]:
    """What the optimizer has for the parameters that this rank writes."""
    if (own := executor.optimizer) is None:
        return
    updated, single = updated_by(own), optimizer.single_numbers(own)
    for piece in executor.trained_pieces():
        state = optimizer.state_of(own, updated, single, piece) if piece.first and piece.updated else None
        if state is not None:
            yield piece, state


def value_key(name: str) -> str:
    """The key of the value of a parameter or buffer."""
    return f"model/{name}"


def state_key(name: str, key: str) -> str:
    """The key of a tensor of the optimizer's state of a parameter."""
    return f"optimizer/{key}/{name}"


def _shared_out(held: Sequence[Sequence[_Tensor]]) -> list[list[str]]:
    """For each rank, the tensors of which it writes its part: of those that have the same part, the one that has least
    to write so far.
    """
    holders: dict[tuple[str, tuple[Box, ...]], list[int]] = defaultdict(list)
    for rank, tensors in enumerate(held):
        for key, _, boxes in tensors:
            if boxes:
                holders[key, boxes].append(rank)
    found: list[list[str]] = [[] for _ in held]
    load = [0] * len(held)
    for (key, boxes), ranks in sorted(holders.items(), key=lambda item: -sum(box.count for box in item[0][1])):
        rank = min(ranks, key=load.__getitem__)
        load[rank] += sum(box.count for box in boxes)
        found[rank].append(key)
    return found


def _index(
    executor: rt.Executor,
    everything: Sequence[_Described],
    files: dict[str, int],
    step: int,
    extra: Mapping[str, Any],
    loaders: Mapping[str, Any],
) -> Index:
    parameters: dict[str, ParameterState] = {}
    for described in everything:
        for name, state in described.parameters.items():
            known = parameters.setdefault(name, state)
            if len(state.keys) > len(known.keys):  # optimizers may keep nothing for a part without elements
                parameters[name] = state
    follow = {state_key(name, key) for name, state in parameters.items() for key in state.elements}
    shapes = {key: shape for described in everything for key, shape, _ in described.tensors if key not in follow}
    return Index(
        checkpoint=everything[0].proposed_name,
        step=step,
        files=files,
        shapes={key: shape for key, shape in shapes.items() if shape or key.startswith(value_key(""))},
        parameters=parameters,
        run=executor.state(),
        metrics=_metrics(executor),
        extra=with_words(extra),
        loaders=dict(loaders),
    )


def _text(index: Index) -> str:
    """
    Raises:
        GalvatronError: something of it cannot be said in JSON.
    """
    try:
        text = index.text()
        read_json(text, "the index")
    except (ValueError, TypeError, GalvatronError) as error:
        raise GalvatronError(
            f"what goes along with the tensors cannot be written as JSON that is read again: {error}; extra= and "
            "options of the optimizer are a few finite numbers, texts, lists and mappings"
        ) from error
    return text


def _metrics(executor: rt.Executor) -> dict[str, Any] | None:
    try:
        return finite(asdict(executor.metrics))
    except GalvatronError:  # there was no step yet
        return None


def gathered(world: rt.World, own: Any, what: str) -> list[Any]:
    """What all ranks have, in their order. Collective."""
    if world.size == 1:
        return [own]
    with failure.guarded(what):
        return comm.gather_objects(own, comm.all_ranks(), phase="checkpoint")


@contextmanager
def _logged(wanted: bool) -> Iterator[None]:
    """Around what nobody may be waiting for: an error is told at once as well."""
    try:
        yield
    except GalvatronError as error:
        if wanted:
            _LOG.warning("%s", error)
        raise


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "see that all ranks share this directory, and may write into it"
        if error.errno in _NO_ROOM:
            advice = "make room there, or save into another directory"
        if error.errno == errno.ENOENT:
            advice = "it has disappeared while it was written; see that nobody removes or unmounts it, and " + advice
        raise GalvatronError(
            f"{path} cannot be written: {error.strerror or error}; nothing is left of this checkpoint, and "
            f"earlier ones were not touched: {advice}"
        ) from error


def check_arguments(directory: Any, step: Any, keep: Any, extra: Any, background: Any) -> str:
    """`extra` as text, for ranks to compare.

    Raises:
        GalvatronError: an argument of `save` is wrong.
    """
    check_path(directory, "a checkpoint goes into a directory")
    if type(step) is not int or step < 0:
        raise GalvatronError(f"step must be a whole number, not {step!r}")
    if keep is not None and (type(keep) is not int or keep < 1):
        raise GalvatronError(f"keep must be a number of checkpoints, or None to keep all, not {keep!r}")
    if not isinstance(background, bool):
        raise GalvatronError(f"background must be True or False, not {background!r}")
    if not isinstance(extra, Mapping):
        raise GalvatronError(f"extra must be a mapping, not {type(extra).__name__}")
    if unsaid := unsayable(extra):
        place, value = unsaid
        raise GalvatronError(
            f"extra{place} is of type {type(value).__name__}, which a checkpoint cannot have: it has numbers, texts, "
            "lists, tuples and mappings (of a scheduler over a rate that is a tensor, make the rate a number)"
        )
    return json.dumps(with_words(extra), allow_nan=False)
