"""A job's program beside the eager model: loss, gradients and what layers give, with the same values and one batch."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from galvatron.bugs import ours
from galvatron.codegen.load import load_module
from galvatron.codegen.sizes import local_sizes
from galvatron.codegen.stage import emit_stage
from galvatron.debugging.differences import Comparison, Row
from galvatron.debugging.model import first_draw, gradients_of, loss_of_model, state_of
from galvatron.debugging.rounding import Difference, Reference, Rounding, least_norm
from galvatron.debugging.widened import SINGLE, WIDE, widened
from galvatron.errors import GalvatronError
from galvatron.forms import lowered
from galvatron.ir.capture import LossFunction, device_of
from galvatron.ir.graph import Op
from galvatron.ir.inlined import inlined
from galvatron.ir.interpreter import run_graph
from galvatron.ir.program import LayerKind, Program, Result
from galvatron.ir.types import TORCH_DTYPE_NAMES
from galvatron.plain import plain_torch
from galvatron.runtime import Executor, World, comm, failure, together
from galvatron.runtime.agreement import on_rank_0
from galvatron.runtime.giving import LayerResults

Types = tuple[torch.dtype, Mapping[str, str]]
"""A type to compute in, and those of a graph that become it."""

DOUBLE: Types = (torch.float64, WIDE)
FLOAT: Types = (torch.float32, SINGLE)


def _types_of(dtype: torch.dtype) -> tuple[Types, ...]:
    """Those in which eager shows what rounding makes of a program that computes in a type: the same, or where eager
    cannot run in that, or is no less exact than the reference, float32."""
    if dtype in (torch.float32, torch.float64):
        return (FLOAT,)
    name = next(name for name, attribute in TORCH_DTYPE_NAMES.items() if getattr(torch, attribute) == dtype)
    return (dtype, {**SINGLE, "f32": name, "f64": name}), FLOAT


@dataclass(frozen=True)
class Given:
    """What is compared on: a batch, as forward is called with it and as the program reads it, and the loss of what
    forward returns."""

    model: nn.Module
    loss_fn: LossFunction | None
    arguments: Mapping[str, Any]
    values: Mapping[str, Tensor | int | float]
    samples: int

    @property
    def numbers(self) -> dict[str, int | float]:
        """Of the values those that are no tensors: numbers of the batch, and its lengths."""
        return {name: value for name, value in self.values.items() if not isinstance(value, Tensor)}


@dataclass(frozen=True)
class Job:
    """What is compared: the planned program that this rank's stages were made of, and `run`, its `forward_backward` of
    what is given."""

    world: World
    executor: Executor
    program: Program
    run: Callable[[], Tensor]
    cache_dir: str | os.PathLike[str] | None


def check_comparable(model: Any, layers: Any, program: Program, *, computes: bool) -> None:
    """
    Args:
        computes: the model is called on this rank.

    Raises:
        GalvatronError: an argument is wrong, or nothing can be said of the program, since it draws random numbers.
    """
    if not isinstance(model, nn.Module):
        raise GalvatronError(f"a program is compared with the model that was compiled, not {type(model).__name__}")
    if not isinstance(layers, bool):
        raise GalvatronError(f"layers must be True or False, not {layers!r}")
    if computes and device_of(model).type == "meta":
        raise GalvatronError("the model is on the meta device, where nothing can be computed: give it one of values")
    ops = (op for cls in program.classes for op in cls.graph.ops)
    if (draw := first_draw(ops)) is not None:
        raise GalvatronError(
            f"forward draws random numbers ({_line(draw) or draw.target}), others on one device than on several ranks: "
            "compile the model without dropout to compare it"
        )


def compared(job: Job, given: Given, *, layers: bool) -> Comparison:
    """Both computations, tensor by tensor. Collective; eager runs on rank 0.

    Args:
        layers: compare what these give, too.

    Raises:
        GalvatronError: the model is another one than was compiled, or fails.
    """
    with job.executor.undisturbed():  # which is over when nothing holds what was computed
        rows = _rows(job, given, layers=layers)
    found = Comparison(rows, str(_dtype(job.program)).removeprefix("torch."))
    return comm.broadcast_object(found, comm.all_ranks(), 0, phase="compare") if job.world.size > 1 else found


def _rows(job: Job, given: Given, *, layers: bool) -> tuple[Row, ...]:
    """What is compared, on rank 0."""
    with failure.guarded("compare_with"):
        state = dict(job.executor.held_tensors())
    eager = on_rank_0(job.world, "compare_with", lambda: _eager(job.program, given, state, layers=layers))
    with together(job.world, "compare_with"), plain_torch(job.world.device):
        results = _results(job, given) if layers else None
    rows: list[Row] = []
    with nullcontext() if results is None else results.kept():
        loss = job.run()
    with failure.guarded("compare_with"):
        for name, value in () if results is None else results.whole(given.samples):
            rows += [] if eager is None else eager.output(name, value)
        for name, value in job.executor.gradients(rank0_only=True):
            rows += [] if eager is None else [eager.gradient(name, value)]
    return () if eager is None else tuple(eager.in_order([*rows, eager.of_loss(loss)]))


def _dtype(planned: Program) -> torch.dtype:
    return getattr(torch, TORCH_DTYPE_NAMES[planned.compute_dtype])


@dataclass(frozen=True)
class _Computed:
    """What eager computes, in float64 and in another type, and what is known of it."""

    loss: Reference
    gradients: Mapping[str, Reference]
    outputs: Mapping[str, Reference]
    places: _Places
    rounding: Rounding

    def of_loss(self, loss: Tensor) -> Row:
        """The loss of the program."""
        return _row(self.loss.beside(loss, self.rounding), "loss")

    def gradient(self, name: str, value: Tensor) -> Row:
        """A gradient: one that is zero in exact arithmetic is nothing but rounding, so all have some size."""
        off = self.gradients[name].beside(value, self.rounding, self._least)
        return _row(off, "gradient", name, *self.places.readers.get(name, ("", "")))

    @cached_property
    def _least(self) -> float:
        return least_norm(eager.wanted for eager in self.gradients.values())

    def output(self, name: str, value: Tensor) -> list[Row]:
        """What a layer gives, if that is a floating number."""
        if name not in self.outputs:
            return []
        return [_row(self.outputs[name].beside(value, self.rounding), "output", name, *self.places.makers[name])]

    def in_order(self, rows: list[Row]) -> list[Row]:
        """As a step computes them."""
        kinds, layers = ("output", "loss", "gradient"), {name: place for place, name in enumerate(self.places.layers)}

        def order(row: Row) -> tuple[int, int]:
            place = layers.get(row.layer, 0)
            return kinds.index(row.what), -place if row.what == "gradient" else place

        return sorted(rows, key=order)


def _row(off: Difference, what: str, name: str = "", layer: str = "", line: str = "") -> Row:
    return Row(off.difference, off.rounding, what, name, layer, line)


@dataclass(frozen=True)
class _Places:
    """The layers of a program, and by name which of them first reads a piece of state, and makes a value, and where."""

    layers: tuple[str, ...]
    readers: Mapping[str, tuple[str, str]]
    makers: Mapping[str, tuple[str, str]]

    @staticmethod
    def of(program: Program) -> _Places:
        readers: dict[str, tuple[str, str]] = {}
        makers: dict[str, tuple[str, str]] = {}
        for layer in program.all_layers:
            graph = program.class_of[layer.cls].graph
            reading = {name: op for op in reversed(graph.ops) for name in op.operands}
            for formal, name in zip(graph.state, layer.state, strict=True):
                readers.setdefault(name, (layer.name, _line(reading.get(formal.name))))
            for formal, name in zip(graph.outputs, layer.results, strict=True):
                makers[name] = layer.name, _line(graph.producers.get(formal))
        return _Places(tuple(layer.name for layer in program.all_layers), readers, makers)


def _line(op: Op | None) -> str:
    return "" if op is None or op.source is None else f"{op.source}  {op.source.code}".rstrip()


def _eager(planned: Program, given: Given, state: Mapping[str, Tensor], *, layers: bool) -> _Computed:
    """What the model computes with the values of the program, in float64 and as rounding makes it."""
    dtype = _dtype(planned)
    with plain_torch(device_of(given.model)):
        wide = _run(planned, given, state, DOUBLE, layers=layers)
        for types in _types_of(dtype):
            try:
                narrow = _run(planned, given, state, types, layers=layers)
                break
            except GalvatronError:
                if types is FLOAT:
                    raise
    return _Computed(
        Reference(wide.loss, narrow.loss),
        {name: Reference(gradient, narrow.gradients[name]) for name, gradient in wide.gradients.items()},
        {name: Reference(value, narrow.outputs[name]) for name, value in wide.outputs.items()},
        _Places.of(planned),
        Rounding.of(dtype, types[0]),
    )


@dataclass(frozen=True)
class _Run:
    """What eager computes in one type."""

    loss: Tensor
    gradients: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def _run(planned: Program, given: Given, state: Mapping[str, Tensor], types: Types, *, layers: bool) -> _Run:
    loss, gradients = _of_model(planned, given, state, types[0])
    return _Run(loss, gradients, _of_layers(planned, given, state, types) if layers else {})


def _of_model(
    planned: Program, given: Given, state: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a copy of the model."""
    try:
        model = copy.deepcopy(given.model).to(dtype)
        own = state_of(model)
        for held in planned.state:
            if held.kind != "constant" and held.name in state:
                _copy(own.get(held.name), state[held.name], held.name)
        inputs = {name: _cast(value, dtype, device_of(model)) for name, value in given.arguments.items()}
        with torch.autocast(device_of(model).type, enabled=False):
            loss = loss_of_model(model, inputs, given.loss_fn)
        trained = {held.name: own[held.name] for held in planned.state if held.trainable}
        return loss.detach(), gradients_of(loss, trained)
    except GalvatronError:
        raise
    except Exception as error:  # whatever the model does
        raise GalvatronError(f"the model itself fails in {dtype}: {type(error).__name__}: {error}") from error


