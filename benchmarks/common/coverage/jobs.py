"""Rows in processes of their own, forked from one that has imported the libraries."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait

from common.architectures.base import Architecture
from common.coverage.outcomes import RowOutcome


def run_rows(
    rows: Sequence[Architecture],
    jobs: int,
    limit_s: float,
    begins: Callable[[str], None],
    ends: Callable[[RowOutcome], None],
) -> None:
    """Runs each row in a process of its own, `jobs` at a time; one that crashes or takes too long costs only itself.

    Args:
        begins: hears the name of a row that begins.
        ends: hears what became of it.
    """
    waiting = list(reversed(rows))
    running: list[_Row] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                row = waiting.pop()
                begins(row.name)
                running.append(_Row(row, limit_s))
            wait([row.connection for row in running], min(row.left_s for row in running))
            for row in list(running):
                if row.is_over():
                    running.remove(row)
                    row.end()
                    ends(row.outcome)
    finally:
        for row in running:
            row.end()


class _Row:
    """A row in its process.

    Attributes:
        outcome: what became of it, or what it is if it ends now.
    """

    def __init__(self, row: Architecture, limit_s: float) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["common.coverage.warm"])
        self.outcome = RowOutcome(row.name, row.family, row.library, outcome="crash", cause="its process did not start")
        self.connection, there = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(row.name, there))
        self._process.start()
        self._deadline = time.monotonic() + limit_s
        there.close()

    @property
    def left_s(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def is_over(self) -> bool:
        """Hears what the process has said since; whether it has ended, or must."""
        try:
            while self.connection.poll():
                self.outcome = self.connection.recv()
        except EOFError:
            self._process.join(5)
            if status := self._process.exitcode:
                cause = f"the process ended with status {status} {self.outcome.cause}"
                self.outcome = replace(self.outcome, outcome="crash", cause=cause)
            return True
        return not self.left_s

    def end(self) -> None:
        """Ends the process and those that it has forked."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process.pid is not None and os.getpgid(self._process.pid) == self._process.pid:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self.connection.close()


def _run(name: str, results: Connection) -> None:
    """The main function of a row's process, quiet: what libraries warn of concerns nobody here."""
    os.setsid()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    from common.coverage.row import run_row

    run_row(name, results)
