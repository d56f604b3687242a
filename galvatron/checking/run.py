"""A captured program run on the example batch, beside the model itself: what both compute of it must be the same.

Capture cannot see everything: a model may ask in ways of its own whether it is traced, or read what is no tensor. What
it computes of one batch is no proof for others, but where the program computes something else, it is wrong. Both
compute in the model's own types, where what is decided by values falls alike, such as which expert a token is sent to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from galvatron.checking.found import Run
from galvatron.debugging.model import first_draw, gradients_of, loss_of_model, state_of
from galvatron.debugging.rounding import Reference, Rounding, least_norm
from galvatron.debugging.running import callers_of
from galvatron.errors import GalvatronError
from galvatron.ir.capture import Captured, LossFunction, device_of, unchanged
from galvatron.ir.capture.batch import Batch
from galvatron.ir.interpreter import run_graph
from galvatron.ir.program import Program
from galvatron.ir.types import TORCH_DTYPE_NAMES

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
    if (draw := first_draw(program.required_graph.ops)) is not None:
        line = "" if draw.source is None else f" at {draw.source}: `{draw.source.code}`"
        return Run(f"forward draws random numbers ({draw.name}{line}), others each time; switch dropout off to compare")
    if batch.size not in program.batch_sizes:
        return Run(f"the program is for batches {program.batch_sizes}, and the example has {batch.size} samples")
    with _as_before(model):
        try:
            eager = _of_model(model, batch, loss_fn, program)
        except Exception as error:
            return Run(f"the model itself fails on the example batch: {type(error).__name__}: {error}")
    found, rounded = (_of_program(model, batch, captured, rounded=own) for own in (False, True))
    rounding = _rounding(program)
    least = least_norm(value for name, value in found.items() if name.startswith(_GRADIENT))
    off = {
        name: Reference(value, rounded[name]).beside(eager[name], rounding, least * name.startswith(_GRADIENT))
        for name, value in found.items()
    }
    where = max(off, key=lambda name: off[name].difference / off[name].tolerance)
    return Run(
        loss=found["loss"].item(),
        eager_loss=eager["loss"].item(),
        compared=len(eager),
        difference=off[where].difference,
        where=where,
        tolerance=off[where].tolerance,
    )


def _of_model(model: nn.Module, batch: Batch, loss_fn: LossFunction | None, program: Program) -> Computed:
    loss = loss_of_model(model, {**batch.tensors, **batch.constants, **batch.numbers}, loss_fn)
    after = state_of(model)
    written = {update.state: after[update.state].detach().clone() for update in program.updates}
    return _computed(loss, written, program, after)


def _of_program(model: nn.Module, batch: Batch, captured: Captured, *, rounded: bool) -> Computed:
    """What the program computes, or what another rounding makes of that."""
    program, device, own = captured.program, device_of(model), state_of(model)
    constants = {name: tensor.to(device) for name, tensor in captured.constants.items()}
    held = [state for state in program.state if state.kind != "constant"]
    state = {s.name: own[s.name] if s.trainable else own[s.name].detach() for s in held}
    tensors = {value.name: batch.tensors[value.name].detach().clone() for value in program.inputs}
    with torch.autocast(device.type, enabled=False):  # the program says itself what it casts
        graph, values = program.required_graph, {**state, **constants, **tensors}
        callers = callers_of(graph, rounded=rounded)
        found = run_graph(graph, values, batch=batch.size, numbers=batch.numbers, device=device, callers=callers)
        written = {u.state: own[u.state] + found[u.value] if u.adds else found[u.value] for u in program.updates}
        return _computed(found[program.output], written, program, own)


def _computed(loss: Tensor, written: Mapping[str, Tensor], program: Program, state: Mapping[str, Tensor]) -> Computed:
    trained = {s.name: state[s.name] for s in program.state if s.trainable}
    gradients = {f"{_GRADIENT}{name!r}": gradient for name, gradient in gradients_of(loss, trained).items()}
    return {"loss": loss.detach(), **gradients, **{f"what {n!r} becomes": t.detach() for n, t in written.items()}}


_GRADIENT = "the gradient of "


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


def _rounding(program: Program) -> Rounding:
    """That of the least precise type in which the program computes."""
    dtypes = {type_.dtype for type_ in program.required_graph.types.values() if type_.is_floating}
    return Rounding.of(max((getattr(torch, TORCH_DTYPE_NAMES[d]) for d in dtypes), key=lambda d: torch.finfo(d).eps))
