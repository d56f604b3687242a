"""Loss and gradients of compiled models against eager PyTorch on the same device, and what training scripts do.

The models are those of the parity tests. In float64 the tolerance is the tests' own; in float32 products are without
TF32 on both sides. In bfloat16 both are compared with float32: ours may be as far off as eager's, and half as much
again.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import galvatron
from checks import Setting
from checks.behaviour import BEHAVIOURS
from checks.report import Report
from tests.models import Doubles
from tests.parity.subjects import Batch, Subject, make

SAMPLES = 8
DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16}
TOLERANCES = {"f64": 1e-9, "f32": 1e-5}
FLOORS = {"f64": 1e-6, "f32": 1e-2}
"""A gradient smaller than this share of all gradients is compared as if it were so large."""

BF16_FACTOR, BF16_SLACK = 1.5, 2.0**-8
"""How far off our bfloat16 may be: so many times as far as eager's, and so much, relative to the float32 values."""

PLANS = ("dp1", "dp1-recompute", "dp1-recompute=selective", "m4/dp1", "m4/dp1-zero3", "m2/dp1-zero1-recompute")
MODELS = ("llama", "gpt2", "bert", "vit", "gpt", "t5", "qwen3", "encoder", "weighted", "capped", "mixtral", "random-3")


@dataclass(frozen=True)
class Case:
    """A model in an element type under a plan; `home` is where model and batch are when they are handed over."""

    model: str
    dtype: str
    plan: str
    home: str
    inductor: bool = False

    def __str__(self) -> str:
        return f"{self.model} {self.dtype} {self.plan} from {self.home}" + (" inductor" if self.inductor else "")


@dataclass(frozen=True)
class Row:
    """Relative errors of the loss and of the worst gradient, and what is allowed.

    In bfloat16 `gradient_error` is that of all gradients as one vector against float32, and `allowed` follows from
    eager's own.
    """

    case: str
    loss_error: float
    gradient_error: float
    worst: str
    allowed: float
    compile_s: float


@dataclass(frozen=True)
class Result:
    loss: float
    gradients: dict[str, Tensor]


EXACT = {"weighted": ("f64", "f32"), "random-3": ("f64",)}
"""Models that mix element types by themselves in the others."""

FIRST = 9
"""Cases before the behaviours, of which there must be time for all."""


def cases(tiny: bool) -> list[Case]:
    """Every model in every type under one plan, and one model under all plans; compiled layers last."""
    if tiny:
        return [Case("gpt", "f64", "m4/dp1-recompute", "device"), Case("gpt", "bf16", "dp1", "host")]
    found = [
        Case(model, dtype, PLANS[(i + j) % 3], "host" if i % 2 else "device")
        for i, model in enumerate(MODELS)
        for j, dtype in enumerate(DTYPES)
        if dtype in EXACT.get(model, DTYPES)
    ]
    found += [Case("gpt-8", dtype, plan, "device") for plan in PLANS[1:] for dtype in ("f64", "bf16")]
    found += [Case("llama", "f32", "dp1", "device", True), Case("gpt2", "bf16", "m4/dp1-recompute", "host", True)]
    return found


