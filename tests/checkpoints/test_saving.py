"""Checkpoints of compiled models on two ranks: what comes back, what is refused, what is left when one fails."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import galvatron
from galvatron import runtime as rt
from galvatron.checkpoints.index import Index
from galvatron.errors import GalvatronError
from galvatron.runtime import comm
from tests.marks import some_slow
from tests.ranks import RankFailure, run_ranks
from tests.test_together import WIDTH, WORDS, new_batch

pytestmark = pytest.mark.usefixtures("shared_captures")

ROOT = Path(__file__).parents[2]

adam = partial(torch.optim.AdamW, lr=0.01)


class Tied(nn.Module):
    """Dropout, a frozen layer, a tied head, batch norm, and a parameter that forward never reads."""

    def __init__(self, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.inner = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
        self.head = nn.Linear(width, WORDS, bias=False)
        self.head.weight = self.embedding.weight
        self.unread = nn.Parameter(torch.ones(3))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = F.dropout(torch.tanh(self.inner(self.frozen(self.embedding(ids)))), 0.2, self.training)
        return F.cross_entropy(self.head(self.norm(x.transpose(1, 2)).transpose(1, 2)).flatten(0, 1), labels.flatten())


def compiled(plan: str = "dp2-zero2", seed: int = 0, width: int = WIDTH, **options: Any) -> galvatron.CompiledModel:
    torch.manual_seed(seed)
    model = Tied(width, batch_norm="precision" not in options)
    if "precision" not in options:
        model = model.double()
    options.setdefault("optimizer", adam)
    return galvatron.compile(model, new_batch(), plan=plan, **options)


def losses(program: galvatron.CompiledModel, first: int, count: int = 3) -> list[float]:
    return [float(program.train_step(new_batch(seed=seed))) for seed in range(first, first + count)]


def goes_on(world: rt.World, folder: str, options: dict[str, Any], background: bool) -> None:
    program = compiled(**options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(program.optimizer, 0.5)
    losses(program, 0)
    scheduler.step()
    path = program.save(folder, step=3, extra={"scheduler": scheduler.state_dict()}, background=background)
    before, state = program.full_state_dict(), program.state()
    wanted = losses(program, 3), program.full_state_dict()
    program.finish_saving()
    other = compiled(seed=1, **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(other.optimizer, 0.5)
    found = other.load(folder)
    schedule.load_state_dict(found.extra["scheduler"])
    assert (found.path, found.step, schedule.get_last_lr()) == (path, 3, [0.005])
    assert found.metrics is not None and found.metrics["samples"] == 4
    assert other.optimizer.param_groups[0]["lr"] == 0.005
    assert other.state() == state
    for name, value in before.items():
        assert torch.equal(other.full_state_dict()[name], value), name
    assert losses(other, 3) == wanted[0]
    for name, value in wanted[1].items():
        assert torch.equal(other.full_state_dict()[name], value), name


class Late:
    """A collective of which the result is there when it is waited for, and not before."""

    def __init__(self, handle: comm.Handle, result: Tensor) -> None:
        handle.wait()
        self._result, self._value = result, result.clone()

    def wait(self) -> None:
        self._result.copy_(self._value)


def loads_while_parameters_travel(world: rt.World, folder: str, plan: str) -> None:
    gather = comm.all_gather

    def late(result: Tensor, *arguments: Any, **options: Any) -> Any:
        return Late(gather(result, *arguments, **options), result)

    program = compiled(plan, optimizer=lambda parameters: galvatron.ema(adam(parameters), 0.5))
    losses(program, 0, 1)
    whole, path = program.full_state_dict(), program.save(folder, step=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(comm, "all_gather", late)
        for takes in (lambda: program.load_full_state_dict(whole), lambda: program.load(path)):
            losses(program, 1, 1)
            takes()
            program.eval_step(new_batch())
            for name, value in program.full_state_dict().items():
                assert torch.equal(value, whole[name]), name
        losses(program, 1, 1)
        trained = program.full_state_dict()
        with program.ema():
            pass
        program.eval_step(new_batch())
        for name, value in program.full_state_dict().items():
            assert torch.equal(value, trained[name]), name


@pytest.mark.parametrize("plan", some_slow(["dp2-zero1"], ["dp2-zero1", "dp2-zero2", "dp2-zero3"]))
def test_values_that_are_loaded_stay(plan: str, tmp_path: Path) -> None:
    """Also those that the last update still brings to the ranks when they are loaded."""
    run_ranks(loads_while_parameters_travel, 2, str(tmp_path), plan)


class Scaled(nn.Module):
    """Has a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embedding(ids) * self.scale
        return F.cross_entropy((x @ self.embedding.weight.T).flatten(0, 1), labels.flatten())


