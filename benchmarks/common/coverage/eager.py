"""What eager PyTorch computes for an architecture, and how far from it a program is."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.architectures.base import Batch, Subject
from common.doubles import precise

NOISE = 1e-5
"""A gradient or a buffer below this share of the norm of all of them is compared as if it were that large: where it is
zero in exact arithmetic, as the mean of what a norm has centred, or nearly, both sides hold nothing but rounding. An
error of 1e-9 in it is then some 45 roundings of that norm; eager differs by as much from itself on permuted samples."""


@dataclass(frozen=True)
class Expected:
    """What eager PyTorch computes: the loss, gradients by name, the buffers after the step, and then the loss in
    evaluation mode; None of a model that has none there."""

    loss: float
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    evaluated: float | None


def repeatable(subject: Subject, batch: Batch) -> str:
    """Why what eager computes is nothing to compare with; empty if it is."""
    first, second = eager(subject, batch), eager(subject, batch)
    if not first.gradients:
        return "no parameter gets a gradient"
    if not math.isfinite(first.loss) or not all(g.isfinite().all() for g in first.gradients.values()):
        return f"the loss {first.loss} or a gradient is not finite"
    if first.loss != second.loss:
        return f"eager does not repeat itself: {first.loss} and {second.loss}"
    return ""


def eager(subject: Subject, batch: Batch) -> Expected:
    """A step of the unmodified model in one process; the model is left as it was."""
    model = subject.model
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with precise(model):
        loss = _loss(subject, batch)
    named_parameters = {n: p for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    found = torch.autograd.grad(loss, list(named_parameters.values()), allow_unused=True)
    gradients = {n: g.to_dense() for n, g in zip(named_parameters, found, strict=True) if g is not None}
    after = {name: buffer.clone() for name, buffer in model.named_buffers()}
    evaluated = _evaluated(replace(subject, model=copy.deepcopy(model)), batch)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in before:
                buffer.copy_(before[name])
    kept = model.state_dict().keys()
    return Expected(float(loss.detach()), gradients, {name: after[name] for name in after if name in kept}, evaluated)


def _loss(subject: Subject, batch: Batch) -> Tensor:
    output = subject.model(**batch)
    loss = subject.loss_fn(output, batch) if subject.loss_fn else output
    return loss if isinstance(loss, Tensor) else loss.loss


def _evaluated(subject: Subject, batch: Batch) -> float | None:
    """The loss in evaluation mode; None where a model gives none, as some of detection."""
    for module in subject.model.modules():
        module.training = False
    try:
        with precise(subject.model), torch.no_grad():
            return float(_loss(subject, batch))
    except Exception:
        return None


def errors_of(
    loss: float,
    gradients: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    evaluated: float | None,
    expected: Expected,
) -> dict[str, float]:
    """The relative error, by norm, of the loss, of each gradient, of each buffer after the step, and of the loss in an
    evaluation after it, if there is one."""
    least = NOISE * _norm(expected.gradients)
    errors = {"loss": abs(loss - expected.loss) / max(abs(expected.loss), 1e-30)}
    if evaluated is not None and expected.evaluated is not None:
        errors["evaluation"] = abs(evaluated - expected.evaluated) / max(abs(expected.evaluated), 1e-30)
    for name in expected.gradients.keys() | gradients.keys():
        if name in expected.gradients and name in gradients:
            gradient = expected.gradients[name]
            errors[f"gradient of {name}"] = _distance(gradients[name], gradient, least)
        elif float(expected.gradients.get(name, gradients.get(name, torch.ones(()))).abs().max()) > 0:
            errors[f"gradient of {name}, which only one has"] = math.inf
    least = NOISE * _norm(expected.buffers)
    for name, buffer in expected.buffers.items():
        errors[f"buffer {name}"] = _distance(state[name], buffer, least)
    return {name: error if error == error else math.inf for name, error in errors.items()}


def _norm(tensors: Mapping[str, Tensor]) -> float:
    """The norm of all finite floating tensors as one vector."""
    norms = [float(tensor.double().norm()) for tensor in tensors.values() if tensor.is_floating_point()]
    return math.hypot(*(norm for norm in norms if math.isfinite(norm)))


def _distance(found: Tensor, wanted: Tensor, least: float) -> float:
    if found.shape != wanted.shape:
        return math.inf
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(found, wanted) else math.inf
    wanted = wanted.double()
    if torch.equal(found.double(), wanted):
        return 0.0
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(least))