def run(report: Report, setting: Setting) -> None:
    """All cases, and what else a training script does."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    every = cases(setting.tiny)
    _compare_all(every[:FIRST], report, setting)
    for behaviour in BEHAVIOURS[:2] if setting.tiny else BEHAVIOURS:
        name = behaviour.__name__

        def check(behaviour: Callable[[torch.device], str] = behaviour, name: str = name) -> None:
            report.add({"case": name, "found": behaviour(setting.device)})

        report.attempt(name, check, needs_s=3.0)
    _compare_all(every[FIRST:], report, setting)


def _compare_all(several: list[Case], report: Report, setting: Setting) -> None:
    for case in several:
        report.attempt(str(case), lambda case=case: report.add(compare(case, setting.device)), needs_s=3.0)


def compare(case: Case, device: torch.device) -> Row:
    """One case.

    Raises:
        AssertionError: it is not within what is allowed.
    """
    subject, batch = subject_of(case.model, case.dtype)
    home = device if case.home == "device" else torch.device("cpu")
    model = copy.deepcopy(subject.model).to(home)
    given = {name: value.to(home) for name, value in batch.items()}
    began = time.perf_counter()
    with precise(case.dtype):
        compiled = galvatron.compile(
            model,
            given,
            loss_fn=subject.loss_fn,
            plan=case.plan,
            precision="bf16" if case.dtype == "bf16" else None,
            inductor=case.inductor,
        )
    compile_s = time.perf_counter() - began
    loss = compiled.forward_backward(given)
    assert loss.device.type == device.type, f"the loss is on {loss.device}"
    row = judged(case, Result(float(loss), compiled.full_gradients()), device, round(compile_s, 2))
    assert row.gradient_error <= row.allowed, f"{row.worst}: error {row.gradient_error:.1e}, allowed {row.allowed:.1e}"
    assert row.loss_error <= row.allowed, f"loss: error {row.loss_error:.1e}, allowed {row.allowed:.1e}"
    return row


def judged(case: Case, found: Result, device: torch.device, compile_s: float) -> Row:
    if case.dtype == "bf16":
        exact, rounded = eager(case.model, "f32", device), eager(case.model, "bf16", device)
        own, others = distance(found, exact), distance(rounded, exact)
        allowed = BF16_FACTOR * others[1] + BF16_SLACK
        return Row(str(case), own[0], own[1], "all gradients", allowed, compile_s)
    expected = eager(case.model, case.dtype, device)
    errors = gradient_errors(found, expected, FLOORS[case.dtype])
    worst = max(errors, key=lambda name: errors[name])
    loss_error = abs(found.loss - expected.loss) / abs(expected.loss)
    return Row(str(case), loss_error, errors[worst], worst, TOLERANCES[case.dtype], compile_s)


def gradient_errors(found: Result, expected: Result, floor: float) -> dict[str, float]:
    assert found.gradients.keys() == expected.gradients.keys(), found.gradients.keys() ^ expected.gradients.keys()
    whole = torch.stack([g.norm() for g in expected.gradients.values()]).norm()
    return {
        name: float((found.gradients[name] - g).norm() / g.norm().clamp_min(floor * whole))
        for name, g in expected.gradients.items()
    }


def distance(found: Result, exact: Result) -> tuple[float, float]:
    """Relative differences of the losses, and of all gradients as one vector."""
    assert found.gradients.keys() == exact.gradients.keys(), found.gradients.keys() ^ exact.gradients.keys()
    off = torch.stack([(found.gradients[name].float() - g).norm() for name, g in exact.gradients.items()]).norm()
    whole = torch.stack([g.norm() for g in exact.gradients.values()]).norm()
    return abs(found.loss - exact.loss) / abs(exact.loss), float(off / whole)


@cache
def subject_of(name: str, dtype: str) -> tuple[Subject, Batch]:
    """A model of the tests with a batch, in float64 or, for both of the others, float32."""
    torch.manual_seed(0)
    subject = make(name)
    batch = subject.batch(SAMPLES, 1)
    if dtype == "f64":
        return subject, batch
    return Subject(subject.model.float(), subject.batch, subject.loss_fn), cast(batch, torch.float32)


def cast(batch: Batch, dtype: torch.dtype) -> Batch:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}


@cache
def eager(name: str, dtype: str, device: torch.device) -> Result:
    """What the unmodified model computes on the device; in bfloat16 with parameters rounded and buffers as they are."""
    subject, batch = subject_of(name, dtype)
    model = copy.deepcopy(subject.model).to(device)
    if dtype == "bf16":
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
        batch = cast(batch, torch.bfloat16)
    given = {key: value.to(device) for key, value in batch.items()}
    with precise(dtype):
        loss = Subject(model, subject.batch, subject.loss_fn).loss(given)
    loss.backward()
    return Result(float(loss.detach()), gradients_of(model))


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """By every name of each parameter, on the host, in at least 32 bits."""
    return {
        name: (p.grad.float() if p.grad.dtype == torch.bfloat16 else p.grad).cpu()
        for name, p in model.named_parameters(remove_duplicate=False)
        if p.grad is not None
    }


def precise(dtype: str) -> Any:
    """What lets a float64 model compute in float64 throughout."""
    return Doubles() if dtype == "f64" else nullcontext()
