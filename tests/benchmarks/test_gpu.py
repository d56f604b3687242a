"""The check of a GPU, run without one: the same code on the CPU, with tiny sizes."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import gpu
import pytest
from checks.llama import TINY, model_of
from checks.prediction import preset_of
from checks.report import Report

SCRIPT = Path(gpu.__file__)


def check(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--out", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=295)


def documents(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.slow
def test_every_collective_is_called(tmp_path: Path) -> None:
    done = check(tmp_path, "--parts", "communication")
    assert done.returncode == 0, done.stderr
    (found,) = documents(tmp_path).values()
    assert found["finished"] and not found["failures"] and len(found["rows"]) > 40
    assert "Communication on one rank" in done.stdout


@pytest.mark.slow
def test_the_cost_model_knows_the_kernels_of_the_device(tmp_path: Path) -> None:
    done = check(tmp_path, "--parts", "kernels")
    assert done.returncode == 0, done.stderr
    (found,) = documents(tmp_path).values()
    assert found["finished"] and not found["failures"] and len(found["rows"]) > 15
    for row in found["rows"]:
        assert not row["missing"] and not row["unsaid"], row
        assert row["predicted_kept_bytes"] == row["measured_kept_bytes"], row


@pytest.mark.slow
def test_all_parts(tmp_path: Path) -> None:
    done = check(tmp_path)
    assert done.returncode == 0, done.stderr
    found = documents(tmp_path)
    assert found.pop("profile")["format"] == "galvatron-profile"
    assert found.keys() == gpu.SHARES_S.keys()
    assert all(document["finished"] and document["rows"] for document in found.values())
    ratios = [row["ratio"]["median"] for row in found["speed"]["rows"] if row.get("ratio")]
    assert len(ratios) == 4 and all(ratio > 0 for ratio in ratios)


def test_a_part_that_does_not_end_is_stopped_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "GRACE_S", 0.0)
    arguments = gpu.argparse.Namespace(out=tmp_path, device="cpu", tiny=True)
    ended = gpu.run_part("communication", arguments, {}, 0.01)
    assert ended.exit_code is None
    assert gpu.verdict([ended], {"communication": {}}) == 1


def test_a_failure_is_a_row_of_its_own(tmp_path: Path) -> None:
    report = Report(tmp_path / "part.json", "part", 60)
    report.add({"case": "one"})
    assert report.attempt("two", lambda: 1 // 0) is None
    assert report.attempt("three", lambda: 3, needs_s=1e6) is None
    assert report.attempt("four", lambda: 4) == 4
    (found,) = documents(tmp_path).values()
    assert found["rows"] == [{"case": "one"}]
    (failure,), (skipped,) = found["failures"], found["skipped"]
    assert failure["name"] == "two" and "ZeroDivisionError" in failure["traceback"] and skipped["name"] == "three"
    assert not found["finished"]


def test_missing_modules_come_from_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "NEEDED", ("json", "absent_here"))
    monkeypatch.setattr(gpu, "WHEELS", tmp_path / "wheels")
    unpacked = tmp_path / "unpacked"
    with pytest.raises(SystemExit, match=r"absent_here cannot be imported.*make gpu-wheels"):
        gpu.provided(str(unpacked))
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "absent-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("absent_here/__init__.py", "")
        wheel.writestr("absent.libs/lib.so", "")
    assert gpu.provided(str(unpacked)) == [str(unpacked)]
    assert (unpacked / "absent.libs" / "lib.so").exists()


def test_presets_go_by_the_names_of_gpus() -> None:
    assert preset_of("NVIDIA H100 80GB HBM3 x 1", 85 * 10**9) == "h100-80g"
    assert preset_of("NVIDIA H200 x 1", 150 * 10**9) == "h200-141g"
    assert preset_of("NVIDIA A100-SXM4-40GB x 8", 42 * 10**9) == "a100-40g"
    assert preset_of("Some Other x 1", 10**9) is None
    assert preset_of(None, 10**9) is None


def test_the_number_of_parameters_is_that_of_the_model() -> None:
    assert TINY.parameters == sum(parameter.numel() for parameter in model_of(TINY, "meta").parameters())
