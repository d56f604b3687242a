"""Ops that no program contains, or that torch would refuse when they run, are refused when the model is captured."""

from __future__ import annotations

from collections.abc import Iterator

from galvatron.errors import CaptureError
from galvatron.ir.capture.refusals import refuse_first
from galvatron.ir.capture.sources import advice, located
from galvatron.ir.functions import functions_of
from galvatron.ir.graph import Graph, Ref, walk_refs
from galvatron.ir.ops.table import operator_of
from galvatron.ir.text.targets import is_known_target, unknown_target
from galvatron.ir.types import TORCH_DTYPE_NAMES


def check_operators(graph: Graph) -> None:
    """Every op is one that a program may contain and changes nothing, and its indices are whole numbers, which fake
    tensors need not be.

    Raises:
        CaptureError: one is not; names its source line.
    """
    refuse_first(_refusals(graph))


def _refusals(graph: Graph) -> Iterator[CaptureError]:
    values = graph.values
    for function in functions_of([graph]):
        yield from _refusals(function.forward)
        yield from _refusals(function.backward)
    for op in (op for op in graph.ops if op.function is None):
        if not is_known_target(op.target):
            yield CaptureError(f"{located(op.source)}{unknown_target(op.target)}")
            continue
        operator = operator_of(op)
        if op.get(operator.updates) is True and any(isinstance(op[name], Ref) for name in operator.updated):
            own = "leave track_running_stats out, or keep the statistics in a buffer that forward writes"
            yield CaptureError(
                f"{located(op.source)}{op.name} changes running statistics in a way that torch does not trace, so that "
                f"they would be lost: {advice(op.source, own)}"
            )
        for ref in walk_refs(op.arguments.get(operator.indices)):
            type_ = values[ref.name].type
            if operator.probabilities and type_.is_floating:
                continue
            if type_.dtype not in ("i32", "i64", *(("u8", "bool") if operator.masks else ())):
                yield CaptureError(
                    f"{located(op.source)}the indices of {op.target} are of type "
                    f"torch.{TORCH_DTYPE_NAMES[type_.dtype]}: they must be whole numbers, as in x.long()"
                )
