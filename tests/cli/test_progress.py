"""What is told of a search while it goes on, where nothing that was written can be written over."""

from __future__ import annotations

import itertools

import pytest

from galvatron.cli import progress
from galvatron.passes.planning.search.watch import Watch


def test_without_a_terminal_a_line_is_told_ever_less_often(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)) / 4)
    with progress.shown_progress():
        watch = Watch()
        for done in range(200):
            watch.costing(done, 200)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out and 3 <= len(lines) <= 8
    assert all(line.startswith("searching: costs of ") for line in lines)
