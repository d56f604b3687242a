"""Whole training steps on an accelerator that does not exist: every tensor is where the model is.

torch lets a device be registered that has nothing behind it. With fake tensors, which have a device and no data, and a
communication library that does nothing, any plan runs on it: forward, backward, update and evaluation, on each rank of
a job. A constant, mask, loss or total that is made on the CPU meets a tensor of the device, and is an error; so is a
number that the host reads from the device, for which a step would wait.
"""

from __future__ import annotations

import atexit
import difflib
import multiprocessing
import pickle
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from galvatron import capture
from galvatron import runtime as rt
from galvatron.codegen import load_module
from galvatron.ir.capture import export
from galvatron.ir.capture.batch import Batch
from galvatron.ir.capture.constants import FixedBuffers
from galvatron.ir.planned import PlanShorthand
from galvatron.ir.text import print_program
from galvatron.runtime import mesh as meshes
from galvatron.runtime.stage import StateSpec
from tests.marks import some_slow
from tests.parity import harness

CASES = [
    ("gpt", "pp2/m4/zbv/dp1-recompute=selective", "bf16"),
    ("bert", "m2/dp2-zero2-recompute", None),
    ("gpt2-dropout", "m2/dp2-zero3", None),
    ("llama", "m2/cp2", None),
]
SLOW = [
    ("gpt", "m2/dp1", None),
    ("weighted", "m2/dp2", None),
    ("capped", "m2/tp2", None),
    ("gpt-8", "pp2/m4/interleaved2/tp2+sp", "bf16"),
    ("bert", "m2/dp2-zero1", "bf16"),
    ("t5", "m2/tp2", None),
    ("vit", "dp2", "bf16"),
    ("mixtral", "m2/dp1", None),
    ("llama", "m2/ulysses2-zero1", "bf16"),
    ("gpt2-tied-101", "pp2/m4/1f1b/tp2", "bf16"),
    ("gpt2-dropout", "pp2/m4/zbv/dp1-recompute", "bf16"),
    ("encoder", "m2/dp1", "bf16"),
    ("skips", "pp2/m4/gpipe/dp1", None),
    ("random-3", "m2/tp2+sp", None),
    ("deberta", "m2/dp2", None),
]
CLIP = 1.0


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("model", "plan", "precision"), CASES)
def test_everything_is_on_the_device(model: str, plan: str, precision: str | None) -> None:
    check(*prepared(model, plan, precision))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "plan", "precision"), SLOW)
def test_everything_of_other_models_is_on_the_device(model: str, plan: str, precision: str | None) -> None:
    check(*prepared(model, plan, precision))


def test_a_tensor_on_the_cpu_is_found() -> None:
    job, batch, size = prepared("gpt", "m2/dp1", None)
    text = job.texts["stage_0.py"]
    wrong = text.replace("F.gelu(", "torch.ones(1) * F.gelu(")
    assert wrong != text
    with pytest.raises(AssertionError, match="cpu"):
        check(replace(job, texts={"stage_0.py": wrong}), batch, size)


@pytest.mark.parametrize("model", some_slow(["gpt"], ["bert"]))
def test_a_program_does_not_depend_on_where_its_model_is(model: str) -> None:
    error = _elsewhere().submit(capture_twice, model).result(250)
    assert not error, error


def prepared(model: str, plan: str, precision: str | None) -> tuple[harness.Job, dict[str, Tensor], int]:
    """The code of a plan, a batch, and the number of ranks."""
    size = PlanShorthand.parse(plan).world_size
    job = harness.job_of(model, harness.planned(model, plan, size, precision))
    return job, harness.subject(model).batch(harness.BATCH_SIZE, 1), size


def check(job: harness.Job, batch: dict[str, Tensor], size: int) -> None:
    """Asserts that each rank of a job trains and evaluates on the device."""
    for error in _elsewhere().submit(train_on_every_rank, pickle.dumps((job, batch)), size).result(250):
        assert not error, error


