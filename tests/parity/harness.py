"""One plan against eager PyTorch: the test process captures, plans, lowers and verifies; rank processes run the text.

A model is captured once per run whatever the number of plans, and the ranks get nothing but the generated source,
as after `galvatron.compile`.

    check("llama", "pp2/m4/1f1b/dp1-tp2")
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from galvatron import runtime as rt
from galvatron.codegen import emit, load_module, stage_axes
from galvatron.ir import planned as plans
from galvatron.ir.capture import Captured
from galvatron.ir.cluster import Cluster
from galvatron.ir.device import Device
from galvatron.ir.network import Level
from galvatron.ir.plan import Plan
from galvatron.ir.planned import PlanShorthand
from galvatron.ir.program import Form, Program
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import Length
from galvatron.ir.verify import verify
from galvatron.passes import FRONT_END, LOWERING
from galvatron.passes.instrument import VerifyEach
from galvatron.passes.pipeline import Pipeline
from tests import models, ranks
from tests.parity.subjects import Batch, Subject, make

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}
"""The relative error that is allowed in a model of each element type."""

NOISE = 1e-6
"""A gradient below this share of the norm of all gradients is compared as if it were that large: where it is zero in
exact arithmetic (the bias of attention keys) both sides hold nothing but rounding."""

BATCH_SIZE = 16
# Ranks import the Hugging Face stack once, before they are forked.
ranks.PRELOAD.append("transformers.models.llama.modeling_llama")


@dataclass(frozen=True)
class Expected:
    """What eager PyTorch computes: the loss and each parameter's gradient by name, aliases included."""

    loss: Tensor
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Job:
    """What ranks need to run a program: the model's name, the source and mesh axes of each stage, and who holds it, the
    schedule, what a micro-batch divides into, and which inputs hold samples.
    """

    name: str
    texts: dict[str, str]
    axes: tuple[tuple[tuple[int, int], ...], ...]
    holders: tuple[int, ...]
    micro_batches: int
    schedule: str
    shards: int
    constants: dict[str, Tensor]
    batched: frozenset[str]
    cache_dir: str


@cache
def subject(name: str) -> Subject:
    """The model called `name` with its batches; equal weights in every process."""
    torch.manual_seed(0)
    return make(name)


def captured(name: str, precision: str | None = None) -> Captured:
    """The capture of the model called `name`, of which the program is for `BATCH_SIZE` samples."""
    case = subject(name)
    found = models.captured(
        case.name or f"subject {name}", case.model, case.batch, case.loss_fn, precision, case.dynamic
    )
    return replace(found, program=replace(found.program, batch_size=BATCH_SIZE))


def costed(name: str, precision: str | None = None) -> tuple[Program, dict[str, Tensor]]:
    """The captured model with layers and costs, and the data of its constants."""
    return _costed(name, precision)


@cache
def _costed(name: str, precision: str | None) -> tuple[Program, dict[str, Tensor]]:
    found = captured(name, precision)
    return Pipeline.of((*FRONT_END, "annotate-costs")).run(found.program, [VerifyEach()]), found.constants


def planned(
    name: str,
    plan: str | Plan | Sequence[Sequence[str]],
    world_size: int = 4,
    precision: str | None = None,
    overlap: bool = False,
    **fields: Any,
) -> Program:
    """The model under a plan: a shorthand, a plan, or the strategies of each stage; `fields` are the plan's others."""
    program = costed(name, precision)[0]
    if isinstance(plan, str):
        plan = plans.resolve(program, plan, fields.get("global_batch_size", BATCH_SIZE), world_size)
    elif not isinstance(plan, Plan):
        stages = tuple(tuple(Strategy.parse(s) for s in stage) for stage in plan)
        defaults = {"micro_batches": 4, "schedule": "1f1b", "global_batch_size": BATCH_SIZE}
        plan = Plan(program.fingerprint, world_size=world_size, stages=stages, **(defaults | fields))
    return with_plan(program, plan, overlap=overlap)


def with_plan(program: Program, plan: Plan, *, overlap: bool = False) -> Program:
    """A program under a plan, which may be for another number of samples than the example batch.

    Args:
        overlap: whether collectives of layers run beside computation; on the cluster of these tests that always pays.
    """
    plan = replace(plan, overlap=overlap)
    cluster = proportional(Cluster.parse(f"a100-80g:1x{plan.world_size}"))
    plan = plans.fitted(plan, program, plan.world_size, plan.global_batch_size)
    program = plans.in_pieces(program, plan)
    return replace(program, form=Form.PLANNED, cluster=cluster, batch_size=plan.global_batch_size, plan=plan)


def proportional(cluster: Cluster) -> Cluster:
    """A node on which small kernels take as long as so small a part of large ones, and messages hardly longer than
    their bytes, so that small models are worth sharding as large ones are."""
    device = cluster.device
    rates = device.matmul_flop_per_s, device.memory_bytes_per_s
    device = Device(device.name, device.memory_bytes, *rates, kernel_launch_s=4e-6)
    return replace(cluster, device=device, levels=(Level("node", cluster.world_size, 235e9, 5e-6),))


