"""Checkpoints that are damaged, foreign or lie: refused on every rank, by the name of the file, and nothing changes."""

from __future__ import annotations

import json
import os
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import galvatron
from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from tests.checkpoints.changed import say
from tests.checkpoints.test_saving import compiled, losses
from tests.ranks import run_ranks
from tests.test_together import WIDTH

pytestmark = pytest.mark.usefixtures("shared_captures")


def spoil(folder: Path, how: str) -> None:
    file, index = sorted(folder.glob("*.safetensors"))[-1], folder / "index.json"
    found = json.loads(index.read_text())
    data = file.read_bytes()
    if how == "short file":
        os.truncate(file, file.stat().st_size - 8)
    elif how == "empty file":
        os.truncate(file, 0)
    elif how == "no file":
        file.unlink()
    elif how == "a link to itself":
        file.unlink()
        file.symlink_to(file.name)
    elif how == "a pipe":
        index.unlink()
        os.mkfifo(index)
    elif how == "a folder":
        file.unlink()
        file.mkdir()
    elif how == "wrong header":
        file.write_bytes(data.replace(b"data_offsets", b"data_OFFSETS"))
    elif how == "another place":
        file.write_bytes(data.replace(b"@0", b"@1", 1))
    elif how == "no checksums":
        file.write_bytes(data.replace(b"checksums", b"chocksums"))
    elif how == "a bit of a tensor":
        file.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    elif how == "a file of another checkpoint":
        shutil.copy(folder.with_name("other") / file.name, file)
    elif how == "no index":
        index.unlink()
    elif how == "short index":
        index.write_text(index.read_text()[:-20])
    elif how == "empty index":
        os.truncate(index, 0)
    elif how == "a digit of the index":
        index.write_text(index.read_text().replace('"step":3', '"step":2'))
    elif how == "file elsewhere":
        say(index, files={"../" + file.name: file.stat().st_size})
    elif how == "part missing":
        say(index, files={file.name: file.stat().st_size})
    elif how == "version":
        say(index, version=2)
    elif how == "other name":
        index.write_text(index.read_text().replace("inner.weight", "outer.weight"))
        say(index)
    elif how == "no such kind":
        say(index, parameters=dict.fromkeys(found["parameters"], -1))
    elif how == "an option":
        say(index, kinds=[{**kind, "options": {**kind["options"], "betas": [0.9, "x"]}} for kind in found["kinds"]])
    elif how == "no count of steps":
        say(index, kinds=[{**kind, "tensors": []} for kind in found["kinds"]])
    elif how == "pickle":
        file.write_bytes(b"\x80\x04" + data[2:])
    elif how == "random numbers":
        say(index, run={**found["run"], "step": -1})


DAMAGE = {
    "short file": "it has",
    "empty file": "it has 0 bytes",
    "no file": "cannot be read",
    "a link to itself": "cannot be read",
    "a pipe": "there is no such file",
    "a folder": "cannot be read",
    "wrong header": "does not say where",
    "another place": "its header is not what was written",
    "no checksums": "it has no checksums",
    "a bit of a tensor": "are not what was written",
    "a file of another checkpoint": "it belongs to another checkpoint",
    "no index": "no complete checkpoint",
    "short index": "index.json is no whole file of a checkpoint",
    "empty index": "index.json is no whole file of a checkpoint",
    "a digit of the index": "it is not what was written",
    "file elsewhere": "is no file of a rank",
    "part missing": "elements from",
    "version": "it has version 2, but 3 is read here",
    "other name": "is of another model: this one has no 'outer.weight'",
    "no such kind": "it has no -1",
    "an option": "option betas of the optimizer is [0.9, 'x'] in the checkpoint",
    "no count of steps": "does not take the state of the checkpoint: KeyError: 'step'",
    "pickle": "is not valid JSON",
    "random numbers": "step of the state of a run",
}


def joined(named_parameters: Any) -> torch.optim.Optimizer:
    """Biases follow another rule."""
    named = list(named_parameters)
    biases = [parameter for name, parameter in named if name.endswith("bias")]
    others = [parameter for name, parameter in named if not name.endswith("bias")]
    return galvatron.JoinedOptimizer(torch.optim.AdamW(others, lr=0.01), torch.optim.SGD(biases, lr=0.1))


def refuses(world: rt.World, folder: str, cases: list[str]) -> list[str]:
    program = compiled()
    losses(program, 0)
    path = program.save(folder, step=3)
    other = program.save(folder, step=3)
    if world.rank == 0:
        other.rename(Path(folder).parent / "other")
    before = program.full_state_dict()
    told: list[str] = []
    for case in cases:
        copied = path.parent.parent / case
        if world.rank == 0:
            shutil.copytree(path, copied)
            spoil(copied, case)
        rt.agree(world, "copied")
        with pytest.raises(GalvatronError) as caught:
            program.load(copied)
        told.append(str(caught.value))
    others: list[tuple[dict[str, Any], str]] = [
        ({"width": 2 * WIDTH}, "has shape"),
        ({"optimizer": partial(torch.optim.SGD, lr=0.1)}, "state of AdamW, but the model was compiled with SGD"),
        ({"optimizer": joined}, "state of AdamW, but the model was compiled with SGD for 'inner.bias'"),
    ]
    for options, words in others:
        with pytest.raises(GalvatronError, match=words):
            compiled(**options).load(path)
    for name, value in program.full_state_dict().items():
        assert torch.equal(value, before[name])
    losses(program, 3)
    return told


def test_damaged_and_foreign_files_are_refused_and_change_nothing(tmp_path: Path) -> None:
    for told in run_ranks(refuses, 2, str(tmp_path / "saved"), list(DAMAGE)):
        for (case, words), message in zip(DAMAGE.items(), told, strict=True):
            assert words in message, f"{case}: {message}"


def test_any_bit_that_flips_is_found(tmp_path: Path) -> None:
    program = compiled("dp1")
    losses(program, 0, 1)
    path = program.save(tmp_path, step=1)
    wanted = program.full_state_dict()
    losses(program, 1, 1)
    choose = random.Random(0)
    before = program.full_state_dict()
    for _ in range(60):
        file = choose.choice(sorted(path.iterdir()))
        place = choose.randrange(min(file.stat().st_size, choose.choice([8, 10**4, 10**9])))
        data = bytearray(file.read_bytes())
        data[place] ^= 1 << choose.randrange(8)
        copied = tmp_path / "copied"
        shutil.copytree(path, copied)
        (copied / file.name).write_bytes(data)
        with pytest.raises(GalvatronError, match="is no whole file of a checkpoint"):
            program.load(copied)
        shutil.rmtree(copied)
    assert all(torch.equal(value, before[name]) for name, value in program.full_state_dict().items())
    program.load(path)
    assert all(torch.equal(value, wanted[name]) for name, value in program.full_state_dict().items())


def test_other_folders_beside_checkpoints_are_left_alone(tmp_path: Path) -> None:
    program = compiled("dp1")
    losses(program, 0, 1)
    for name in ("000001", "step-1", "0-step-1", "notes", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "loop").symlink_to("loop")
    path = program.save(tmp_path, step=1)
    assert program.load(tmp_path).path == path
    (tmp_path / "000009-step-9").mkdir()
    with pytest.raises(GalvatronError, match=r"000009-step-9/index.json is no whole file of a checkpoint"):
        program.load(tmp_path)
    assert program.save(tmp_path, step=2).name == "000010-step-2"
    assert {"000001", "step-1", "0-step-1", "notes", ".hidden", "loop"} < {path.name for path in tmp_path.iterdir()}
