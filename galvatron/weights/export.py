"""Writing a model as it would save itself, one tensor at a time: gathered from the ranks, written by rank 0."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron import tensor_file
from galvatron.errors import GalvatronError
from galvatron.ir.files import check_path, sync, write_text
from galvatron.tensor_file import Entry
from galvatron.units import parse_bytes
from galvatron.weights.folder import INDEX
from galvatron.weights.form import ModelForm, sharded


def export(world: rt.World, executor: rt.Executor, form: ModelForm, directory: Path, most_bytes: int) -> None:
    """Writes the files of a model into a new directory, which is there when all of them are complete. Collective.

    Raises:
        GalvatronError: a file cannot be written; nothing is left of it then.
    """
    with rt.together(world, "export"), _writing(directory):
        if world.rank == 0 and directory.exists() and any(directory.iterdir()):
            raise GalvatronError(f"{directory} has something in it: export into a new directory, or empty this one")
    folder = directory.with_name(f".{directory.name}.unfinished")
    files = sharded(form, most_bytes)
    try:
        with rt.together(world, "export"), _writing(directory):
            if world.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                form.describe(folder)
        for name, entries in files.items():
            _write(world, executor, form, folder / name, tensor_file.in_written_order(entries))
        with rt.together(world, "export"), _writing(directory):
            if world.rank == 0:
                _finish(form, files, folder, directory)
    except GalvatronError:
        if world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(world: rt.World, executor: rt.Executor, form: ModelForm, path: Path, entries: Sequence[Entry]) -> None:
    with rt.together(world, "export"):
        whole = executor.whole_tensors(form.sources.get(entry.name, entry.name) for entry in entries)
        try:
            if world.rank == 0:
                head = tensor_file.header(entries, {"format": "pt"})
                with _writing(path):
                    tensor_file.write(path, head, _in_types(whole, entries))
        finally:
            for _ in whole:  # the other ranks gather what this one can no longer write
                pass


def _in_types(whole: Iterator[Tensor], entries: Sequence[Entry]) -> Iterator[Tensor]:
    for entry in entries:  # not by `zip`, which would keep the last one while the next is gathered
        yield next(whole).to(entry.dtype)


def _finish(form: ModelForm, files: Mapping[str, Sequence[Entry]], folder: Path, directory: Path) -> None:
    if len(files) > 1:
        write_text(folder / INDEX, _index(form, files))
    for path in folder.iterdir():
        sync(path)
    sync(folder)
    if directory.exists():
        directory.rmdir()
    folder.rename(directory)
    sync(directory.parent)


def _index(form: ModelForm, files: Mapping[str, Sequence[Entry]]) -> str:
    total = sum(entry.nbytes for entry in form.entries)
    index = {
        "metadata": {"total_parameters": form.parameter_count, "total_size": total},
        "weight_map": {entry.name: name for name, entries in files.items() for entry in entries},
    }
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GalvatronError(
            f"{path} cannot be written: {error.strerror or error}; nothing is left of this export: make room there, or "
            "export into another directory"
        ) from error


def check_export(directory: Any, max_shard_size: Any, dtype: Any) -> int:
    """The most bytes of a file.

    Raises:
        GalvatronError: an argument of `export` is wrong.
    """
    check_path(directory, "a model goes into a directory")
    if Path(os.path.realpath(directory)) == Path.cwd():
        raise GalvatronError("a model goes into a new directory, not into the one that the job runs in")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise GalvatronError(
            f"dtype must be a torch.dtype of floating numbers, or None for the model's own, not {dtype!r}"
        )
    most = parse_bytes(max_shard_size)
    if not most:
        raise GalvatronError("max_shard_size cannot be 0")
    return most
