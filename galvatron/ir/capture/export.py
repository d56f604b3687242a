"""`capture_graph`: the model and its loss through `torch.export`, made functional."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from galvatron.errors import CaptureError
from galvatron.ir.capture.batch import Batch, read_batch
from galvatron.ir.capture.convert import Converter
from galvatron.ir.capture.state import state_of, tensor_type_of
from galvatron.ir.graph import Value
from galvatron.ir.program import Form, Program, State
from galvatron.ir.types import BATCH, TensorType

LossFunction = Callable[[Any, Mapping[str, Any]], torch.Tensor]
"""`loss_fn(output, batch) -> scalar`: `output` is what the model returns, `batch` the inputs by forward name."""


@dataclass(frozen=True)
class Captured:
    """A captured program and the data of its constants (tensors that the model made or holds outside its state)."""

    program: Program
    constants: dict[str, torch.Tensor]


def capture_graph(
    model: nn.Module,
    example_inputs: Mapping[str, Any] | tuple[Any, ...],
    *,
    loss_fn: LossFunction | None = None,
) -> Captured:
    """Captures one training computation, from a global batch to the scalar loss, for every batch size.

    Nothing is computed and nothing is allocated for a model on `meta`; weights, gradients, mode and random state of the
    model stay as they are.

    Args:
        model: in the mode (train or eval) in which it is to be captured; real or on `meta`.
        example_inputs: one global batch as a mapping of forward keyword arguments or a tuple of positional ones; real or
            meta tensors, batch on dim 0. Tensors whose dim 0 is not the common batch size are the same for all samples.
        loss_fn: `loss_fn(output, batch) -> scalar` when the model does not return its loss.

    Raises:
        CaptureError: the model cannot be captured; names the source line that is to blame.
    """
    batch = read_batch(model, example_inputs)
    exported = _export(_Training(model, batch.constants, loss_fn), batch)
    return _converted(exported, model, batch)


class _Training(nn.Module):
    """A model with its loss: maps the tensors of a batch to a scalar."""

    def __init__(self, model: nn.Module, constants: Mapping[str, Any], loss_fn: LossFunction | None) -> None:
        super().__init__()
        self.model = model
        self._constants = constants
        self._loss_fn = loss_fn

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = {**batch, **self._constants}
        output = self.model(**inputs)
        return _checked_loss(self._loss_fn(output, inputs) if self._loss_fn else _own_loss(output))


def _own_loss(output: Any) -> Any:
    if isinstance(output, torch.Tensor) and output.dim() == 0:
        return output
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None:
        raise CaptureError(
            f"the model returned no loss (but {_described(output)}): "
            "pass loss_fn(output, batch) -> scalar, or give the model its labels"
        )
    return loss


def _checked_loss(loss: Any) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor) or loss.dim() != 0 or not loss.is_floating_point():
        raise CaptureError(f"the loss is {_described(loss)}: it must be a floating-point tensor without dimensions")
    return loss


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor with {value.dim()} dimensions"
    return f"a {type(value).__name__}"


def _export(training: nn.Module, batch: Batch) -> ExportedProgram:
    samples = torch.export.Dim("B", min=2)
    shapes = {name: {0: samples} if batch.is_batched(name) else {} for name in batch.tensors}
    inputs = batch.stand_ins(_device_of(training))
    with torch.enable_grad(), torch.random.fork_rng():
        exported = torch.export.export(training, (inputs,), strict=False, dynamic_shapes=(shapes,))
        return exported.run_decompositions({})


def _device_of(model: nn.Module) -> torch.device:
    tensor = next(model.parameters(), None)
    tensor = next(model.buffers(), None) if tensor is None else tensor
    return torch.device("cpu") if tensor is None else tensor.device


def _converted(exported: ExportedProgram, model: nn.Module, batch: Batch) -> Captured:
    state = state_of(model)
    name_of = {name: s.name for s in state for name in (s.name, *s.aliases)}
    type_of = {s.name: s.type for s in state}
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    bound: dict[fx.Node, Value] = {}
    constants: dict[str, torch.Tensor] = {}
    names = iter(batch.tensors)
    for spec in exported.graph_signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            name = next(names)
            bound[node] = Value(name, _input_type(name, batch))
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            name = name_of[str(spec.target).removeprefix("model.")]
            bound[node] = Value(name, type_of[name])
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            name = f"constant.{len(constants)}"
            constants[name] = exported.constants[str(spec.target)].detach()
            bound[node] = Value(name, tensor_type_of(constants[name], name))
        else:
            raise CaptureError(f"the model uses {spec.target!r}, an object that cannot be captured")
    inputs = tuple(bound[placeholders[name]] for name in exported.graph_signature.user_inputs)
    graph_state = tuple(dict.fromkeys(v for v in bound.values() if v not in inputs))
    (output,) = (node for node in exported.graph.nodes if node.op == "output")
    loss = output.args[0][_loss_position(exported)]
    graph = Converter(bound, _batch_symbol(placeholders, batch, exported)).graph(loss, inputs, graph_state)
    program = Program(
        name=type(model).__name__,
        form=Form.CAPTURED,
        batch_size=batch.size,
        inputs=inputs,
        state=(*state, *(State(n, type_of_constant, "constant", False) for n, type_of_constant in
                         ((n, tensor_type_of(t, n)) for n, t in constants.items()))),
        output=graph.outputs[0],
        graph=graph,
    )
    return Captured(program, constants)


def _input_type(name: str, batch: Batch) -> TensorType:
    type_ = tensor_type_of(batch.tensors[name], name)
    return type_.with_shape((BATCH, *type_.shape[1:])) if batch.is_batched(name) else type_


def _loss_position(exported: ExportedProgram) -> int:
    return [spec.kind.name for spec in exported.graph_signature.output_specs].index("USER_OUTPUT")


def _batch_symbol(placeholders, batch, exported):
    for name, node_name in zip(batch.tensors, exported.graph_signature.user_inputs):
        if batch.is_batched(name):
            return placeholders[node_name].meta["val"].shape[0].node.expr