def of_a_number(plan: str, rule: Any) -> galvatron.CompiledModel:
    torch.manual_seed(0)
    return galvatron.compile(Scaled().double(), new_batch(), plan=plan, optimizer=partial(rule, lr=0.01))


def goes_on_with_a_number(world: rt.World, folder: str, rule: Any) -> None:
    program = of_a_number("dp2", rule)
    losses(program, 0)
    program.save(folder, step=3)
    wanted = losses(program, 3)
    for plan in ("dp2-zero1", "dp2-zero3", "dp2"):
        other = of_a_number(plan, rule)
        other.load(folder)
        assert losses(other, 3) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [torch.optim.NAdam, torch.optim.ASGD, torch.optim.AdamW, torch.optim.Rprop])
def test_a_parameter_without_dimensions(rule: Any, tmp_path: Path) -> None:
    run_ranks(goes_on_with_a_number, 2, str(tmp_path), rule)


WAYS: list[dict[str, Any]] = [
    {"plan": "dp2-zero2"},
    {"plan": "pp2/m2/1f1b/dp1", "precision": "bf16"},
    {"plan": "dp2-zero3", "precision": "fp16"},
    {"plan": "tp2", "optimizer": partial(torch.optim.SGD, lr=0.01)},
    {"plan": "dp2-zero1", "optimizer": partial(torch.optim.NAdam, lr=0.01)},
]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("options", some_slow(WAYS[:3], WAYS))
def test_a_run_goes_on_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    run_ranks(goes_on, 2, str(tmp_path), options, False)


@pytest.mark.parametrize("options", some_slow(WAYS[:1], WAYS))
def test_what_is_saved_in_the_background_is_what_was_there_before_the_next_step(
    options: dict[str, Any], tmp_path: Path
) -> None:
    run_ranks(goes_on, 2, str(tmp_path), options, True)


def changes_precision(world: rt.World, folder: str) -> None:
    program = compiled("dp2-zero3", precision="fp16")
    losses(program, 0)
    program.save(folder, step=3)
    for plan, precision in (("pp2/m2/1f1b/dp1", "bf16"), ("tp2", "fp16"), ("dp2-zero1", None)):
        other = compiled(plan, seed=1, precision=precision)
        other.load(folder)
        for name, value in program.full_state_dict().items():
            # What is frozen has no master, and is rounded.
            wanted = value.to(other.full_state_dict()[name].dtype)
            torch.testing.assert_close(other.full_state_dict()[name], wanted, rtol=0, atol=0)
        assert (other.loss_scale is None) == (precision != "fp16")
        losses(other, 3)


def test_masters_load_under_another_precision(tmp_path: Path) -> None:
    run_ranks(changes_precision, 2, str(tmp_path))


