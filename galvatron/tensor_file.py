"""Files of tensors in the `safetensors` format, written and read in place.

The format is eight bytes of length, that many of JSON with the type, shape and place of each tensor, then their bytes
(https://huggingface.co/docs/safetensors). A file that is read may come from a stranger.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from galvatron.errors import ParseError
from galvatron.ir import limits
from galvatron.ir.documents import read_json, shown

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_OWN_TYPES = {torch.complex128: "C128"}
"""Of files that only we read."""

_NAMES = _TYPES | _OWN_TYPES
_NAMED = {name: dtype for dtype, name in _NAMES.items()}

_METADATA = "__metadata__"

_SUMS = "checksums"
"""The last tensor of a file that has checksums: the CRC-32 of the header, then that of each `CHUNK` of the bytes of the
tensors before this one."""

CHUNK = 2**20
"""Bytes: what is read to verify one element."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: what its header says of it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def has_name(dtype: torch.dtype, *, own: bool = False) -> bool:
    """Whether files can have this element type: those that any tool reads, or our `own`."""
    return dtype in (_NAMES if own else _TYPES)


def header(
    entries: Iterable[Entry], metadata: Mapping[str, str] | None = None, *, has_checksums: bool = False
) -> bytes:
    """What a file begins with whose tensors follow one another in this order."""
    entries = list(entries)
    if has_checksums:
        entries.append(_sums_of(sum(entry.nbytes for entry in entries)))
    found: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    place = 0
    for entry in entries:
        end = place + entry.nbytes
        found[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _sums_of(room: int) -> Entry:
    """The checksums of a file with so many bytes of tensors."""
    return Entry(_SUMS, (1 + -(-room // CHUNK),), torch.int64)


def room_of(entries: Iterable[Entry], *, has_checksums: bool = False) -> int:
    """The bytes behind the header of a file of these tensors."""
    room = sum(entry.nbytes for entry in entries)
    return room + _sums_of(room).nbytes if has_checksums else room


def write(path: Path, head: bytes, tensors: Iterable[Tensor], *, has_checksums: bool = False) -> None:
    """Writes a file and makes it last; one tensor at a time is copied.

    Args:
        head: the `header` of these tensors.

    Raises:
        OSError: it cannot be written, for want of room for example.
    """
    sums = [zlib.crc32(head)]
    place = 0
    with open(path, "wb") as file:
        file.write(head)
        for tensor in tensors:
            flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
            if not has_checksums:
                file.write(flat)
                continue
            for begin, end in _chunks(place, len(flat)):
                if (place + begin) % CHUNK == 0:
                    sums.append(0)
                sums[-1] = zlib.crc32(flat[begin:end], sums[-1])
                file.write(flat[begin:end])
            place += len(flat)
        if has_checksums:
            file.write(struct.pack(f"<{len(sums)}q", *sums))
        file.flush()
        os.fsync(file.fileno())


def _chunks(place: int, count: int) -> Iterator[tuple[int, int]]:
    """So many bytes that begin at a place of a file, cut where its chunks end: where they begin and end among these."""
    begin = 0
    while begin < count:
        end = min(count, begin + CHUNK - (place + begin) % CHUNK)
        yield begin, end
        begin = end


class TensorFile:
    """A file that was opened, with what its header says found to be true of it.

    Args:
        size: how many bytes it must have.
        has_checksums: it must have checksums. That of its header is compared at once, and those of tensors by `verify`.

    Attributes:
        entries: its tensors by name, in the order of the header.
        metadata: texts that its header has besides.

    Raises:
        OSError: it cannot be read.
        ValueError: it has another size, or is no such file.
    """

    def __init__(self, path: Path, size: int | None = None, *, has_checksums: bool = False) -> None:
        self.path = path
        if not path.is_file():
            raise OSError("there is no such file")
        with open(path, "rb") as file:
            found = os.fstat(file.fileno()).st_size
            if size is not None and found != size:
                raise ValueError(f"it has {found} bytes, not {size}")
            length = int.from_bytes(file.read(8), "little")
            if length > min(found - 8, limits.HEADER_BYTES):
                raise ValueError("its header is longer than the file, or than a header may be")
            text = file.read(length)
            self._start = 8 + length
            # A private copy, so that torch may have it; nothing is copied, nor set aside, unless it is written.
            flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
            self._bytes = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        try:
            said = read_json(text.decode(), "the header", limits.HEADER_BYTES)
        except ParseError as error:
            raise ValueError(str(error)) from error
        if not isinstance(said, dict):
            raise ValueError("its header is no JSON object")
        places = dict(_read_entries(said))
        _check_places(places, found - self._start)
        self.entries = {entry.name: entry for entry in places}
        self.metadata = said.get(_METADATA, {})
        self._begins = {entry.name: begin for entry, (begin, _) in places.items()}
        self._sums: dict[int, int] = {}
        if has_checksums:
            self._take_sums()
            if zlib.crc32(memoryview(self._bytes)[: self._start]) != self._head_sum:
                raise ValueError("its header is not what was written (its checksum is another one)")

    def _take_sums(self) -> None:
        """The checksums of chunks that were not verified yet, by the chunk."""
        own = self.entries.pop(_SUMS, None)
        if own is None or own != _sums_of(self._begins[_SUMS]):
            raise ValueError("it has no checksums of all its tensors")
        at = self._start + self._begins[_SUMS]
        self._room = self._begins[_SUMS]
        self._head_sum, *sums = struct.unpack_from(f"<{own.shape[0]}q", self._bytes, at)
        self._sums = dict(enumerate(sums))

    def verify(self, name: str, first: int, last: int) -> None:
        """Reads elements of a tensor, from one to another and what lies in the same chunks, unless it has before.

        Raises:
            ValueError: they are not what was written.
        """
        begin, width = self._begins[name], self.entries[name].dtype.itemsize
        for chunk in range((begin + first * width) // CHUNK, (begin + (last + 1) * width - 1) // CHUNK + 1):
            sum_written = self._sums.pop(chunk, None)
            start, end = self._start + chunk * CHUNK, self._start + min(self._room, (chunk + 1) * CHUNK)
            if sum_written is not None and zlib.crc32(memoryview(self._bytes)[start:end]) != sum_written:
                raise ValueError(f"bytes {start} to {end - 1} are not what was written (their checksum is another one)")

    def tensor(self, name: str) -> Tensor:
        """A tensor on the CPU: pages of the file, read when something of them is."""
        entry = self.entries[name]
        if not entry.nbytes:
            return torch.empty(entry.shape, dtype=entry.dtype)
        count, offset = math.prod(entry.shape), self._start + self._begins[name]
        return torch.frombuffer(self._bytes, dtype=entry.dtype, count=count, offset=offset).view(entry.shape)

    @contextmanager
    def reading(self, name: str) -> Iterator[Tensor]:
        """A `tensor` whose pages the process has no longer afterwards."""
        yield self.tensor(name)
        begin = self._start + self._begins[name]
        first = begin - begin % mmap.PAGESIZE
        if size := self.entries[name].nbytes:
            self._bytes.madvise(mmap.MADV_DONTNEED, first, begin + size - first)


_Place = tuple[int, int]
"""Of the data, the first byte of a tensor and the one after its last."""


def _read_entries(said: Mapping[str, Any]) -> Iterator[tuple[Entry, _Place]]:
    for name, entry in said.items():
        if name == _METADATA:
            continue
        try:
            dtype, shape = entry["dtype"], numbers(entry["shape"])
            begin, end = numbers(entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"its header does not say where {shown(name)} is") from None
        if not isinstance(dtype, str) or dtype not in _NAMED:
            raise ValueError(f"{shown(name)} has element type {shown(dtype)}, which is not read here")
        if len(shape) > limits.RANK:
            raise ValueError(f"{shown(name)} has {len(shape)} dimensions")
        yield Entry(name, shape, _NAMED[dtype]), (begin, end)


def _check_places(places: Mapping[Entry, _Place], room: int) -> None:
    """
    Raises:
        ValueError: tensors overlap, leave bytes between them, or are not as long as their types say.
    """
    place = 0
    for entry, (begin, end) in sorted(places.items(), key=lambda item: item[1]):
        if begin != place or end - begin != entry.nbytes or end > room:
            raise ValueError(f"{shown(entry.name)} is not where its header says")
        place = end
    if place != room:
        raise ValueError(f"it has {room} bytes of tensors, of which its header names {place}")


def numbers(value: Any) -> tuple[int, ...]:
    """A list of whole numbers that are not negative.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, list) or not all(type(n) is int and n >= 0 for n in value[: limits.RANK]):
        raise ValueError("not a list of whole numbers")
    if len(value) > limits.RANK or any(n > limits.SIZE for n in value) or math.prod(value) > limits.SIZE:
        raise ValueError("too large")
    return tuple(value)


def in_written_order(entries: Sequence[Entry]) -> list[Entry]:
    """The order in which the `safetensors` library writes tensors: the widest first, then by name."""
    return sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
