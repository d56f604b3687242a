"""Jobs under `torchrun` of which ranks are killed, and that go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[2]
LIMIT_S = 300
"""For what a job is waited for at once, on a busy machine."""


class Job:
    """A script under `torchrun` on this machine; when the `with` block ends, nothing of it is left.

    Args:
        restarts: how often the launcher starts the ranks again when one has ended.
    """

    def __init__(self, script: Path, *arguments: object, ranks: int = 2, restarts: int = 0) -> None:
        self._ranks = ranks
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # open as long as the job
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        torchrun += ["--max-restarts", str(restarts), "--monitor-interval", "0.1", str(script)]
        self._launcher = subprocess.Popen(
            [*torchrun, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def launcher(self) -> int:
        """Its process."""
        return self._launcher.pid

    @property
    def output(self) -> str:
        """What all of it has printed so far."""
        self._log.seek(0)
        return self._log.read()

    def wait_until(self, there: Callable[[], bool]) -> None:
        """Until something is so, while the job runs."""
        deadline = time.monotonic() + LIMIT_S
        while not there():
            assert self._launcher.poll() is None, f"the job ended by itself: {self.output}"
            assert time.monotonic() < deadline, f"the job takes too long: {self.output}"
            time.sleep(0.005)

    def kill(self, rank: int, start: int = 0) -> None:
        """SIGKILL to the process that is this rank since the ranks were started for this time."""
        found: dict[tuple[int, int], int] = {}
        while (start, rank) not in found:
            self.wait_until(lambda: bool(self.ranks()))
            found = self.ranks()
        os.kill(found[start, rank], signal.SIGKILL)

    def wait(self) -> int:
        """The status with which the job ends."""
        return self._launcher.wait(timeout=LIMIT_S)

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._launcher.poll() is None:
            os.kill(self._launcher.pid, signal.SIGSTOP)  # it starts no others now
            for pid in (*self.ranks().values(), self._launcher.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._launcher.wait()
        self._log.close()

    def ranks(self) -> dict[tuple[int, int], int]:
        """How often the launcher had started the ranks before, and rank → process, of those that are there."""
        found: dict[tuple[int, int], int] = {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, KeyError, IndexError):
                parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent == self._launcher.pid:
                    entries = (path / "environ").read_bytes().split(b"\0")
                    of = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)
                    found[int(of[b"TORCHELASTIC_RESTART_COUNT"]), int(of[b"RANK"])] = int(path.name)
        return found
