"""Reading files of strangers, and writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from galvatron.errors import GalvatronError
from galvatron.ir import limits


def read_text(path: str | os.PathLike[str], most: int = limits.FILE_CHARACTERS) -> str:
    """The UTF-8 text of a file; of one with more than `most` characters only enough for a reader to see that it is.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not text, or its name cannot be that of a file.
    """
    with open(path, encoding="utf-8") as file:
        return file.read(most + 1)


def exists(path: str) -> bool:
    """Whether there is a file or directory of this name; False also for what none could be called."""
    try:
        return bool(path) and Path(path).exists()
    except (OSError, ValueError):
        return False


def check_path(path: Any, says: str) -> None:
    """
    Args:
        says: what is there, as in "a checkpoint goes into a directory".

    Raises:
        GalvatronError: it is nothing that a file or directory could be called.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise GalvatronError(f"{says}, given by its path, not {type(path).__name__}")
    name = os.fspath(path)
    if not isinstance(name, str) or not name or "\0" in name:
        raise GalvatronError(f"{says}, and none can be called {name!r}")


def cache_directory(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where files are kept between runs: `cache_dir`, or else a directory of ours in the user's cache directory."""
    if cache_dir is not None:
        return Path(cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "galvatron"


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a temporary file beside the file that `path` leads to, through links, and renames it over that; parent
    directories are made. What is no file, such as a device or a pipe, is written to.

    Raises:
        OSError: it cannot be written.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG | 0o644
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as file:
            file.write(data)
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, stat.S_IMODE(mode))
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync(path: str | os.PathLike[str]) -> None:
    """Makes a file, or the names in a directory, last.

    Raises:
        OSError: it cannot.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
