"""Layers compiled by `torch.compile`, each class once; communication stays outside the compiled graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FunctionType, ModuleType
from typing import Any

import torch

from galvatron import recompute, runtime
from galvatron.runtime import collectives, deferral, norms, ring, spmd
from galvatron.runtime.mesh import Axis
from galvatron.runtime.random import going_on, in_stream
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
    compiled: dict[tuple[FunctionType, tuple[Axis, ...] | None], Callable[..., Any]] = {}
    for stage in stages:
        for layer in stage.layers.values():
            function, stream = layer.function, layer.stream
            assert isinstance(function, FunctionType), f"layer {layer.name!r} calls no function of generated code"
            if (function, stream) not in compiled:
                compiled[function, stream] = _compiled(function, stream, opaque, compiler)
            layer.function = compiled[function, stream]


def _compiled(
    function: FunctionType, stream: tuple[Axis, ...] | None, opaque: dict[str, Any], compiler: Callable[..., Any]
) -> Callable[..., Any]:
    if stream is None:
        return compiler(_on_runtime(function, opaque))
    return in_stream(compiler(_on_runtime(function, {**opaque, "seeded": going_on(stream)})), stream)


def _opaque_runtime() -> dict[str, Any]:
    """The runtime as compiled layers see it, by name: what the compiler cannot trace is hidden from it. Made on demand:
    this imports the compiler, which takes seconds.
    """
    values = {name: getattr(runtime, name) for name in runtime.__all__}
    return {
        name: torch.compiler.disable(value)
        if isinstance(value, FunctionType) and value.__module__ in _OPAQUE
        else value
        for name, value in values.items()
    }


def _on_runtime(function: FunctionType, opaque: dict[str, Any]) -> FunctionType:
    """The same function, which finds another runtime under the name by which its module calls the runtime: a module of
    its own, so that nobody else notices.
    """
    other = ModuleType(f"{runtime.__name__}.opaque")
    vars(other).update(opaque)
    names = {name: other if value is runtime else value for name, value in function.__globals__.items()}
    copied = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied
