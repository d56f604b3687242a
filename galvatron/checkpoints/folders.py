"""The folders of checkpoints: `DIRECTORY/000007-step-1000`, numbered as they were saved.

One that is being written has a name that begins with a dot, and gets its own when all of it is on the disk; one that is
removed gets such a name first. So what has a name of this form is complete, at any moment.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from galvatron.errors import GalvatronError
from galvatron.ir.files import sync

INDEX = "index.json"
_NAME = re.compile(r"(\d{6,})-step-(\d+)")
_UNFINISHED = re.compile(r"\.\d{6,}-step-\d+")


def complete(directory: Path) -> list[Path]:
    """The checkpoints in a directory, in the order in which they were saved.

    Raises:
        OSError: it cannot be read.
    """
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def chosen(directory: Path, *, missing_ok: bool = False) -> Path | None:
    """The checkpoint that a path means: itself, or the one in it that was saved last; None where there may be none.

    Raises:
        GalvatronError: there is none.
    """
    found: list[Path] = []
    try:
        if (directory / INDEX).exists():
            return directory
        if not (missing_ok and _is_missing(directory)):
            found = complete(directory)
    except OSError as error:
        raise GalvatronError(f"there is no checkpoint in {directory}: {error.strerror or error}") from error
    if found:
        return found[-1]
    if missing_ok:
        return None
    raise GalvatronError(
        f"there is no complete checkpoint in {directory}: name the directory that compiled.save was given, or one "
        "of the folders in it"
    )


def _is_missing(path: Path) -> bool:
    """Whether nothing has this name: a link to nothing does."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    return False


def begin(directory: Path, step: int) -> Path:
    """A new folder for a checkpoint that is written now, after what earlier jobs left unfinished was removed.

    Raises:
        OSError: it cannot be made.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    last = [int(path.name.partition("-")[0]) for path in complete(directory)[-1:]]
    folder = directory / f".{sum(last) + 1:06d}-step-{step}"
    folder.mkdir()
    return folder


def final(folder: Path) -> Path:
    """The name of a checkpoint that was begun in a folder, when it is complete."""
    return folder.with_name(folder.name[1:])


def finish(folder: Path, index: str, sizes: Mapping[str, int]) -> None:
    """All files of the folder are written: add the index, and let the checkpoint have its name.

    Args:
        sizes: of the files, in bytes.

    Raises:
        OSError: it cannot be written, or a file is no longer there.
    """
    for name, size in sizes.items():
        if (found := (folder / name).stat().st_size) != size:
            raise OSError(errno.EIO, f"{name} has {found} bytes where a rank has written {size}")
    with open(folder / INDEX, "w", encoding="utf-8") as file:
        file.write(index)
        file.flush()
        os.fsync(file.fileno())
    sync(folder)
    folder.rename(final(folder))
    sync(folder.parent)


def discard(folder: Path) -> None:
    """Remove what was begun and cannot be finished."""
    shutil.rmtree(folder, ignore_errors=True)


def keep_last(directory: Path, keep: int) -> None:
    """Remove all but the last checkpoints; what cannot be removed stays."""
    with suppress(OSError):
        for path in complete(directory)[:-keep]:
            discard(path.rename(path.with_name(f".{path.name}")))
