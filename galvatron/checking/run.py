"""A captured program run on the example batch, beside the model itself: what both compute of it must be the same.

Capture cannot see everything: a model may ask in ways of its own whether it is traced, or read what is no tensor. What
it computes of one batch is no proof for others, but where the program computes something else, it is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from galvatron.checking.found import Run
from galvatron.debugging.comparison import distance, finite_norm
from galvatron.errors import GalvatronError
from galvatron.ir.capture import Captured, LossFunction, device_of, loss_of, unchanged
from galvatron.ir.capture.batch import Batch
from galvatron.ir.interpreter import run_graph
from galvatron.ir.program import Program
from galvatron.ir.random import draws_as_a_whole, is_random
from galvatron.ir.types import TORCH_DTYPE_NAMES

_SMALL = 0.01
"""A gradient below this share of the norm of all is compared as if it were that large: one that is zero in exact
arithmetic (the bias of attention keys) is nothing but rounding on both sides."""

Computed = dict[str, Tensor]
"""The loss, gradients, and state that was written, by what they are called in a report."""


def check_has_values(model: nn.Module, batch: Batch, precision: str | None) -> None:
    """Sees that there is something to compute with.

    Raises:
        GalvatronError: a parameter, a buffer or an input has none, which it names; or under a `precision`, since no
            model that computes in it is there to compare with.
    """
    if precision is not None:
        raise GalvatronError(f"run: the model itself does not compute in {precision}: leave out precision, or the run")
    for what, tensors in (
        ("parameter", model.named_parameters()),
        ("buffer", model.named_buffers()),
        ("example input", batch.tensors.items()),
    ):
        for name, tensor in tensors:
            if tensor.is_meta or isinstance(tensor, FakeTensor):
                raise GalvatronError(
                    f"run: {what} {name!r} is on the meta device or fake, without values to compute with: give the "
                    "model real weights and a real batch, or leave the run out"
                )


def compared_with_eager(model: nn.Module, batch: Batch, loss_fn: LossFunction | None, captured: Captured) -> Run:
    """What a captured program and its model compute of the example batch. The model stays as it is.

    Args:
        batch: with values, as the model (`check_has_values`).
    """
    program = captured.program
    drawing = (op for op in program.required_graph.ops if is_random(op) or draws_as_a_whole(op))
    if (draw := next(drawing, None)) is not None:
        line = "" if draw.source is None else f" at {draw.source}: `{draw.source.code}`"
        return Run(f"forward draws random numbers ({draw.name}{line}), others each time; switch dropout off to compare")
    if batch.size not in program.batch_sizes:
        return Run(f"the program is for batches {program.batch_sizes}, and the example has {batch.size} samples")
    with _as_before(model):
        try:
            eager = _of_model(model, batch, loss_fn, program)
        except Exception as error:
            return Run(f"the model itself fails on the example batch: {type(error).__name__}: {error}")
    found = _of_program(model, batch, captured)
    sizes = {name: finite_norm(value) for name, value in eager.items()}
    least = _SMALL * sum(size**2 for name, size in sizes.items() if name.startswith(_GRADIENT)) ** 0.5
    differences = {
        name: distance(found[name], value, max(sizes[name], least if name.startswith(_GRADIENT) else 0.0))
        for name, value in eager.items()
    }
    where = max(differences, key=lambda name: differences[name])
    return Run(
        loss=found["loss"].item(),
        eager_loss=eager["loss"].item(),
        compared=len(eager),
        difference=differences[where],
        where=where,
        tolerance=_tolerance(program),
    )


def _of_model(model: nn.Module, batch: Batch, loss_fn: LossFunction | None, program: Program) -> Computed:
    inputs = _inputs(batch)
    loss = loss_of(model(**inputs), inputs, loss_fn)
    after = _state(model)
    written = {update.state: after[update.state].detach().clone() for update in program.updates}
    return _computed(loss, written, program, after)


def _of_program(model: nn.Module, batch: Batch, captured: Captured) -> Computed:
    program, device, own = captured.program, device_of(model), _state(model)
    constants = {name: tensor.to(device) for name, tensor in captured.constants.items()}
    held = [state for state in program.state if state.kind != "constant"]
    state = {s.name: own[s.name] if s.trainable else own[s.name].detach() for s in held}
    tensors = {value.name: batch.tensors[value.name].detach().clone() for value in program.inputs}
    with torch.autocast(device.type, enabled=False):  # the program says itself what it casts
        graph, values = program.required_graph, {**state, **constants, **tensors}
        found = run_graph(graph, values, batch=batch.size, numbers=batch.numbers, device=device)
        written = {u.state: own[u.state] + found[u.value] if u.adds else found[u.value] for u in program.updates}
        return _computed(found[program.output], written, program, own)


def _computed(loss: Tensor, written: Mapping[str, Tensor], program: Program, state: Mapping[str, Tensor]) -> Computed:
    trained = {s.name: state[s.name] for s in program.state if s.trainable}
    found = torch.autograd.grad(loss, [*trained.values()], allow_unused=True) if loss.requires_grad else [None]
    pairs = zip(trained, found, strict=False)
    gradients = {f"{_GRADIENT}{n!r}": torch.zeros_like(trained[n]) if g is None else g for n, g in pairs}
    return {"loss": loss.detach(), **gradients, **{f"what {n!r} becomes": t.detach() for n, t in written.items()}}


_GRADIENT = "the gradient of "


def _inputs(batch: Batch) -> dict[str, Any]:
    """What forward is called with; it may write into tensors."""
    return {
        **{name: tensor.detach().clone() for name, tensor in batch.tensors.items()},
        **batch.constants,
        **batch.numbers,
    }


def _state(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """After the `with` block the model and torch's random numbers are what they were, whatever forward does."""
    before = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    device = device_of(model)
    try:
        with unchanged(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for tensor, value in before:
                if not torch.equal(tensor, value):  # not every kernel counts a change
                    tensor.copy_(value)


def _tolerance(program: Program) -> float:
    """The square root of the precision of the least precise type in which the program computes."""
    dtypes = {type_.dtype for type_ in program.required_graph.types.values() if type_.is_floating}
    return max(torch.finfo(getattr(torch, TORCH_DTYPE_NAMES[dtype])).eps for dtype in dtypes) ** 0.5
