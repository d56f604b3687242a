"""What a program that was captured in training does when a step only evaluates, and what the model does then."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from galvatron.errors import CaptureError
from galvatron.ir.capture.restore import unchanged
from galvatron.ir.capture.sources import located, source_of_error
from galvatron.ir.ops.schemas import schema_of
from galvatron.ir.ops.targets import of_aten

_DROPOUTS = frozenset((F.dropout, torch.dropout))
"""Functions that give back their operand where they do not train."""

_SWITCHES: Mapping[Callable[..., Any], tuple[str, str]] = {
    F.dropout: ("training", ""),
    torch.dropout: ("train", "dropout"),
    F.batch_norm: ("training", ""),
    torch.batch_norm: ("training", "batch_norm"),
    F.scaled_dot_product_attention: ("dropout_p", "scaled_dot_product_attention"),
    F.multi_head_attention_forward: ("training", ""),
    F.rrelu: ("training", ""),
    torch.rrelu: ("training", "rrelu"),
}
"""Functions made of operators that evaluate where the step does, though they are called to train: the parameter that
says so, and the operator whose signature a function has that Python cannot ask for its own."""


@contextlib.contextmanager
def in_evaluation(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the `with` block all of these modules, and what they contain, are as their own `eval()` makes them, and a
    model that asks whether there are gradients is told that there are none. Afterwards all is as before.

    Raises:
        CaptureError: an `eval()` fails, or computes something.
    """
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(unchanged(module))
            stack.enter_context(_frozen_as_now(module))
            try:
                with _NothingComputed():
                    module.eval()
            except Exception as error:
                where = located(source_of_error(error))
                raise CaptureError(f"{where}the model's own eval() cannot be called here: {error}") from error
        stack.callback(_evaluating.reset, _evaluating.set(True))
        yield


_evaluating = ContextVar("evaluating", default=False)


def is_evaluating() -> bool:
    """Whether what runs is the model in evaluation mode, in the place of one that was to be trained."""
    return _evaluating.get()


@contextlib.contextmanager
def _frozen_as_now(module: nn.Module) -> Iterator[None]:
    """Inside the `with` block it may be changed which parameters are frozen."""
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        for parameter, trainable in before:
            if parameter.requires_grad is not trainable:
                parameter.requires_grad_(trainable)


class _NothingComputed(TorchFunctionMode):
    """Inside the `with` block nothing is computed of tensors, and so nothing is written into the user's weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name not in ("__get__", "requires_grad_") and func is not _FREEZE:
            raise CaptureError(f"it computes something of tensors ({name}), and a program has no place for that")
        return func(*args, **(kwargs or {}))


_FREEZE = torch.Tensor.requires_grad.__set__  # pyright: ignore[reportAttributeAccessIssue] (a property, to Python)


@dataclass(frozen=True)
class Switched:
    """A call of a function that says whether it trains.

    Attributes:
        arguments: by parameter, defaults included.
        trains: whether it is called to train.
        passes: whether its result is its operand where it does not.
    """

    arguments: Mapping[str, Any]
    switch: str
    passes: bool

    @property
    def trains(self) -> bool:
        return bool(self.arguments[self.switch])

    @property
    def evaluated(self) -> Switched:
        """The call as a program makes it in a step that only evaluates."""
        if self.arguments.get("running_mean", "") is None:
            return self  # a batch norm without running statistics always takes those of its batch
        off = type(self.arguments[self.switch])(0)
        return replace(self, arguments={**self.arguments, self.switch: off})


def switched(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> Switched | None:
    """A call of a function of torch, if a program follows what that says about training."""
    if func not in _SWITCHES:
        return None
    parameters = _defaults(func)
    arguments = {**parameters, **dict(zip(parameters, args, strict=False)), **(kwargs or {})}
    if arguments.get("inplace") is True:
        return None  # traced as other operators
    return Switched(arguments, _SWITCHES[func][0], func in _DROPOUTS)


@cache
def _defaults(func: Any) -> dict[str, Any]:
    """The parameters of a function with their defaults, in order."""
    operator = _SWITCHES[func][1]
    if operator:
        return {p.name: p.default for p in schema_of(of_aten(operator)).parameters}
    return {p.name: p.default for p in inspect.signature(func).parameters.values()}