def _copy(own: Tensor | None, value: Tensor, name: str) -> None:
    if own is None or own.shape != value.shape:
        raise GalvatronError(
            f"the model has no {name!r} of shape {tuple(value.shape)}, which the program reads: compare the program "
            "with the model that was compiled"
        )
    with torch.no_grad():
        own.copy_(value)


def _cast(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().to(device, dtype if value.is_floating_point() else value.dtype)


def _of_layers(planned: Program, given: Given, state: Mapping[str, Tensor], types: Types) -> dict[str, Tensor]:
    """What layers give each other, computed op by op as the program was captured."""
    dtype, become = types
    device = device_of(given.model)
    graph = widened(inlined(planned), become)
    names = tuple(name for name, _ in _given_on(planned) if name in graph.values)
    names = tuple(name for name in names if graph.values[name].type.is_floating)
    tensors = {n: _cast(v, dtype, device) for n, v in (*state.items(), *given.values.items()) if isinstance(v, Tensor)}
    numbers = given.numbers
    lengths = {length: int(numbers[length.name]) for length in planned.lengths}
    own = {number.name: numbers[number.name] for number in planned.numbers}
    with torch.no_grad(), ours("running the captured program", planned):
        graph = replace(graph, outputs=names)
        return run_graph(graph, tensors, batch=given.samples, numbers=own, lengths=lengths, device=device)


def _given_on(program: Program) -> Iterator[tuple[str, str]]:
    """The results of layers that other layers read, and what they were called before the program was sharded."""
    read = {name for layer in program.all_layers for name in layer.operands}
    for layer in program.all_layers:
        if layer.kind is LayerKind.PLANNED:
            pairs = zip(layer.results, layer.origin or layer.results, strict=True)
            yield from ((name, origin) for name, origin in pairs if name in read)


def _results(job: Job, given: Given) -> LayerResults:
    """What layers of this rank's stages give each other. How each is made whole is said by the code of the same stages
    in a program that has them all for outputs."""
    staged, stages = lowered(job.program), job.executor.stages
    results = {origin: name for name, origin in _given_on(staged)}
    giving = replace(staged, outputs=tuple(Result(origin, name) for origin, name in results.items()))
    sizes = local_sizes(giving)
    wanted = {}
    for stage in stages:
        text = emit_stage(giving, giving.stages[stage.index], sizes)
        twin = load_module(f"stage_{stage.index}.py", text, job.cache_dir).Stage(stage.mesh)
        twin.numbers = given.numbers
        wanted[stage.index] = {name: tuple(layer.outputs) for name, layer in twin.layers.items() if layer.outputs}
    return LayerResults(stages, wanted)
