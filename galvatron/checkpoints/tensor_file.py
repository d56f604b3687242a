"""One rank's file of a checkpoint: boxes of tensors in the `safetensors` format, written and read in place.

The format is eight bytes of length, that many of JSON with the type, shape and place of each tensor, then their bytes
(https://huggingface.co/docs/safetensors). An entry is called `KEY@2,0`: the box of the tensor KEY that
begins at (2, 0).
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from galvatron.checkpoints.boxes import Box
from galvatron.errors import GalvatronError
from galvatron.ir import limits
from galvatron.ir.documents import read_json

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_NAMED = {name: dtype for dtype, name in _TYPES.items()}


@dataclass(frozen=True)
class Part:
    """A box of a tensor, to be written: `view` has its elements."""

    key: str
    box: Box
    view: Tensor

    @property
    def nbytes(self) -> int:
        return self.view.numel() * self.view.dtype.itemsize

    def copied(self) -> Part:
        """The same elements, in memory of its own on the host."""
        return replace(self, view=self.view.detach().to("cpu", copy=True))


def check_type(key: str, dtype: torch.dtype) -> None:
    """
    Raises:
        GalvatronError: files have no such element type.
    """
    if dtype not in _TYPES:
        raise GalvatronError(f"{key} has element type {dtype}, which the files of a checkpoint cannot have")


def size_of(parts: Sequence[Part]) -> int:
    """The size in bytes of the file that `write_parts` writes."""
    return len(_header(parts)) + sum(part.nbytes for part in parts)


def write_parts(path: Path, parts: Sequence[Part]) -> None:
    """Writes a file and makes it last; one tensor at a time is copied.

    Raises:
        OSError: it cannot be written, for want of room for example.
    """
    with open(path, "wb") as file:
        file.write(_header(parts))
        for part in parts:
            flat = part.view.detach().cpu().contiguous().view(-1)
            file.write(flat.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _header(parts: Sequence[Part]) -> bytes:
    entries: dict[str, Any] = {}
    place = 0
    for part in parts:
        end = place + part.nbytes
        entry = {"dtype": _TYPES[part.view.dtype], "shape": list(part.box.sizes), "data_offsets": [place, end]}
        entries[f"{part.key}@{','.join(map(str, part.box.at))}"] = entry
        place = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class FoundPart:
    """A box of a tensor in a file; its elements are read where they are used."""

    key: str
    box: Box
    dtype: torch.dtype
    file: TensorFile
    begin: int

    def read(self) -> Tensor:
        """All of it, on the CPU: pages of the file, read when something of them is."""
        return self.file.tensor(self.begin, self.box, self.dtype)


class TensorFile:
    """A file that may come from a stranger.

    Args:
        size: how many bytes it must have.

    Raises:
        GalvatronError: it is missing, has another size, or is no such file.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != size:
                    raise damaged(path, f"it has {found} bytes, not {size}")
                length = int.from_bytes(file.read(8), "little")
                if length > min(size - 8, limits.FILE_CHARACTERS):
                    raise damaged(path, "its header is longer than the file, or than a header may be")
                header = file.read(length)
                self._start = 8 + length
                # A private copy, so that torch may have it; nothing is copied unless it is written.
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise damaged(path, f"it cannot be read: {error}") from error
        try:
            entries = read_json(header.decode(), "the header")
        except (GalvatronError, ValueError) as error:
            raise damaged(path, str(error)) from error
        if not isinstance(entries, dict):
            raise damaged(path, "its header is no JSON object")
        self.parts = list(self._read_parts(entries, size - self._start))

    def tensor(self, begin: int, box: Box, dtype: torch.dtype) -> Tensor:
        """The elements that lie from byte `begin` of the data on."""
        flat = torch.frombuffer(self._bytes, dtype=dtype, count=box.count, offset=self._start + begin)
        return flat.view(box.sizes)

    def _read_parts(self, entries: Mapping[str, Any], room: int) -> Iterator[FoundPart]:
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            key, _, at = name.rpartition("@")
            try:
                dtype = _NAMED[entry["dtype"]]
                box = Box(tuple(int(n) for n in at.split(",")) if at else (), numbers(entry["shape"]))
                begin, end = numbers(entry["data_offsets"])
            except (KeyError, TypeError, ValueError):
                raise damaged(self.path, f"its header does not say where {name!r} is") from None
            fits = len(box.at) == len(box.sizes) and min((*box.at, 0)) >= 0 and box.count > 0
            if not fits or end > room or end - begin != box.count * dtype.itemsize:
                raise damaged(self.path, f"{name!r} is not where its header says")
            yield FoundPart(key, box, dtype, self, begin)


def numbers(value: Any) -> tuple[int, ...]:
    """A list of whole numbers that are not negative.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError("not a list of whole numbers")
    if math.prod(value) > limits.SIZE:
        raise ValueError("too large")
    return tuple(value)


def damaged(path: Path, why: str) -> GalvatronError:
    """What is raised for a file of a checkpoint."""
    return GalvatronError(
        f"{path} is no whole file of a checkpoint: {why}; nothing was loaded. Load another one by its own folder, such "
        "as those beside this one"
    )