def fills_the_disk(world: rt.World, folder: str) -> list[str]:
    program = compiled()
    losses(program, 0, 1)
    path = program.save(folder, step=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    with pytest.raises(GalvatronError, match=r"rank_00001\.safetensors cannot be written"):
        program.save(folder, step=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    rt.agree(world, "looked")
    left = sorted(os.listdir(folder))
    rt.agree(world, "looked")
    assert program.load(folder).path == path
    losses(program, 1)
    for step in (5, 4, 3):
        program.save(folder, step=step, keep=2)
    assert program.load(folder).step == 3
    return [*left, *sorted(os.listdir(folder))]


def fails_in_the_background(world: rt.World, folder: str) -> list[str]:
    program = compiled()
    losses(program, 0, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    program.save(folder, step=1, background=True)
    losses(program, 1, 1)
    with pytest.raises(GalvatronError, match=r"rank_00001\.safetensors cannot be written"):
        program.finish_saving()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    program.finish_saving()
    left = sorted(os.listdir(folder))
    losses(program, 2, 1)
    extra = {"nested": [1]}
    program.save(folder, step=3, background=True, extra=extra)
    extra["nested"].append(2)
    losses(program, 3, 1)
    assert program.metrics.saving_s > 0
    losses(program, 4, 1)
    assert program.metrics.saving_s == 0
    found = program.load(folder)
    assert (found.step, found.extra) == (3, {"nested": [1]})
    return left


def test_what_cannot_be_written_in_the_background_is_told_by_the_call_that_waits(tmp_path: Path) -> None:
    assert run_ranks(fails_in_the_background, 2, str(tmp_path)) == [[], []]


def loses_the_directory(world: rt.World, folder: str, moment: int) -> None:
    program = compiled()
    losses(program, 0, 1)
    sync, count = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal count
        count += 1
        if (world.rank, count) == (0, moment):
            shutil.rmtree(folder)
        sync(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        program.save(folder, step=1, background=True)
        losses(program, 1, 1)
        with pytest.raises(GalvatronError, match="cannot be written: No such file or directory; .* it has disappeared"):
            program.finish_saving()
    assert program.load(folder, missing_ok=True) is None
    with pytest.raises(GalvatronError, match="there is no checkpoint in .*: No such file or directory"):
        program.load(folder)
    losses(program, 2, 1)
    program.save(folder, step=3)
    assert program.load(folder).step == 3


@pytest.mark.parametrize("moment", some_slow([2], [1, 2]))
def test_a_directory_that_disappears_is_told_and_the_job_goes_on(moment: int, tmp_path: Path) -> None:
    """While rank 0 writes its file, or the index."""
    run_ranks(loses_the_directory, 2, str(tmp_path / "saved"), moment)


ENDS_AT_ONCE = """
import os, sys, time, torch, galvatron
from tests.checkpoints.test_saving import compiled, losses
sync = os.fsync
os.fsync = lambda handle: (time.sleep(1), sync(handle))
program = compiled()
losses(program, 0, 1)
program.save(sys.argv[1], step=1, background=True)
if sys.argv[2] == os.environ["RANK"]:
    raise ValueError("the end of this rank")
"""


@pytest.mark.slow
@pytest.mark.parametrize("fails", ["none", "0", "1"])
def test_a_job_that_ends_waits_for_its_checkpoint_unless_it_fails(fails: str, tmp_path: Path) -> None:
    script, folder = tmp_path / "job.py", tmp_path / "saved"
    script.write_text(ENDS_AT_ONCE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*torchrun, str(folder), fails], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    if fails == "none":
        assert ended.returncode == 0, ended.stderr
        assert os.listdir(folder) == ["000001-step-1"]
    else:
        assert ended.returncode != 0 and "the end of this rank" in ended.stderr
        saved = [name for name in os.listdir(folder) if not name.startswith(".")]
        assert saved in ([], ["000001-step-1"])
        for name in saved:
            assert Index.read(folder / name).step == 1


def test_a_full_disk_leaves_nothing_and_the_job_goes_on_and_old_ones_are_removed(tmp_path: Path) -> None:
    for left in run_ranks(fills_the_disk, 2, str(tmp_path)):
        assert left == ["000001-step-1", "000003-step-4", "000004-step-3"]


def dies(world: rt.World, folder: str, rank: int, moment: int, background: bool) -> None:
    program = compiled()
    losses(program, 0)
    program.save(folder, step=3)
    losses(program, 3)
    sync, count = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal count
        count += 1
        if (world.rank, count) == (rank, moment):
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        program.save(folder, step=6, background=background)
        losses(program, 6, 100)


def comes_back(world: rt.World, folder: str) -> tuple[int, list[float], list[str]]:
    program = compiled(seed=1)
    step = program.load(folder).step
    if step < 6:
        losses(program, step, 6 - step)
    found = losses(program, 6)
    program.save(folder, step=9)
    return step, found, sorted(os.listdir(folder))


def never_stopped(world: rt.World) -> list[float]:
    program = compiled()
    losses(program, 0, 6)
    return losses(program, 6)


MOMENTS = [(1, 1), (0, 1), (0, 2), (0, 3), (0, 4)]
"""Rank, and which of its calls of fsync it does not live to see: its file, the index, the folder, the directory."""


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(("rank", "moment"), MOMENTS)
def test_a_rank_killed_while_saving_leaves_the_last_complete_checkpoint(
    rank: int, moment: int, background: bool, tmp_path: Path
) -> None:
    with pytest.raises(RankFailure):
        run_ranks(dies, 2, str(tmp_path), rank, moment, background)
    wanted = run_ranks(never_stopped, 2)
    for (step, found, names), losses_wanted in zip(run_ranks(comes_back, 2, str(tmp_path)), wanted, strict=True):
        assert step == (6 if moment == 4 else 3)
        assert found == losses_wanted
        assert not [name for name in names if name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"directory": 3, "step": 1}, "given by its path"),
        ({"directory": "x", "step": -1}, "step must be"),
        ({"directory": "x", "step": 1, "keep": 0}, "keep must be"),
        ({"directory": "x", "step": 1, "background": 1}, "background must be"),
        ({"directory": "x", "step": 1, "extra": {"a": object()}}, "is of type object"),
        ({"directory": "x\0", "step": 1}, "none can be called"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], words: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    program = compiled("dp1")
    with pytest.raises(GalvatronError, match=words):
        program.save(**arguments)
    with pytest.raises(GalvatronError, match="no checkpoint in nowhere"):
        program.load("nowhere")
    with pytest.raises(GalvatronError, match="missing_ok must be True or False, not 'no'"):
        program.load("nowhere", missing_ok="no")  # type: ignore[call-overload]  # the point of the test
    assert not list(tmp_path.iterdir())
