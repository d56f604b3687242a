"""Options and arithmetic of the emulated cluster's benchmark; the network itself is tested beside it."""

from __future__ import annotations

import os

import emulated_cluster
import pytest
from emulated_cluster import Sample, parse, rounds_of, rows_of


def taken(step_s: float, peak_bytes: int = 0, loss: float = 4.0) -> Sample:
    return Sample("", step_s, peak_bytes, loss, None, "")


def test_without_root_it_is_skipped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert emulated_cluster.main([]) == 0
    assert capsys.readouterr().out == "emulated cluster skipped: network namespaces need root\n"


def test_options() -> None:
    arguments = parse(["--ranks-per-node", "4", "--rate", "1gbit", "--memory", "1MiB", "--layers", "3"])
    assert arguments.plan == ["dp8", "pp2/m4/1f1b/dp4", "search"]
    assert (arguments.rate, arguments.memory, arguments.layers) == ("1gbit", 2**20, 3)
    assert parse(["--plan", "dp4", "--plan", "tp4"]).plan == ["dp4", "tp4"]
    assert parse(["--baselines", "ddp,tp"]).baselines == ["ddp", "tp"]


def test_unknown_baseline_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--baselines", "dpp"])
    assert "unknown baseline 'dpp'; there are ddp" in capsys.readouterr().err


def test_ratios_are_to_the_fastest_baseline_that_fits() -> None:
    samples = {
        "ddp": [taken(1.0, 90), taken(2.0, 110)],
        "fsdp2": [taken(2.0, 50), taken(4.0, 50)],
        "dp4": [taken(1.0, 80), taken(1.0, 80)],
    }
    rows = {row.contestant: row for row in rows_of(samples, 8, memory_bytes=100)}
    assert {name: row.fits for name, row in rows.items()} == {"ddp": False, "fsdp2": True, "dp4": True}
    ratio = rows["dp4"].ratio_to_best_baseline
    assert ratio is not None and (ratio.min, ratio.max) == (2.0, 4.0)
    assert rows["dp4"].samples_per_s.median == 8.0
    assert [row.contestant for row in rows_of(samples, 8, None)] == ["dp4", "ddp", "fsdp2"]


def test_contestants_that_compute_something_else_are_caught() -> None:
    with pytest.raises(AssertionError, match="dp4: first loss 5"):
        rows_of({"ddp": [taken(1.0)], "fsdp2": [taken(1.0)], "dp4": [taken(1.0, loss=5.0)]}, 8, None)


def test_contestants_take_turns_and_refused_ones_leave(capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def run(name: str) -> dict[str, object]:
        order.append(name)
        return {"refused": "too many ranks"} if name == "dp9" else vars(taken(1.0))

    samples = rounds_of(run, ["ddp", "dp9", "dp4"], 2)
    assert order == ["ddp", "dp9", "dp4", "dp4", "ddp"]
    assert {name: len(found) for name, found in samples.items()} == {"ddp": 2, "dp4": 2}
    assert "dp9 skipped: too many ranks" in capsys.readouterr().err