def layer_count(name: str) -> int:
    """The number of layers that a plan of the model gives a strategy to."""
    return len(costed(name)[0].planned_layers)


def eager(name: str, batch: Batch) -> Expected:
    """Loss and gradients of the unmodified model on the whole batch."""
    case = subject(name)
    with models.precise(case.model):
        loss = case.loss(batch)
    named = {n: p for n, p in case.model.named_parameters(remove_duplicate=False) if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    found = {n: g for n, g in zip(named, gradients, strict=True) if g is not None}
    return Expected(loss.detach(), found)


def check(name: str, plan: str | Plan | Sequence[Sequence[str]], batch: Batch | None = None, **fields: Any) -> None:
    """Asserts that a plan computes the loss and every gradient of eager PyTorch.

    Args:
        name: see `subjects.make`.
        plan: see `planned`; the world size is that of the plan.
        batch: default: ragged labels.
    """
    program = planned(name, plan, _world_size(plan), **fields)
    batch = subject(name).batch(program.batch_size, 1) if batch is None else batch
    check_program(name, program, batch)


def check_program(name: str, program: Program, batch: Batch) -> None:
    """Asserts that a planned program computes what eager PyTorch computes."""
    plan = program.plan
    assert plan is not None
    job = job_of(name, program)
    results = ranks.run_ranks(run_step, plan.world_size, job, batch | lengths_of(program, batch))
    expected = eager(name, batch)
    for loss, _ in results:
        assert loss == results[0][0], "ranks disagree on the loss"
    loss, gradients = results[0]
    errors = relative_errors(loss, gradients, expected)
    wrong = {n: e for n, e in errors.items() if not e <= TOLERANCES[subject(name).dtype]}
    assert not wrong, f"{plan}\nrelative errors: " + ", ".join(f"{n} {e:.1e}" for n, e in wrong.items())


def lengths_of(program: Program, batch: Batch) -> dict[str, int]:
    """The sizes of a batch that are free besides the number of samples, as a compiled model reads them."""
    return {
        size.name: batch[value.name].shape[dim]
        for value in program.inputs
        for dim, size in enumerate(value.type.shape)
        if isinstance(size, Length)
    }


def relative_errors(loss: float, gradients: Mapping[str, Tensor], expected: Expected) -> dict[str, float]:
    """The relative error, by norm, of the loss and of each gradient."""
    assert gradients.keys() == expected.gradients.keys(), gradients.keys() ^ expected.gradients.keys()
    whole = torch.stack([g.norm() for g in expected.gradients.values()]).norm()
    errors = {"loss": float(abs(loss - expected.loss) / abs(expected.loss))}
    for name, gradient in expected.gradients.items():
        errors[name] = float((gradients[name] - gradient).norm() / gradient.norm().clamp_min(NOISE * whole))
    return errors


def job_of(name: str, program: Program) -> Job:
    """The generated code of a planned program, verified on the way."""
    return job_of_staged(name, Pipeline.of(LOWERING).run(program))


def job_of_staged(name: str, staged: Program) -> Job:
    """The generated code of a staged program, which is verified."""
    plan = staged.plan
    assert plan is not None
    verify(staged)
    return Job(
        name=name,
        texts=emit(staged),
        axes=stage_axes(staged),
        holders=plan.holders,
        micro_batches=plan.micro_batches,
        schedule=plan.schedule,
        shards=plan.shards,
        constants=costed(name, staged.precision)[1],
        batched=staged.batched,
        cache_dir=_cache_dir(),
    )


def executor(world: rt.World, job: Job, model: nn.Module | None = None, **options: Any) -> rt.Executor:
    """On a rank: the program of a job with the weights of its model, or of another one, ready to run."""
    mesh = rt.build_mesh(world, job.axes, job.holders)
    files = [f"stage_{index}.py" for index in mesh.stages]
    stages = [load_module(file, job.texts[file], job.cache_dir).Stage(mesh) for file in files]
    state = rt.ModelState(subject(job.name).model if model is None else model, constants=job.constants)
    settings = {"microbatches": job.micro_batches, "schedule": job.schedule, "shards": job.shards}
    return rt.Executor(stages, model=state, batched=job.batched, **settings, **options)


def run_step(world: rt.World, job: Job, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """On a rank: loss and, on rank 0, gradients of one step of a generated program."""
    program = executor(world, job)
    loss = program.forward_backward(batch)
    return float(loss), program.full_gradients(rank0_only=True)


@cache
def _cache_dir() -> str:
    """A directory for generated code, removed with the test process."""
    path = tempfile.mkdtemp(prefix="galvatron-parity-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _world_size(plan: str | Plan | Sequence[Sequence[str]]) -> int:
    if isinstance(plan, str):
        return PlanShorthand.parse(plan).world_size
    if isinstance(plan, Plan):
        return plan.world_size
    return len(plan) * Strategy.parse(plan[0][0]).devices
