"""Instruments of the caller and of the environment, around the passes of the API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import galvatron
from galvatron.errors import GalvatronError
from galvatron.instruments import Counting, DumpTree, PrintPrograms, check_instruments, instrumented
from galvatron.passes import FRONT_END, LOWERING
from galvatron.passes.base import PassResult
from galvatron.passes.pipeline import Step


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.second(h * torch.sigmoid(h)).square().mean()


BATCH = {"x": torch.ones(2, 4)}


def test_instruments_stand_around_every_pass_of_compile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counting = Counting()
    instruments = [counting, DumpTree(tmp_path / "tree"), PrintPrograms(after=["fuse"], differences=True)]
    galvatron.compile(Net(), BATCH, plan="pp1/m1/1f1b/dp1", instrument=instruments, cache_dir=tmp_path)
    names = [counted.pass_.partition("{")[0] for counted in counting.found]
    assert names == [*FRONT_END, "annotate-costs", *LOWERING]
    assert next(c for c in counting.found if c.pass_ == "fuse").counts["silu"] == 1
    files = sorted(path.name for path in (tmp_path / "tree").iterdir())
    assert files[:3] == ["00-given.gir", "01-normalize.diff", "01-normalize.gir"] and files[-1] == "09-split-stages.gir"
    err = capsys.readouterr().err
    assert "// after fuse\ngraph\n  in forward" in err and "- %sigmoid = aten.sigmoid" in err and "+ %silu" in err


def test_the_environment_names_instruments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GALVATRON_PASSES", f"diff, seconds,stats,verify,check,dump={tmp_path}")
    galvatron.capture(Net(), BATCH)
    err = capsys.readouterr().err
    assert "+ %silu" in err and "// fuse: 0." in err and "silu ×1" in err and "// fuse: computes the same\n" in err
    assert (tmp_path / "04-cluster-layers.gir").exists()
    monkeypatch.setenv("RANK", "1")
    galvatron.capture(Net(), BATCH)
    assert not capsys.readouterr().err, "of a job the first rank tells"
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("GALVATRON_PASSES", "")
    with instrumented(["stats"]):
        galvatron.capture(Net(), BATCH)
    assert "silu ×1" in capsys.readouterr().err
    with pytest.raises(GalvatronError, match="instrument names 'diffs'; did you mean 'diff'"):
        check_instruments(["diffs"])
    monkeypatch.setenv("GALVATRON_PASSES", "dif")
    with pytest.raises(GalvatronError, match="GALVATRON_PASSES names 'dif'; did you mean 'diff'"):
        galvatron.capture(Net(), BATCH)


@pytest.mark.parametrize("wrong", [3, [3]])
def test_what_is_no_instrument_is_refused(wrong: object) -> None:
    with pytest.raises(GalvatronError, match="instrument"):
        galvatron.compile(Net(), BATCH, plan="pp1/m1/1f1b/dp1", instrument=wrong)  # type: ignore[arg-type]


def test_an_instrument_that_gives_nothing_is_named() -> None:
    def forgetful(step: Step, proceed: Callable[[], PassResult]) -> None:
        proceed()

    with pytest.raises(GalvatronError, match="instrument '.*forgetful' around pass 'normalize' gave None"):
        galvatron.compile(Net(), BATCH, plan="dp1", instrument=[forgetful])  # type: ignore[list-item]
