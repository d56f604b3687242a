"""The element type that an op really gives: torch is asked, on tensors without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from galvatron.ir.graph import Op
from galvatron.ir.types import TORCH_DTYPE_NAMES, TensorType, evaluate

_SAMPLES = 2


def gives_its_type(op: Op, types: Mapping[str, TensorType]) -> bool:
    """Whether an op on operands of these types gives what it says, for every mix of types that torch takes."""
    names = {name: f"x{i}" for i, name in enumerate(dict.fromkeys(op.operands))}
    operands = tuple((short, types[name]) for name, short in names.items())
    return _dtype(replace(op.map_refs(names.__getitem__), source=None), operands) == op.result.type.dtype


@lru_cache(maxsize=4096)
def _dtype(op: Op, operands: tuple[tuple[str, TensorType], ...]) -> str | None:
    """The element type of the result, None where torch refuses the operands."""
    import torch

    from galvatron.ir.graph import Graph, Value
    from galvatron.ir.interpreter import run_graph

    def empty(type_: TensorType) -> torch.Tensor:
        shape = [evaluate(d, _SAMPLES) for d in type_.shape]
        return torch.empty(shape, dtype=getattr(torch, TORCH_DTYPE_NAMES[type_.dtype]), device="meta")

    graph = Graph(tuple(Value(*operand) for operand in operands), (), (op,), (op.result.name,))
    try:
        result = run_graph(graph, {name: empty(type_) for name, type_ in operands}, batch=_SAMPLES)[op.result.name]
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None
    return next((name for name, n in TORCH_DTYPE_NAMES.items() if getattr(torch, n) == result.dtype), None)
