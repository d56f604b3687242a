"""One rank's file of a checkpoint: boxes of tensors.

An entry is called `KEY@2,0`: the box of the tensor KEY that begins at (2, 0).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from galvatron import tensor_file
from galvatron.errors import GalvatronError
from galvatron.ir import limits
from galvatron.runtime.boxes import Box
from galvatron.tensor_file import Entry, TensorFile


@dataclass(frozen=True)
class Part:
    """A box of a tensor, to be written: `view` has its elements."""

    key: str
    box: Box
    view: Tensor

    def copied(self) -> Part:
        """The same elements, in memory of its own on the host."""
        return replace(self, view=self.view.detach().to("cpu", copy=True))


def check_type(key: str, dtype: torch.dtype) -> None:
    """
    Raises:
        GalvatronError: files have no such element type.
    """
    if not tensor_file.has_name(dtype, own=True):
        raise GalvatronError(f"{key} has element type {dtype}, which the files of a checkpoint cannot have")


_CHECKPOINT = "checkpoint"
"""Under which a file has the name of the checkpoint that it belongs to."""


class PartFile:
    """A file of parts, to be written.

    Args:
        checkpoint: a name that no other one has.

    Attributes:
        size: in bytes.

    Raises:
        GalvatronError: there are too many parts for one file.
    """

    def __init__(self, parts: Sequence[Part], checkpoint: str) -> None:
        self._parts = parts
        entries = [Entry(f"{p.key}@{','.join(map(str, p.box.at))}", p.box.sizes, p.view.dtype) for p in parts]
        self._head = tensor_file.header(entries, {_CHECKPOINT: checkpoint}, has_checksums=True)
        if len(self._head) > limits.HEADER_BYTES:
            raise GalvatronError(
                f"the file of a rank would have {len(parts)} parts of tensors, too many to be read back: use more ranks"
            )
        self.size = len(self._head) + tensor_file.room_of(entries, has_checksums=True)

    def write(self, path: Path) -> None:
        """Writes it and makes it last.

        Raises:
            OSError: it cannot be written, for want of room for example.
        """
        tensor_file.write(path, self._head, (part.view for part in self._parts), has_checksums=True)


@dataclass(frozen=True)
class FoundPart:
    """A box of a tensor in a file; its elements are read where they are used."""

    key: str
    box: Box
    dtype: torch.dtype
    file: TensorFile
    name: str

    def reading(self) -> AbstractContextManager[Tensor]:
        """All of it, on the CPU: pages of the file, read when something of them is."""
        return self.file.reading(self.name)

    def verify(self, box: Box) -> None:
        """
        Raises:
            GalvatronError: a box inside this one is not what was written.
        """
        ends = [at + size - 1 for at, size in zip(box.at, box.sizes, strict=True)]
        try:
            self.file.verify(self.name, self.box.place_of(box.at), self.box.place_of(ends))
        except ValueError as error:
            raise damaged(self.file.path, str(error)) from error


def read_parts(path: Path, size: int, checkpoint: str) -> list[FoundPart]:
    """The parts in a file of `size` bytes of a checkpoint, which may come from a stranger.

    Raises:
        GalvatronError: it is missing, has another size, is no such file, or one of another checkpoint.
    """
    try:
        file = TensorFile(path, size, has_checksums=True)
        if file.metadata != {_CHECKPOINT: checkpoint}:
            raise ValueError("it belongs to another checkpoint than the index beside it")
        return list(_found(file))
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise damaged(path, str(error)) from error


def _found(file: TensorFile) -> Iterator[FoundPart]:
    for name, entry in file.entries.items():
        key, _, at = name.rpartition("@")
        try:
            box = Box(tuple(int(n) for n in at.split(",")) if at else (), entry.shape)
        except ValueError:
            raise ValueError(f"its header does not say where {name!r} is") from None
        if len(box.at) != len(box.sizes) or min((*box.at, 0)) < 0 or not box.count:
            raise ValueError(f"{name!r} is no box of a tensor")
        yield FoundPart(key, box, entry.dtype, file, name)


def damaged(path: Path, why: str) -> GalvatronError:
    """What is raised for a file of a checkpoint."""
    return GalvatronError(
        f"{path} is no whole file of a checkpoint: {why}; nothing was loaded. Load another one by its own folder, such "
        "as those beside this one"
    )
