"""Files are replaced as a whole; what is no file is written to, and links stay."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from galvatron.ir.files import write_text


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "new" / "p.gir"
    write_text(path, "one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o600)
    held = path.open()
    write_text(path, "two")
    assert held.read() == "one" and path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["p.gir"]


def test_links_are_followed(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "there" / "p.gir"
    link.symlink_to(target)
    write_text(link, "one")
    write_text(link, "two")
    assert link.is_symlink() and target.read_text() == "two"
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="symbolic links"):
        write_text(loop, "one")


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "text")
    reader.join(timeout=60)
    assert read == ["text"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_to(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.open("ab").close()
    except PermissionError:
        pytest.skip("devices can be neither made nor opened here")
    write_text(device, "text")
    assert stat.S_ISCHR(device.lstat().st_mode)
    assert [one.name for one in tmp_path.iterdir()] == ["null"]
