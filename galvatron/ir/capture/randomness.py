"""Random ops that no key can make right on slices are refused when the model is captured."""

from __future__ import annotations

import torch

from galvatron.errors import CaptureError
from galvatron.ir.capture.refusals import refuse_first
from galvatron.ir.capture.sources import located
from galvatron.ir.functions import functions_of
from galvatron.ir.graph import Graph, Op
from galvatron.ir.ops.schemas import is_operator
from galvatron.ir.ops.table import named, operator_of
from galvatron.ir.ops.targets import parsed
from galvatron.ir.random import draws_as_a_whole, is_random


def check_randomness(graph: Graph) -> None:
    """Every op that draws random numbers draws each element by itself.

    Raises:
        CaptureError: one does not (a permutation, the dropout inside an LSTM); names its source line.
    """
    refuse_first(
        CaptureError(
            f"{located(op.source)}{op.target} draws random numbers that cannot be split over micro-batches and "
            f"ranks; operations that can: {', '.join(named(lambda operator: operator.draws))}"
        )
        for op in graph.ops
        if operator_of(op).draws is None and _draws(op)
    )
    refuse_first(
        CaptureError(
            f"{located(op.source)}the autograd function {function.name} draws random numbers, which its backward could "
            "not draw again: draw them outside, and give them to it"
        )
        for function in functions_of([graph])
        for op in (*function.forward.ops, *function.backward.ops)
        if is_random(op) or _draws(op)
    )


def _draws(op: Op) -> bool:
    """Whether the op is random as it is called, be it one that a program may contain or not."""
    return draws_as_a_whole(op) if is_operator(op.target) else _is_tagged(op.target)


def _is_tagged(target: str) -> bool:
    called = parsed(target)
    packet = getattr(getattr(torch.ops, called.namespace), called.name, None)
    operator = getattr(packet, called.overload or "default", None)
    return torch.Tag.nondeterministic_seeded in getattr(operator, "tags", ())
