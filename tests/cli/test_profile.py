"""`galvatron profile`: what it writes, shows and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from galvatron.cli import app
from galvatron.ir.text import print_program
from galvatron.profiler import grids, meter, store
from tests.ir.programs import clustered
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


def test_layers_are_measured_and_stand_beside_the_hardware(tmp_path: Path) -> None:
    program, profile = tmp_path / "p.gir", tmp_path / "p.json"
    program.write_text(print_program(clustered()))
    model = ["profile", "model", str(program), "--cluster"]
    refused = RUN.invoke(app, [*model, str(profile)])
    assert refused.exit_code == 2 and "p.json: No such file" in refused.stderr
    assert RUN.invoke(app, ["profile", "hardware", "--quick", "-o", str(profile)]).exit_code == 0
    before = store.load(profile)[0]
    result = RUN.invoke(app, [*model, str(profile), "--plan", "m2/dp1", "--global-batch", "4", "--json"])
    assert result.exit_code == 0, result.output
    assert f"{profile}: 12 times of layers on local:1x1" in result.stderr
    (after,) = store.load(profile)
    assert after.measurements == before.measurements and {time.samples for time in after.classes} == {1, 2}
    shown = RUN.invoke(app, ["profile", "show", str(profile)])
    rows = [line for line in shown.stdout.splitlines() if "block under dp1" in line]
    assert len(rows) == 2 and all(after.classes[4].fingerprint in row for row in rows)
    estimate = [
        "estimate",
        str(program),
        "--plan",
        "m2/dp1",
        "--global-batch",
        "4",
        "--json",
        "--cluster",
        str(profile),
    ]
    told = json.loads(RUN.invoke(app, estimate).stdout)
    block = [time.seconds for time in after.classes if time.name.startswith("block") and time.how == "forward"]
    # What is less for more samples is noise.
    assert told["stages"][0]["layers"][1]["cost"]["forward_s"] == pytest.approx(max(block))


def test_layers_go_into_a_profile_of_the_same_machine_only(tmp_path: Path) -> None:
    program, profile = tmp_path / "p.gir", tmp_path / "p.json"
    program.write_text(print_program(clustered()))
    store.save(profile, PROFILE)
    before = profile.read_text()
    result = RUN.invoke(app, ["profile", "model", str(program), "--cluster", str(profile)])
    assert result.exit_code == 2
    assert "is of another environment: device Abacus 3000, not" in result.stderr
    assert "or name another file with -o" in result.stderr
    assert profile.read_text() == before


def test_layers_of_a_preset_are_kept_in_the_cache(tmp_path: Path) -> None:
    program = tmp_path / "p.gir"
    program.write_text(print_program(clustered()))
    arguments = ["--cluster", "a100-80g:1x2", "--plan", "dp1-tp2", "--seconds", "0"]
    result = RUN.invoke(app, ["profile", "model", str(program), *arguments])
    assert result.exit_code == 0, result.output
    assert "not measured: block under dp1-tp2, 1 samples: there was no time left of 0 s" in result.stderr
    (path,) = store.stored_files()
    assert f"{path}: 0 times of layers" in result.stderr


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
