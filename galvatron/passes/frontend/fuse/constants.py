"""What constant masks say: those that a graph computes from nothing, as `arange(n)[None] <= arange(n)[:, None]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import sympy

from galvatron.ir.graph import Arg, Graph, Op, Ref
from galvatron.ir.random import is_random
from galvatron.rewriting import Builder, Match

if TYPE_CHECKING:
    from torch import Tensor

_MAX_BYTES = 2**30
"""All that is computed to know one mask, intermediate values included: enough for 8,192 positions."""


@dataclass(frozen=True)
class Facts:
    """What is known of a value.

    A *neutral* mask masks nothing: True everywhere, or 0 everywhere if it is a number to add. A *causal* one lets each
    position see those up to itself, of as many, and no other.
    """

    neutral: bool = False
    causal: bool = False


def facts(match: Match, name: str) -> Facts:
    """What is known of what a name stands for; nothing unless it is a constant."""
    return match.build.known(_facts_of, match.ref(name).name) if match.is_tensor(name) else Facts()


def _facts_of(name: str, build: Builder) -> Facts:
    ops = _makers(name, build)
    return Facts() if ops is None else _facts(ops, name)


def _makers(name: str, build: Builder) -> tuple[Op, ...] | None:
    """The ops that compute a value, in order; None if they read anything or are too much work."""
    found: dict[str, Op] = {}
    waiting = [name]
    size = 0
    while waiting:
        op = build.producer(Ref(waiting.pop()))
        if op is None or is_random(op) or any(_is_symbolic(a) for a in (*op.args, *(v for _, v in op.kwargs))):
            return None
        if op.results[0].name in found:
            continue
        for value in op.results:
            found[value.name] = op
            size += value.type.bytes if isinstance(value.type.bytes, int) else _MAX_BYTES + 1
        if size > _MAX_BYTES:
            return None
        waiting.extend(op.operands)
    return tuple(op for op in build.ops if op.results[0].name in found)


def _is_symbolic(arg: Arg) -> bool:
    return any(map(_is_symbolic, arg)) if isinstance(arg, tuple) else isinstance(arg, sympy.Expr)


@lru_cache(maxsize=64)
def _facts(ops: tuple[Op, ...], name: str) -> Facts:
    value = _computed(ops, name)
    seen = None if value is None else _is_seen(value)
    return Facts() if seen is None else Facts(neutral=bool(seen.all()), causal=_is_causal(seen))


def _computed(ops: Sequence[Op], name: str) -> Tensor | None:
    """The value that the ops compute; None unless each of its steps is what it is declared to be, and so as small.

    That is found on the `meta` device, where nothing is computed and no memory is taken.
    """
    from galvatron.ir.interpreter import empty_like_type, run_graph

    steps = [value for op in ops for value in op.results]
    graph = Graph((), (), tuple(ops), tuple(value.name for value in steps))
    try:
        found = run_graph(graph, {}, batch=1, device="meta")
        for value in steps:
            declared = empty_like_type(value.type, 1, "meta")
            if (found[value.name].shape, found[value.name].dtype) != (declared.shape, declared.dtype):
                return None
        return run_graph(replace(graph, outputs=(name,)), {}, batch=1)[name]
    except Exception:  # whatever an op has against its arguments: it is left as it is, and fails where it runs
        return None


def _is_seen(mask: Tensor) -> Tensor | None:
    """Where a mask of bools or of numbers to add lets through; None if it does something else as well."""
    import torch

    if mask.dtype == torch.bool:
        return mask
    if not mask.dtype.is_floating_point or not bool(((mask == 0) | (mask <= torch.finfo(mask.dtype).min)).all()):
        return None
    return mask == 0


def _is_causal(seen: Tensor) -> bool:
    import torch

    if seen.dim() < 2 or seen.shape[-1] != seen.shape[-2]:
        return False
    return torch.equal(seen, torch.ones_like(seen).tril())
