"""`galvatron profile`: what it writes, shows and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from galvatron.cli import app
from galvatron.profiler import grids, meter, store
from tests.profiler.profiles import PROFILE, TINY, TINY_GRIDS, TINY_MESSAGES

RUN = CliRunner()


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(meter, "QUICK", TINY)
    monkeypatch.setitem(grids.GRIDS, ("cpu", "tiny"), TINY_GRIDS)
    monkeypatch.setitem(grids.MESSAGE_BYTES, "tiny", TINY_MESSAGES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_hardware_is_measured_kept_and_shown() -> None:
    result = RUN.invoke(app, ["profile", "hardware", "--quick", "--json"])
    assert result.exit_code == 0, result.output
    (path,) = store.stored_files()
    assert json.loads(result.stdout) == json.loads(path.read_text())
    assert f"{path}: " in result.stderr and "measurements of local:1x1" in result.stderr
    shown = RUN.invoke(app, ["profile", "show"])
    assert "product" in shown.stdout and "GFLOP/s" in shown.stdout and "context bytes" in shown.stdout


def test_a_file_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    store.save(path, PROFILE)
    shown = RUN.invoke(app, ["profile", "show", str(path)])
    for words in ("Abacus 3000 (cpu)", "2 nodes of 2, over gloo", "10 GFLOP/s", "at the same time", "256 MiB"):
        assert words in shown.stdout
    (row,) = (line for line in shown.stdout.splitlines() if "product" in line and "all_reduce" in line)
    assert "80%" in row
    again = RUN.invoke(app, ["profile", "show", str(path), "--json"])
    assert json.loads(again.stdout) == json.loads(path.read_text())


def test_there_may_be_none() -> None:
    shown = RUN.invoke(app, ["profile", "show"])
    assert (shown.exit_code, shown.stdout) == (0, "")
    assert "there are no profiles in" in shown.stderr


def test_what_is_no_profile_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "thesis.json"
    path.write_text('{"chapters": 7}')
    for arguments in (["hardware", "--quick", "-o", str(path)], ["show", str(path)]):
        result = RUN.invoke(app, ["profile", *arguments])
        assert result.exit_code == 2
        assert f"galvatron: error: {path} is no document of profiles" in result.stderr
    assert path.read_text() == '{"chapters": 7}'


def test_a_profile_is_a_cluster_of_other_commands(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    store.save(path, PROFILE)
    (tmp_path / "p.gir").write_text("nothing")
    for name, message in (("p.json", "p.gir"), ("none.json", "none.json: No such file")):
        result = RUN.invoke(
            app, ["search", str(tmp_path / "p.gir"), "--cluster", str(tmp_path / name), "--global-batch", "4"]
        )
        assert result.exit_code == 2 and message in result.stderr
