"""Folders of weights that come from strangers: what is whole is found, all else is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from galvatron import tensor_file
from galvatron.errors import GalvatronError
from galvatron.tensor_file import Entry
from galvatron.weights.folder import INDEX, tensors_in

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def write(path: Path, *names: str) -> None:
    tensors = [torch.arange(6.0).view(2, 3) for _ in names]
    tensor_file.write(path, tensor_file.header([Entry(name, (2, 3), torch.float32) for name in names]), tensors)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files with an index."""
    write(tmp_path / FIRST, "a", "b")
    write(tmp_path / SECOND, "c")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": FIRST, "b": FIRST, "c": SECOND}}))
    return tmp_path


def test_tensors_are_found_in_every_kind_of_folder(folder: Path) -> None:
    assert {name: file.path.name for name, file in tensors_in(folder).items()} == {"a": FIRST, "b": FIRST, "c": SECOND}
    assert set(tensors_in(folder / FIRST)) == {"a", "b"}
    (folder / INDEX).unlink()
    assert set(tensors_in(folder)) == {"a", "b", "c"}
    write(folder / "model.safetensors", "d")
    (found,) = tensors_in(folder).values()
    with found.reading("d") as value:
        assert torch.equal(value, torch.arange(6.0).view(2, 3))


def header(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """Changes what the header of the first file says."""

    def spoil(folder: Path) -> None:
        content = (folder / FIRST).read_bytes()
        length = int.from_bytes(content[:8], "little")
        said = json.loads(content[8 : 8 + length])
        change(said)
        text = json.dumps(said).encode()
        (folder / FIRST).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return spoil


def index(content: object) -> Callable[[Path], object]:
    return lambda folder: (folder / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: os.truncate(f / FIRST, (f / FIRST).stat().st_size - 8), "'b' is not where"),
    "longer": (lambda f: (f / FIRST).write_bytes((f / FIRST).read_bytes() + b"more"), "of which its header names 48"),
    "empty": (lambda f: (f / FIRST).write_bytes(b""), "its header is longer"),
    "header too long": (lambda f: (f / FIRST).write_bytes(b"\xff" * 8 + (f / FIRST).read_bytes()[8:]), "is longer"),
    "missing": (lambda f: (f / FIRST).unlink(), "there is no such file"),
    "a pickle": (lambda f: (f / FIRST).write_bytes(b"\x80\x02" + bytes(100)), "its header is longer"),
    "a directory": (lambda f: ((f / FIRST).unlink(), (f / FIRST).mkdir()), "there is no such file"),
    "overlapping": (header(lambda said: said["b"].update(data_offsets=[0, 24])), "'b' is not where"),
    "outside": (header(lambda said: said["b"].update(data_offsets=[24, 1000])), "'b' is not where"),
    "negative": (header(lambda said: said["b"].update(data_offsets=[-24, 0])), "does not say where 'b' is"),
    "huge": (header(lambda said: said["b"].update(shape=[2**62, 2**62])), "does not say where 'b' is"),
    "other type": (header(lambda said: said["b"].update(dtype="F4")), "element type 'F4'"),
    "no list": (header(lambda said: said.update(b=3)), "does not say where 'b' is"),
    "escapes": (index({"weight_map": {"a": "../" + FIRST}}), "is no name of"),
    "absolute": (index({"weight_map": {"a": "/etc/x.safetensors"}}), "is no name of"),
    "no map": (index({"weights": {}}), "has no weight_map"),
    "no JSON": (index("{"), "not valid JSON"),
    "other file": (index({"weight_map": {"c": FIRST}}), "it has no 'c'"),
    "another kind": (index({"weight_map": {"c": "pytorch_model.bin"}}), "is no name of"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_refused(damage: str, folder: Path) -> None:
    spoil, words = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(GalvatronError, match="nothing was loaded") as caught:
        tensors_in(folder)
    assert words in str(caught.value)


def test_folders_without_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(GalvatronError, match="there are no .safetensors files"):
        tensors_in(tmp_path)
    write(tmp_path / "x.safetensors", "a")
    write(tmp_path / "y.safetensors", "a")
    with pytest.raises(GalvatronError, match="both have 'a'"):
        tensors_in(tmp_path)
    for name in "xy":
        (tmp_path / f"{name}.safetensors.index.json").touch()
    with pytest.raises(GalvatronError, match="several files with indices"):
        tensors_in(tmp_path)
    with pytest.raises(GalvatronError, match="a folder of .safetensors files on this machine"):
        tensors_in(tmp_path / "nowhere")
    with pytest.raises(GalvatronError, match="there is no"):
        tensors_in(Path("no\0name"))


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    write(tmp_path / "adapter_model.safetensors", "a")
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(GalvatronError, match="an adapter and not a model: merge it"):
        tensors_in(tmp_path)
