"""Layers compiled by `torch.compile`, each class once; communication stays outside the compiled graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from galvatron import runtime
from galvatron.runtime.stage import Stage

_OPAQUE = (
    "addmm", "all_gather", "all_reduce", "all_to_all", "copy", "cross_entropy_loss", "embedding", "first", "keep",
    "linear", "logsumexp", "once", "pad", "reduce_scatter", "scaled_dot_product_attention", "slice",
)  # fmt: skip
"""What generated code calls that is no kernel: the compiler cuts its graphs there, and calls it as it is."""

_cut = False


def compile_layers(stages: Iterable[Stage], compiler: Callable[..., Any] = torch.compile) -> None:
    """Let the layers of these stages call compiled functions; compilation happens at the first call.

    Args:
        compiler: from a function to one that computes the same.
    """
    _cut_graphs()
    compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
    for stage in stages:
        for layer in stage.layers.values():
            function = layer.function
            if function not in compiled:
                compiled[function] = compiler(function)
            layer.function = compiled[function]


def _cut_graphs() -> None:
    """Hides from the compiler what it cannot trace. Done on demand: it imports the compiler, which takes seconds."""
    global _cut
    if not _cut:
        for name in _OPAQUE:
            setattr(runtime, name, torch.compiler.disable(getattr(runtime, name)))
        _cut = True