@cache
def _elsewhere() -> ProcessPoolExecutor:
    """A process in which nobody has run a backward before there is the device, of which autograd must know."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _register)
    atexit.register(pool.shutdown)
    return pool


# What follows runs in that process.


def _register() -> None:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("gpu")
    torch.accelerator.max_memory_allocated = lambda device=None: 0  # nobody counts
    # Fake tensors have no addresses; views of one memory still have to be told from others.
    from torch._subclasses.fake_tensor import FakeTensor

    FakeTensor.data_ptr = lambda self: self.untyped_storage()._cdata + self.storage_offset()  # type: ignore[method-assign]
    # The host reads once per step whether an index was outside of a table; of a fake tensor there is nothing to read.
    rt.Executor._check_bounds = lambda self, outside, batch, *, checked=True: None  # type: ignore[method-assign]
    dist.all_gather_object = lambda found, own, group=None: found.__setitem__(slice(None), [own] * len(found))


def capture_twice(name: str) -> str:
    """What is different if a model is captured on the CPU and then on the device."""
    case = harness.make(name)
    batch = case.batch(harness.BATCH_SIZE, 1)
    # Tensors without memory cannot be made in the ordinary way.
    Batch.stand_ins = lambda self, device: {  # type: ignore[method-assign]
        key: _on_device(value) if device.type == "gpu" else value.clone() for key, value in self.tensors.items()
    }
    on_cpu = print_program(capture(case.model, batch, loss_fn=case.loss_fn))
    known = FixedBuffers(case.model)  # nor have they values to read
    export.FixedBuffers = lambda model: known  # type: ignore[assignment]
    moved: dict[Tensor, Any] = {}  # by identity, so that tied ones stay tied
    for module in case.model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for key, value in table.items():
                if value is not None:
                    table[key] = moved.setdefault(value, _on_device(value))
    on_device = print_program(capture(case.model, batch, loss_fn=case.loss_fn))
    return "\n".join(difflib.unified_diff(on_cpu.splitlines(), on_device.splitlines(), lineterm="", n=0))


def _on_device(value: Tensor) -> Any:
    empty: Any = torch._C._acc.create_empty_tensor(value.shape, value.dtype)  # type: ignore[attr-defined]  # not in the stubs
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


def train_on_every_rank(pickled: bytes, size: int) -> list[str]:
    """The errors of the ranks, one after the other; empty where there is none."""
    job, batch = pickle.loads(pickled)
    errors = []
    for rank in range(size):
        try:
            with _alone(rank, size) as world:
                _train(world, job, batch)
            errors.append("")
        except Exception:
            errors.append(f"rank {rank}: {traceback.format_exc()}")
    return errors


@contextmanager
def _alone(rank: int, size: int) -> Iterator[rt.World]:
    """A rank whose peers do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("cpu:fake,gpu:fake", store=FakeStore(), rank=rank, world_size=size)
    meshes._groups.clear()
    try:
        yield rt.World(rank, size, torch.device("gpu", 0))
    finally:
        dist.destroy_process_group()


def _train(world: rt.World, job: harness.Job, batch: dict[str, Tensor]) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        mesh = rt.build_mesh(world, job.axes, job.holders)
        files = [f"stage_{index}.py" for index in mesh.stages]
        stages = [load_module(file, job.texts[file], job.cache_dir).Stage(mesh) for file in files]
        given = {name: mode.from_tensor(value) for name, value in batch.items()}
        program = rt.Executor(
            stages,
            microbatches=job.micro_batches,
            schedule=job.schedule,
            shards=job.shards,
            optimizer=torch.optim.AdamW,
            check_optimizer=False,  # which looks at values
            max_grad_norm=CLIP,
            model=rt.ModelState(_model({name: spec for stage in stages for name, spec in stage.state_specs.items()})),
        )
        for _ in range(2):
            found = {"loss": program.train_step(given), "evaluation": program.eval_step(given)}
        found["norm"] = program.gradient_norm()
        for stage in stages:
            found |= dict(stage.named_parameters()) | dict(stage.named_buffers())
    assert program.optimizer is not None
    trained = [p for group in program.optimizer.param_groups for p in group["params"]]
    found |= {f"trained {i}": p for i, p in enumerate(trained)}
    found |= {f"gradient {i}": p.grad for i, p in enumerate(trained) if p.grad is not None}
    for state in program.optimizer.state.values():
        found |= {f"{name} of {id(state)}": value for name, value in state.items() if name != "step"}
    elsewhere = {name: value.device for name, value in found.items() if value.device != world.device}
    assert not elsewhere, f"not on {world.device}: {elsewhere}"


def _model(specs: dict[str, StateSpec]) -> nn.Module:
    """A model on the CPU that has nothing but the tensors of the stages, by their names."""
    root = nn.Module()
    for name, spec in specs.items():
        *path, last = name.split(".")
        owner: Any = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]
        value = torch.zeros(spec.shape, dtype=spec.master or spec.dtype)
        table = owner._parameters if spec.kind == "parameter" else owner._buffers
        table[last] = nn.Parameter(value, value.is_floating_point()) if spec.kind == "parameter" else value
    return root
