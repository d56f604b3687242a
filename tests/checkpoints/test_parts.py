"""Files of tensors: every element type comes back, and other tools read them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from galvatron.checkpoints.parts import Part, PartFile, check_type, read_parts
from galvatron.errors import GalvatronError
from galvatron.runtime.boxes import Box
from galvatron.tensor_file import CHUNK

TYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn),
    *(torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint64),
    *(torch.uint32, torch.uint16, torch.complex128),
]


def parts() -> list[Part]:
    """Of odd sizes, so that few of them are aligned; one is no stretch of its memory, one has no dimensions."""
    numbers = torch.arange(-3, 12).view(3, 5)
    found = [Part(f"x/{dtype}", Box((7, 0), (5, 3)), numbers.to(dtype).t()) for dtype in TYPES]
    return [*found, Part("one@number", Box((), ()), torch.tensor(2.5))]


def test_every_element_type_comes_back(tmp_path: Path) -> None:
    file = PartFile(parts(), "saved")
    file.write(tmp_path / "x")
    for found, written in zip(read_parts(tmp_path / "x", file.size, "saved"), parts(), strict=True):
        assert (found.key, found.box, found.dtype) == (written.key, written.box, written.view.dtype)
        found.verify(found.box)
        with found.reading() as values:
            assert torch.equal(values.to(torch.complex128), written.view.to(torch.complex128))


def test_the_files_are_safetensors(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    PartFile([part for part in parts() if part.view.dtype != torch.complex128], "saved").write(tmp_path / "x")
    found = library.load_file(tmp_path / "x")
    assert torch.equal(found["x/torch.bfloat16@7,0"], parts()[3].view)
    assert found["one@number@"] == 2.5


def test_other_element_types_are_refused() -> None:
    with pytest.raises(GalvatronError, match="x has element type torch.qint8"):
        check_type("x", torch.qint8)


def test_an_element_on_a_border_of_chunks_is_verified_whole(tmp_path: Path) -> None:
    """Behind a tensor of an odd number of bytes, the last element of a chunk ends in the next one."""
    numbers = torch.arange(CHUNK // 2, dtype=torch.float32)
    odd = Part("a", Box((0,), (1,)), torch.zeros(1, dtype=torch.uint8))
    file = PartFile([odd, Part("b", Box((0,), (len(numbers),)), numbers)], "saved")
    file.write(tmp_path / "x")
    data = bytearray((tmp_path / "x").read_bytes())
    last = CHUNK // 4 - 1
    data[data.index(numbers.numpy().tobytes()) + 4 * last + 3] ^= 1
    (tmp_path / "x").write_bytes(data)
    found = next(part for part in read_parts(tmp_path / "x", file.size, "saved") if part.key == "b")
    with pytest.raises(GalvatronError, match="checksum"):
        found.verify(Box((0,), (last + 1,)))
