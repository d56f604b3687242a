"""A watch over what reads a stranger's text: how long it may take, how much memory, and that it runs nothing."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

CPU_S = 20.0
"""Of this process, for one text: many times what any of them needs, since what hangs would take for ever."""

MEMORY_BYTES = 512 << 20
"""That the process may grow by."""

_NEVER = {
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "socket.connect"),
    *("pickle.find_class", "marshal.loads", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate"),
    *("shutil.rmtree", "os.putenv"),
}
"""Audit events of what runs something, or changes what is outside of the process."""

_READERS = ("/galvatron/", "/sympy/")
"""Whose code must make no code of text. (Torch does, of descriptions of its own.)"""

_watching = False
_seen: list[str] = []


def _is_imported(frame: FrameType | None) -> bool:
    """Whether an import is under way: what torch loads only when it is needed runs as any module does."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _watching or event == "sys._getframe":
        return
    writes = event == "open" and len(args) > 1 and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if writes or event in _NEVER or event in ("compile", "exec"):
        caller = sys._getframe(1)
        ours = any(part in caller.f_code.co_filename for part in _READERS)
        if (ours or event not in ("compile", "exec")) and not _is_imported(caller):
            _seen.append(f"{event}{args!r:.200}")


sys.addaudithook(_audit)


class Hangs(BaseException):
    """A text took longer than it may; nothing on the way takes it for an error of its own."""


def _late(number: int, frame: FrameType | None) -> None:
    raise Hangs(f"more than {CPU_S:.0f} s of a core")


@contextmanager
def guarded() -> Iterator[None]:
    """
    Raises:
        Hangs: the block takes too much time.
        AssertionError: it takes too much memory, runs text, or does anything to the machine.
    """
    global _watching
    before = _peak_bytes(anew=True)
    _seen.clear()
    handler = signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    _watching = True
    try:
        yield
    finally:
        _watching = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        grown = _peak_bytes() - before
        assert not _seen, _seen
        assert grown <= MEMORY_BYTES, f"grows by {grown >> 20} MiB"


def _peak_bytes(*, anew: bool = False) -> int:
    """The most memory that the process had, where the system tells since the last call `anew`."""
    own = Path("/proc/self")
    if not (own / "clear_refs").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if anew:
        (own / "clear_refs").write_text("5")
    (line,) = (line for line in (own / "status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
