"""Whether a model computes in each step what it computes in the first: what forward assigns to the model and reads
again in the next step would be lost, since a program keeps nothing but its parameters and buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from galvatron.errors import CaptureError
from galvatron.ir.graph import Graph, Op


class Assignments:
    """What forward assigns to attributes of a model while it is traced, by name.

    With `again` it is called a second time, on what the first call has left, and the second result is what counts.
    """

    def __init__(self, *, again: bool = False) -> None:
        self.again = again
        self.names: tuple[str, ...] = ()

    def watched(self, model: nn.Module, forward: Callable[[], Any]) -> Any:
        """The result of a forward."""
        before = _attributes(model)
        result = forward()
        after = _attributes(model)
        self.names = tuple(name for name in after if name not in before or not _is_same(before[name], after[name]))
        return forward() if self.again else result


def _attributes(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module, and what is in its dictionaries and lists, by name."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for key, value in module.__dict__.items():
            name = f"{path}.{key}" if path else key
            if key in ("_buffers", "_parameters"):
                found.update((f"{path}.{own}" if path else own, item) for own, item in value.items())
            elif isinstance(value, dict):
                found.update((f"{name}[{own!r}]", item) for own, item in value.items())
            elif isinstance(value, (list, tuple)):
                found.update((f"{name}[{position}]", item) for position, item in enumerate(value))
            else:
                found[name] = value
    return found


def _is_same(before: Any, after: Any) -> bool:
    is_plain = type(before) is type(after) and type(after) in (bool, int, float, str)
    return before is after or (is_plain and before == after)


def check_assigned_buffers(model: nn.Module, names: tuple[str, ...]) -> None:
    """Refuses new values for buffers that belong to the model's state.

    Raises:
        CaptureError: names the buffer.
    """
    kept = model.state_dict(keep_vars=True).keys()
    for name in names:
        if name in kept:
            raise CaptureError(
                f"the model assigns its own {name!r} in forward, which would be lost: keep it constant, or update it "
                "outside of the model"
            )


def check_repeats(first: Graph, again: Graph | None, names: tuple[str, ...]) -> None:
    """Refuses a model whose second forward computes something else than its first.

    Raises:
        CaptureError: names what it assigns.
    """
    known: dict[object, int] = {}
    if again is None or _numbers(first, known) != _numbers(again, known):
        raise CaptureError(
            f"the model assigns {', '.join(map(repr, names[:5]))} in forward and reads it in the next step, which "
            "would be lost: keep it constant, or give it as an input of the batch"
        )


def _numbers(graph: Graph, known: dict[object, int]) -> tuple[int, ...]:
    """The outputs as numbers: equal ones for what is computed alike from the same inputs and state."""
    numbers = {v.name: known.setdefault(v.name, len(known)) for v in (*graph.inputs, *graph.state)}
    for op in graph.ops:
        alike: Op = replace(op.map_refs(lambda name: str(numbers[name])), results=())
        for position, value in enumerate(op.results):
            numbers[value.name] = known.setdefault((alike, position, value.type), len(known))
    return tuple(numbers[name] for name in graph.outputs)
