"""Figures of a run: what is written of its steps, by whom, and when."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import galvatron
from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from galvatron.figures import figures_of, progress_line, step_flop
from galvatron.runtime import StepMetrics
from tests.ranks import run_ranks
from tests.test_together import WIDTH, WORDS, new_batch, new_model, sgd

pytestmark = pytest.mark.usefixtures("shared_captures")


def compiled(plan: str = "dp1", **options: Any) -> galvatron.CompiledModel:
    return galvatron.compile(new_model(), new_batch(), plan=plan, optimizer=sgd, max_grad_norm=1.0, **options)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_step_has_a_line_when_the_next_has_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, path = compiled(), tmp_path / "run" / "figures.jsonl"
    losses: list[float] = []
    with galvatron.Figures(program, path.parent, total=3) as figures:
        for step in (1, 2, 3):
            losses.append(float(program.train_step(new_batch(seed=step))))
            figures.add(step, learning_rate=step / 10)
            assert len(lines_of(path)) == step - 1
    found = lines_of(path)
    assert [line["loss"] for line in found] == losses
    assert [line["step"] for line in found] == [1, 2, 3]
    assert [line["learning_rate"] for line in found] == [0.1, 0.2, 0.3]
    for line in found:
        assert line["gradient_norm"] > 0 and line["tokens_per_s"] > line["samples_per_s"] > 0
        assert line["mfu"] is None and line["saving_s"] == 0
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("step 1/3  loss ") and shown[-1].startswith("step 3/3") and len(shown) == 2
    with galvatron.Figures(program, path.parent, every=2, progress=False) as figures:
        for step in (4, 5):
            program.train_step(new_batch())
            figures.add(step)
    assert [line["step"] for line in lines_of(path)] == [1, 2, 3, 4]


def test_steps_that_are_done_again_have_one_line(tmp_path: Path) -> None:
    program, path = compiled(), tmp_path / "figures.jsonl"
    path.write_text("".join(f'{{"step": {step}, "run": 1}}\n' for step in range(1, 6)) + '{"step": 6, "lo')
    with galvatron.Figures(program, tmp_path, every=2, progress=False) as figures:
        for step in (3, 4):
            program.train_step(new_batch())
            figures.add(step)
    assert [(line["step"], "loss" in line) for line in lines_of(path)] == [(1, False), (2, False), (4, True)]


def test_mfu_is_what_products_of_the_model_reach_of_the_devices(tmp_path: Path) -> None:
    program = compiled(cluster="a100-80g:1x1")
    # Two inner layers and a head, of which every element of a weight takes a product and a sum, three times in all; the
    # rest is a little.
    products = 4 * 6 * 6 * (2 * WIDTH * WIDTH + WIDTH * WORDS)
    flop = step_flop(program.program, 4)
    assert flop is not None and products <= flop <= 2 * products
    assert step_flop(program.program, 8) == 2 * flop
    assert program.peak_flop_per_s is not None
    for peak in (None, 1e9):
        with galvatron.Figures(program, tmp_path, progress=False, peak_flop_per_s=peak) as figures:
            program.train_step(new_batch())
            figures.add(1)
        (*_, line) = lines_of(tmp_path / "figures.jsonl")
        wanted = flop / line["passed_s"] / (peak or program.peak_flop_per_s)
        assert line["mfu"] == pytest.approx(wanted)


def test_a_line_of_progress() -> None:
    metrics = StepMetrics(2.5, None, 2.0, 2.0, 0.0, 0.0, (2**30, 2**31), samples=4, tokens=4000)
    figures = {"step": 10, **figures_of(metrics, None, 0.5)}
    assert progress_line(figures, 20) == "step 10/20  loss 2.5  2,000 tokens/s  MFU 50.0%  2 GiB  20 s left"
    without = StepMetrics(2.5, None, 2.0, 2.0, 0.0, 0.0, None, samples=4, tokens=None)
    assert progress_line({"step": 10, **figures_of(without, 1.0, None)}, None) == "step 10  loss 2.5  4.0 samples/s"


class Board:
    """TensorBoard's writer, as far as it is used."""

    made: list[Board] = []

    def __init__(self, folder: str, purge_step: int) -> None:
        self.purged, self.scalars, self.closed = purge_step, [], False
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


def test_tensorboard_has_the_same_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = compiled()
    module = ModuleType("torch.utils.tensorboard")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(GalvatronError, match="pip install tensorboard"):
        galvatron.Figures(program, tmp_path, tensorboard=True)
    module.SummaryWriter = Board  # type: ignore[attr-defined]  # a stand-in for the module
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with galvatron.Figures(program, tmp_path, progress=False) as figures:
        loss = float(program.train_step(new_batch()))
        figures.add(7, learning_rate=0.5)
    (board,) = Board.made
    assert board.purged == 7 and board.closed
    assert ("loss", loss, 7) in board.scalars and ("learning_rate", 0.5, 7) in board.scalars


def trains(world: rt.World, folder: str, every_rank: bool) -> float:
    program = compiled("dp2")
    with galvatron.Figures(program, folder, every_rank=every_rank) as figures:
        loss = float(program.train_step(new_batch()))
        figures.add(1)
    return loss


def test_other_ranks_write_on_request(tmp_path: Path) -> None:
    run_ranks(trains, 2, str(tmp_path / "one"), False)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["figures.jsonl"]
    losses = run_ranks(trains, 2, str(tmp_path / "all"), True)
    for name, loss in zip(("figures.jsonl", "figures.rank_00001.jsonl"), losses, strict=True):
        assert lines_of(tmp_path / "all" / name)[0]["loss"] == loss


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    program = compiled()
    with pytest.raises(GalvatronError, match="every must be"):
        galvatron.Figures(program, tmp_path, every=0)
    (tmp_path / "file").touch()
    with pytest.raises(GalvatronError, match="cannot be written"):
        galvatron.Figures(program, tmp_path / "file")
    with galvatron.Figures(program, tmp_path) as figures, pytest.raises(GalvatronError, match="before the first step"):
        figures.add(1)
