"""The arguments of the public functions: read, refused where they are wrong, and compared between ranks."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from galvatron.batches import BatchLike
from galvatron.errors import GalvatronError
from galvatron.facts import described, digest_of, facts_of_model, oddity
from galvatron.ir.capture import LossFunction
from galvatron.ir.cluster import Cluster
from galvatron.ir.documents import shown
from galvatron.ir.plan import Plan
from galvatron.plan_arguments import PlanLike, no_plan, read_cluster, read_memory, read_search
from galvatron.runtime import WholeParameters
from galvatron.search_options import SearchOptions
from galvatron.weights import check_weights

PRECISION_TYPES = {"bf16": "bf16", "fp16": "f16"}
"""Values of `precision` and the element types of the IR that they mean."""


@dataclass(frozen=True)
class Wanted:
    """Arguments of `compile` that were read and found right."""

    plan: PlanLike | None
    cluster: Cluster | None
    memory_bytes: int | None
    search: SearchOptions
    precision: str | None
    max_grad_norm: float | None
    trains: bool
    timeout_s: float
    weights: str | None
    switches: dict[str, bool]

    @staticmethod
    def read(
        plan: Any,
        cluster: Any,
        memory: Any,
        search: Any,
        precision: Any,
        optimizer: Any,
        max_grad_norm: Any,
        timeout_s: Any,
        cache_dir: Any,
        weights: Any = None,
        **switches: Any,
    ) -> Wanted:
        """
        Args:
            switches: arguments that are True or False.

        Raises:
            GalvatronError: one of them is wrong by itself.
        """
        for name, value in switches.items():
            if not isinstance(value, bool):
                raise GalvatronError(f"{name} must be True or False, not {value!r}")
        _check_training(optimizer, max_grad_norm, timeout_s)
        check_weights(weights, is_partial=switches.get("partial_weights", False))
        if cache_dir is not None and not isinstance(cache_dir, (str, os.PathLike)):
            raise GalvatronError(f"cache_dir must be the path of a directory, not {type(cache_dir).__name__}")
        if plan is not None and not isinstance(plan, (str, os.PathLike, Plan)):
            raise no_plan(plan)
        return Wanted(
            plan=plan,
            cluster=read_cluster(cluster),
            memory_bytes=read_memory(memory),
            search=read_search(search),
            precision=read_precision(precision),
            max_grad_norm=max_grad_norm,
            trains=optimizer is not None,
            timeout_s=float(timeout_s),
            weights=None if weights is None else os.fspath(weights),
            switches=switches,
        )

    def facts(
        self,
        model: nn.Module,
        example_inputs: BatchLike,
        loss_fn: LossFunction | None,
        batch_dims: object,
        dynamic: object,
        outputs: Any = (),
    ) -> dict[str, str]:
        """What must be equal on all ranks, in words.

        Raises:
            GalvatronError: the model or the loss function is none, or the outputs are no names.
        """
        check_model(model, loss_fn)
        check_inputs(example_inputs)
        check_outputs(outputs)
        plan = self.plan.to_json() if isinstance(self.plan, Plan) else str(self.plan)
        return {
            "plan": plan if len(plan) < 100 else f"a plan with digest {digest_of(plan)}",
            "cluster": str(self.cluster),
            "memory": str(self.memory_bytes),
            "search": str(self.search),
            "precision": str(self.precision),
            "max_grad_norm": str(self.max_grad_norm),
            "optimizer": "given" if self.trains else "not given",
            "loss_fn": "not given" if loss_fn is None else "given",
            "example_inputs": described(example_inputs),
            "batch_dims": str(batch_dims),
            "dynamic": str(dynamic),
            "weights": str(self.weights),
            "outputs": str(outputs if isinstance(outputs, bool) else list(outputs)),
            **{name: str(value) for name, value in self.switches.items()},
            **facts_of_model(model),
        }


def check_model(model: nn.Module, loss_fn: LossFunction | None) -> None:
    if not isinstance(model, nn.Module):
        raise GalvatronError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise GalvatronError(
            "model is a ScriptModule, whose forward is no Python: pass the model that torch.jit.script or "
            "torch.jit.trace was given"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise GalvatronError(f"{name!r} of the model has no shape yet: call the model on a batch first")
        if tensor.is_inference() and tensor.requires_grad:
            raise GalvatronError(
                f"{name!r} of the model was made in torch.inference_mode, which leaves nothing to train: "
                "build the model outside of it"
            )
    if loss_fn is not None and not callable(loss_fn):
        raise GalvatronError(f"loss_fn must be a function (output, batch) -> scalar, not {type(loss_fn).__name__}")
    if loss_fn is not None and not _takes_two(loss_fn):
        raise GalvatronError("loss_fn must take two arguments: (output, batch), the batch by the names of its inputs")


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # a callable that does not tell
        return True
    return True


def check_inputs(example_inputs: Any) -> None:
    """What capture cannot say of a batch.

    Raises:
        GalvatronError: an input has no name, or is a tensor that is sparse, nested or of a class of its own.
    """
    named = example_inputs.items() if isinstance(example_inputs, Mapping) else ()
    values = [value for _, value in named] or (example_inputs if isinstance(example_inputs, (tuple, list)) else [])
    for name, _ in named:
        if not isinstance(name, str):
            raise GalvatronError(f"example inputs come by name, but {name!r} is no name of an input")
    for value in values:
        if isinstance(value, Tensor) and (odd := oddity(value)):
            raise GalvatronError(f"an example input is {odd}: pass plain dense tensors")


def check_outputs(outputs: Any) -> None:
    """
    Raises:
        GalvatronError: they are no names.
    """
    if isinstance(outputs, bool):
        return
    named = isinstance(outputs, (list, tuple)) and all(isinstance(name, str) for name in outputs)
    if not named:
        raise GalvatronError(
            f'outputs are names of what the model returns, as in ["logits"], or True for all of it, not {outputs!r}'
        )


def read_precision(precision: Any) -> str | None:
    """The element type of the IR that a precision computes in."""
    if precision is None or (isinstance(precision, str) and precision in PRECISION_TYPES):
        return None if precision is None else PRECISION_TYPES[precision]
    raise GalvatronError(
        f"precision must be {' or '.join(map(repr, PRECISION_TYPES))}, or None for the model's own element types, "
        f"not {precision!r}"
    )


def _check_training(optimizer: Any, max_grad_norm: Any, timeout_s: Any) -> None:
    if isinstance(optimizer, WholeParameters):
        optimizer = optimizer.build
    if optimizer is not None and (not callable(optimizer) or isinstance(optimizer, torch.optim.Optimizer)):
        raise GalvatronError(
            f"optimizer must be a function from parameters to a torch.optim.Optimizer, not {type(optimizer).__name__}; "
            "pass lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)"
        )
    if max_grad_norm is not None and not _is_positive(max_grad_norm):
        raise GalvatronError(f"max_grad_norm must be a positive number, not {shown(max_grad_norm)}")
    if not _is_positive(timeout_s):
        raise GalvatronError(f"timeout_s must be a positive number of seconds, not {shown(timeout_s)}")


def _is_positive(value: Any) -> bool:
    """Whether a value is a number above 0, and no whole number that is too large for a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return value > 0 and (isinstance(value, float) or value <= sys.float_info.max)
