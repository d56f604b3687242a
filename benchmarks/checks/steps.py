"""Training steps of compiled models on one device: their time and memory, and what the device did in one of them.

Two models, numbers of samples, kinds of recomputation, eager and compiled by inductor. `prediction` says what the cost
model makes of the same cases; the kernels of a step, with the shapes of their ops, say where the two part.
"""

from __future__ import annotations

import gc
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from common.clocks import steps_in_turn, synchronize
from common.measure import Spread
from common.peers import adamw
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config, GPT2LMHeadModel

import galvatron
from checks import Setting
from checks.llama import TINY, Batch, Shape, batch_of, model_of
from checks.report import Report
from checks.timeline import Timeline, timeline

PRECISION = "bf16"

LLAMA = Shape(layers=8)
GPT2 = Shape(vocabulary=50257, width=1024, hidden=4096, heads=16, key_heads=16, layers=8, sequence=1024)


@dataclass(frozen=True)
class Subject:
    """A model whose steps are timed: which kind, its sizes, and numbers of samples, the first that of the example."""

    kind: str
    shape: Shape
    samples: tuple[int, ...]

    def model(self, device: torch.device | str) -> nn.Module:
        return model_of(self.shape, device) if self.kind == "llama" else gpt2_of(self.shape, device)

    def batch(self, samples: int, device: torch.device | str) -> Batch:
        return batch_of(self.shape, samples, device)


def gpt2_of(shape: Shape, device: torch.device | str) -> nn.Module:
    """Transformers' GPT-2: dropout, layer norms, biases, GELU, and one matrix for embedding and head."""
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_positions=shape.sequence,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    with torch.device(device):
        return GPT2LMHeadModel(config).train()


VARIANTS: dict[str, tuple[str, bool]] = {
    "eager": ("dp1", False),
    "inductor": ("dp1", True),
    "eager+recompute": ("dp1-recompute", False),
    "eager+selective": ("dp1-recompute=selective", False),
}
"""The plan, and whether layers are compiled."""


def subjects(tiny: bool) -> tuple[Subject, ...]:
    if tiny:
        return Subject("llama", TINY, (4, 2)), Subject("gpt2", TINY, (2,))
    return Subject("llama", LLAMA, (4, 2)), Subject("gpt2", GPT2, (16, 4))


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        peak_bytes: that tensors take at the most, as the allocator counts them; `idle_bytes` between two steps.
        reserved_bytes: that the allocator takes of the device at the most.
        other_bytes: that are taken of the device beside these.
        warm: what the device did in a step, on the way from one to the next.
        ops: (name, shapes) → calls and seconds of the device in one step, of the ops that take most.
        calls: ops that the host called in that step.
    """

    subject: str
    variant: str
    samples: int
    step_s: Spread
    host_s: Spread
    idle_bytes: int | None = None
    peak_bytes: int | None = None
    reserved_bytes: int | None = None
    other_bytes: int | None = None
    warm: Timeline | None = None
    ops: list[dict[str, Any]] | None = None
    calls: int | None = None


def run(report: Report, setting: Setting) -> None:
    """The plain cases of both models first."""
    both = subjects(setting.tiny)
    report.document["subjects"] = [asdict(subject) for subject in both]
    for variant in VARIANTS:
        for subject in both:
            if setting.tiny and VARIANTS[variant][1]:
                continue
            needs_s = 0.0 if setting.tiny else 30.0 if VARIANTS[variant][1] else 10.0
            name = f"{subject.kind} {variant}"
            report.attempt(name, timed, report, setting, subject, variant, needs_s=needs_s)
            gc.collect()
            if setting.on_gpu:
                torch.cuda.empty_cache()


def timed(report: Report, setting: Setting, subject: Subject, variant: str) -> None:
    """A compiled model at all its numbers of samples."""
    plan, inductor = VARIANTS[variant]
    began = time.perf_counter()
    compiled = galvatron.compile(
        subject.model("meta"),  # so that nothing but the compiled model has memory
        subject.batch(subject.samples[0], setting.device),
        plan=plan,
        cluster="h100-80g:1x1",
        precision=PRECISION,
        optimizer=adamw,
        inductor=inductor,
    )
    report.document["compile_s"] = {
        **report.document.get("compile_s", {}),
        f"{subject.kind} {variant}": time.perf_counter() - began,
    }
    for samples in subject.samples:
        report.add(case(setting, compiled, subject, variant, samples))


def case(setting: Setting, compiled: galvatron.CompiledModel, subject: Subject, variant: str, samples: int) -> Row:
    batch = subject.batch(samples, setting.device)

    def step() -> Tensor:
        return compiled.train_step(batch)

    step()
    memory = memory_of(step, setting) if setting.on_gpu else {}
    rounds, each = (3, 1) if setting.tiny else (7, 3)
    times = steps_in_turn({"own": step}, setting.device, rounds=rounds, each=each)["own"]
    return Row(
        subject.kind,
        variant,
        samples,
        Spread.of(times.step_s),
        Spread.of(times.host_s),
        **memory,
        warm=timeline(step, setting.device) if setting.on_gpu else None,
        **profiled(step, setting),
    )


def memory_of(step: Any, setting: Setting) -> dict[str, int]:
    """What a step takes, whose first one has been."""
    synchronize(setting.device)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    idle_bytes = torch.cuda.memory_allocated()
    step()
    synchronize(setting.device)
    free, total = torch.cuda.mem_get_info()
    return {
        "idle_bytes": idle_bytes,
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "other_bytes": total - free - torch.cuda.memory_reserved(),
    }


MOST_OPS = 60


def profiled(step: Any, setting: Setting) -> dict[str, Any]:
    """The ops of one step."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.on_gpu else [])]
    synchronize(setting.device)
    with profile(activities=activities, record_shapes=True) as found:
        step()
        synchronize(setting.device)
    calls = sum(event.name.startswith("aten::") for event in found.events() or () if event.device_type.name == "CPU")
    averages = found.key_averages(group_by_input_shape=True)
    ops = [
        {
            "name": one.key,
            "shapes": str(one.input_shapes),
            "calls": one.count,
            "device_s": one.self_device_time_total / 1e6,
            "host_s": one.self_cpu_time_total / 1e6,
        }
        for one in averages
        if one.device_type.name == "CPU"
    ]
    by_time = sorted(ops, key=lambda op: op["device_s" if setting.on_gpu else "host_s"], reverse=True)
    return {"ops": by_time[:MOST_OPS], "calls": calls}
