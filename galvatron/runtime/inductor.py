"""Layers compiled by `torch.compile`, each class once; communication stays outside the compiled graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FunctionType, ModuleType
from typing import Any

import torch

from galvatron import recompute, runtime
from galvatron.runtime import collectives, deferral, norms, ring, spmd
from galvatron.runtime.stage import Stage

_OPAQUE = frozenset(module.__name__ for module in (recompute, collectives, deferral, norms, ring, spmd))
"""Modules of functions that generated code calls and that are no kernels: the compiler cuts its graphs there, and calls
them as they are."""


def compile_layers(stages: Iterable[Stage], compiler: Callable[..., Any] = torch.compile) -> None:
    """Let the layers of these stages call compiled functions; compilation happens at the first call.

    Args:
        compiler: from a function to one that computes the same.
    """
    opaque = _opaque_runtime()
    compiled: dict[FunctionType, Callable[..., Any]] = {}
    for stage in stages:
        for layer in stage.layers.values():
            function = layer.function
            assert isinstance(function, FunctionType), f"layer {layer.name!r} calls no function of generated code"
            if function not in compiled:
                compiled[function] = compiler(_on_runtime(function, opaque))
            layer.function = compiled[function]


def _opaque_runtime() -> ModuleType:
    """The runtime as compiled layers see it: what the compiler cannot trace is hidden from it. It is a module of its
    own, so that nobody else notices. Made on demand: this imports the compiler, which takes seconds.
    """
    module = ModuleType(f"{runtime.__name__}.opaque")
    for name in runtime.__all__:
        value = getattr(runtime, name)
        opaque = isinstance(value, FunctionType) and value.__module__ in _OPAQUE
        setattr(module, name, torch.compiler.disable(value) if opaque else value)
    return module


def _on_runtime(function: FunctionType, other: ModuleType) -> FunctionType:
    """The same function, which finds another runtime under the name by which its module calls the runtime."""
    names = {name: other if value is runtime else value for name, value in function.__globals__.items()}
    copied = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied
