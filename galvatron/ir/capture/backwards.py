"""That operators of other libraries give the gradients that are asked of them.

Torch's own do. Of others a program would find out where it is trained; and an optimizer does other things with a
parameter without a gradient than with one whose gradient is zero.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from galvatron.errors import CaptureError
from galvatron.ir.capture.refusals import refuse_first
from galvatron.ir.capture.sources import advice, located
from galvatron.ir.fakes import described
from galvatron.ir.graph import Graph, Op, Ref
from galvatron.ir.interpreter import empty_like_type, evaluated, torch_op
from galvatron.ir.ops.foreign import is_foreign, qualified
from galvatron.ir.ops.table import differentiated
from galvatron.ir.types import TensorType

_OWN = "register one for each operand with register_autograd, or detach the operands that are meant to have none"


def check_backwards(graph: Graph, trained: Container[str], reached: Container[str], batch: int) -> None:
    """Runs the backward of the operators of other libraries on fake tensors.

    Args:
        trained: the state that is trained.
        reached: the values that the loss has a gradient of.
        batch: for how many samples they are run.

    Raises:
        CaptureError: one fails, or gives an operand no gradient that needs one; names the line.
    """
    refuse_first(_wrong(graph, trained, reached, batch))


def _wrong(graph: Graph, trained: Container[str], reached: Container[str], batch: int) -> Iterator[CaptureError]:
    wanting = {value.name for value in graph.state if value.name in trained}
    types = {name: value.type for name, value in graph.values.items()}
    for op in graph.ops:
        operands = [name for name in differentiated(op) if name in wanting]
        results = [place for place, value in enumerate(op.results) if value.type.is_floating]
        if operands:
            wanting.update(op.results[place].name for place in results)
        asked = [place for place in results if op.results[place].name in reached]
        if not (operands and asked and is_foreign(op.target)):
            continue
        if problem := _problem(op, types, operands, asked, batch):
            what = f"{qualified(op.target)} {problem}, which training needs"
            yield CaptureError(f"{located(op.source)}{what}: {advice(op.source, _OWN)}")


def _problem(op: Op, types: Mapping[str, TensorType], operands: Sequence[str], asked: Sequence[int], batch: int) -> str:
    """What is wrong with the backward of an op, from its results at some places to some of its operands."""
    with FakeTensorMode(allow_fallback_kernels=False), described(), torch.enable_grad():
        read = {name: empty_like_type(types[name], batch) for name in op.operands}
        wanted = [read[name].requires_grad_() for name in operands]
        args, kwargs = evaluated(op, read, batch)
        try:
            out = torch_op(op.target)(*args, **kwargs)
            results = [out[place] for place in asked] if isinstance(out, (tuple, list)) else [out]
            given = [result for result in results if result.requires_grad]
            if not given:
                return "has no backward"
            ones = [torch.ones_like(result) for result in given]
            found = torch.autograd.grad(given, wanted, ones, allow_unused=True)
        except Exception as error:  # whatever a backward of the user's raises
            return f"has no backward that runs ({type(error).__name__}: {str(error).strip()})"
    parameter = {arg.name: name for name, arg in op.arguments.items() if isinstance(arg, Ref)}
    lacking = [parameter.get(name, name) for name, gradient in zip(operands, found, strict=True) if gradient is None]
    return f"gives {' and '.join(map(repr, lacking))} no gradient" if lacking else ""
