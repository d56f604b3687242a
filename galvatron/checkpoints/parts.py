"""One rank's file of a checkpoint: boxes of tensors.

An entry is called `KEY@2,0`: the box of the tensor KEY that begins at (2, 0).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from galvatron import tensor_file
from galvatron.errors import GalvatronError
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
    if not tensor_file.has_name(dtype):
        raise GalvatronError(f"{key} has element type {dtype}, which the files of a checkpoint cannot have")


def size_of(parts: Sequence[Part]) -> int:
    """The size in bytes of the file that `write_parts` writes."""
    return len(_header(parts)) + sum(entry.nbytes for entry in _entries(parts))


def write_parts(path: Path, parts: Sequence[Part]) -> None:
    """Writes a file and makes it last.

    Raises:
        OSError: it cannot be written, for want of room for example.
    """
    tensor_file.write(path, _header(parts), (part.view for part in parts))


def _header(parts: Sequence[Part]) -> bytes:
    return tensor_file.header(_entries(parts))


def _entries(parts: Sequence[Part]) -> list[Entry]:
    return [Entry(f"{part.key}@{','.join(map(str, part.box.at))}", part.box.sizes, part.view.dtype) for part in parts]


@dataclass(frozen=True)
class FoundPart:
    """A box of a tensor in a file; its elements are read where they are used."""

    key: str
    box: Box
    dtype: torch.dtype
    file: TensorFile
    name: str

    def read(self) -> Tensor:
        """All of it, on the CPU: pages of the file, read when something of them is."""
        return self.file.tensor(self.name)


def read_parts(path: Path, size: int) -> list[FoundPart]:
    """The parts in a file of `size` bytes, which may come from a stranger.

    Raises:
        GalvatronError: it is missing, has another size, or is no such file.
    """
    try:
        return list(_found(TensorFile(path, size)))
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
