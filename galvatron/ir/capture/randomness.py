"""Random ops that no key can make right on slices are refused when the model is captured."""

from __future__ import annotations

import torch

from galvatron.errors import CaptureError, GalvatronError
from galvatron.ir.capture.sources import located
from galvatron.ir.graph import Graph, Op
from galvatron.ir.interpreter import torch_op
from galvatron.ir.random import RANDOM_OPS


def check_randomness(graph: Graph) -> None:
    """Every op that draws random numbers draws each element by itself.

    Raises:
        CaptureError: one does not (a permutation, the dropout inside an LSTM); names its source line.
    """
    for op in graph.ops:
        if op.target.split(".")[1] not in RANDOM_OPS and _draws(op):
            raise CaptureError(
                f"{located(op.source)}{op.target} draws random numbers that cannot be split over micro-batches and "
                f"ranks; operations that can: {', '.join(sorted(RANDOM_OPS))}"
            )


def _draws(op: Op) -> bool:
    """Whether the op is random as it is called: recurrent networks are only with dropout and in training."""
    try:
        operator = torch_op(op.target)
    except GalvatronError:
        return False
    if torch.Tag.nondeterministic_seeded not in operator.tags:  # type: ignore[attr-defined]  # of an OpOverload
        return False
    names = (argument.name for argument in operator._schema.arguments)  # type: ignore[attr-defined]
    arguments = {**dict(zip(names, op.args, strict=False)), **dict(op.kwargs)}
    return bool(arguments.get("train", True)) and bool(arguments.get("dropout", True))
