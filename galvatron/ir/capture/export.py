"""`capture_graph`: the model and its loss through `torch.export`, made functional."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from galvatron.errors import CaptureError
from galvatron.ir.capture.arithmetic import computed_once
from galvatron.ir.capture.asked import as_in_eager
from galvatron.ir.capture.batch import Batch, BatchDims, Dynamic, Place, read_batch
from galvatron.ir.capture.bins import StatedBins
from galvatron.ir.capture.branches import choosing
from galvatron.ir.capture.checks import Noted, noting
from galvatron.ir.capture.constants import ConstantsHaveValues, FixedBuffers
from galvatron.ir.capture.convert import converted
from galvatron.ir.capture.copies import write_copies
from galvatron.ir.capture.derivatives import write_derivatives
from galvatron.ir.capture.diagnose import SizeWatch, explained, quiet
from galvatron.ir.capture.evaluation import in_evaluation
from galvatron.ir.capture.functional import functional
from galvatron.ir.capture.gradients import GradientsFollowTheValues, OnlyRegisteredAreTrained
from galvatron.ir.capture.hooks import check_hooks
from galvatron.ir.capture.leftovers import no_leftovers
from galvatron.ir.capture.lengths import FixedLengthError
from galvatron.ir.capture.lists import repeating_lists
from galvatron.ir.capture.losses import LossFunction, loss_of
from galvatron.ir.capture.operators import check_operators
from galvatron.ir.capture.outputs import Outputs, chosen, names_of
from galvatron.ir.capture.precision import ComputeType, ProductsOfOneType, rounded
from galvatron.ir.capture.randomness import check_randomness
from galvatron.ir.capture.regions import dissolve_regions
from galvatron.ir.capture.registered import few_registrations
from galvatron.ir.capture.repeat import StepsUnlikeError, repeated, single_sample
from galvatron.ir.capture.restore import unchanged
from galvatron.ir.capture.samples import find_samples, free_sizes
from galvatron.ir.capture.siblings import repeated_modules
from galvatron.ir.capture.stand_ins import all_on_meta, device_of
from galvatron.ir.capture.tracing import careful_tracing, refusing, unseeded
from galvatron.ir.capture.turns import Turns
from galvatron.ir.capture.ways import UnlikeError, both_ways
from galvatron.ir.fakes import described
from galvatron.ir.program import Program
from galvatron.ir.types import TORCH_DTYPE_NAMES


@dataclass(frozen=True)
class Captured:
    """A captured program and the data of its constants (tensors that the model made or holds outside its state).

    `fixed` names the buffers of whose values the program is made (`galvatron.ir.capture.constants`).
    """

    program: Program
    constants: dict[str, torch.Tensor]
    fixed: frozenset[str] = frozenset()


def capture_graph(
    model: nn.Module,
    example_inputs: Mapping[str, Any] | tuple[Any, ...],
    *,
    loss_fn: LossFunction | None = None,
    precision: str | None = None,
    batch_dims: BatchDims | None = None,
    dynamic: Dynamic | None = None,
    outputs: Outputs = (),
    checks: bool = True,
) -> Captured:
    """Captures one training computation, from a global batch to the scalar loss, for every batch size.

    A model that branches on the batch size is captured for the sizes on the example's side of the branch.

    Nothing is computed and nothing is allocated for a model on `meta`; weights, gradients, mode and random state of the
    model stay as they are.

    Args:
        model: in the mode (train or eval) in which it is to be captured; real or on `meta`.
        example_inputs: one global batch as a mapping of forward keyword arguments or a tuple of positional ones; real
            or meta tensors, batch on dim 0. A tensor whose dim 0 is not the common batch size, or whose size
            the model fixes, is the same for all samples. Flags (bool, int, float, str, None) are taken as constants,
            but for the numbers that are `dynamic`.
        loss_fn: `loss_fn(output, batch) -> scalar` when the model does not return its loss.
        precision: the element type in which parameters take part in compute, one of `program.PRECISIONS`: the model is
            captured as if it had been converted to it, but for its floating buffers, which are converted only when it
            cannot be captured otherwise. None keeps every type.
        dynamic: the inputs that are numbers which may be others in every step, and the sizes that may, or of which it
            is asked whether they may.
        outputs: what the program gives besides the loss, see `galvatron.ir.capture.outputs`.
        checks: whether checks of values that the model makes are part of the program (`galvatron.ir.capture.checks`).

    Raises:
        CaptureError: the model cannot be captured; names the source line that is to blame.
    """
    batch = read_batch(model, example_inputs, batch_dims, dynamic)
    check_hooks(model)
    wanted = _Wanted(outputs, checks)
    if not batch.asked:
        return _in_precision(model, batch, loss_fn, precision, wanted)
    free = _sizes_left_free(_Training(model, batch, loss_fn, None, wanted, _Noted(FixedBuffers(model))), batch)
    while True:
        try:
            return _in_precision(model, replace(batch, free={**batch.free, **free}), loss_fn, precision, wanted)
        except CaptureError as error:
            if not free:
                raise
            to_blame = error.__cause__.length if isinstance(error.__cause__, FixedLengthError) else None
            if to_blame is None and (fewer := _as_in_example(free, batch)) != free:
                free = fewer  # the model holds where some of them are related, and equal they are in the example
                continue
            given_up = to_blame if to_blame in free.values() else [*free.values()][-1]
            free = {place: name for place, name in free.items() if name != given_up}


def _sizes_left_free(training: _Training, batch: Batch) -> dict[Place, str]:
    """Names for the sizes that a model leaves free of the tensors that are asked about: all at once, or where it cannot
    be traced so, those of one size in the example at a time."""

    def left_free(places: Sequence[Place]) -> dict[Place, str]:
        alone = {place: f"{place[0]}.{place[1]}" for place in places}
        return free_sizes(_exported(training, replace(batch, free={**batch.free, **alone})), batch, places)

    places = batch.possible_lengths()
    with contextlib.suppress(Exception):
        return left_free(places)
    found: dict[Place, str] = {}
    for size in dict.fromkeys(batch.tensors[name].shape[dim] for name, dim in places):
        with contextlib.suppress(Exception):
            alike = left_free([(name, dim) for name, dim in places if batch.tensors[name].shape[dim] == size])
            found |= {place: f"{name}_{size}" for place, name in alike.items()}
    return found


def _as_in_example(free: dict[Place, str], batch: Batch) -> dict[Place, str]:
    """One name for all sizes that are equal in the example."""
    names: dict[int, str] = {}
    return {(name, dim): names.setdefault(batch.tensors[name].shape[dim], own) for (name, dim), own in free.items()}


def _in_precision(
    model: nn.Module, batch: Batch, loss_fn: LossFunction | None, precision: str | None, wanted: _Wanted
) -> Captured:
    """The capture of a model whose parameters take part in compute in another type, where `precision` says so."""
    if precision is None:
        return _captured(model, batch, loss_fn, None, wanted)
    dtype = getattr(torch, TORCH_DTYPE_NAMES[precision])
    try:
        with rounded(model, dtype, buffers=False):
            return _captured(model, batch, loss_fn, precision, wanted)
    except CaptureError:
        if not any(buffer.is_floating_point() for buffer in model.buffers()):
            raise
        with contextlib.suppress(CaptureError), rounded(model, dtype, buffers=True):
            return _captured(model, batch, loss_fn, precision, wanted)
        raise


def _captured(
    model: nn.Module, batch: Batch, loss_fn: LossFunction | None, precision: str | None, wanted: _Wanted
) -> Captured:
    dtype = None if precision is None else getattr(torch, TORCH_DTYPE_NAMES[precision])
    noted = _Noted(FixedBuffers(model))

    def training(watch: SizeWatch | None = None) -> _Training:
        return _Training(model, batch, loss_fn, dtype, wanted, noted, watch)

    try:
        exported = _exported(training(), batch)
        samples = find_samples(exported, batch, noted.alone)
    except Exception as error:
        raise explained(error, lambda watch: _exported(training(watch), batch), batch, noted.numbers) from error
    program, constants = converted(exported, model, samples, precision, names_of(wanted.outputs), noted.checks or ())
    check_randomness(program.required_graph)
    check_operators(program.required_graph)
    noted.fixed.check_not_written(update.state for update in program.updates)
    captured = Captured(program, constants, frozenset(noted.fixed.read))
    if noted.evaluated is None:
        return captured

    def evaluated() -> Captured:
        with in_evaluation(training().trained):
            return _captured(model, batch, loss_fn, precision, wanted)

    return _with_evaluation(captured, noted.evaluated, evaluated)


def _with_evaluation(captured: Captured, where: str, capture: Callable[[], Captured]) -> Captured:
    """What was captured in training, and does in evaluation what the model then does: a second trace tells.

    Args:
        where: the head of an error message about the first line that differs.
        capture: captures the model in evaluation mode.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were shown before
            evaluated = capture()
        program, constants = both_ways((captured.program, captured.constants), (evaluated.program, evaluated.constants))
        check_randomness(program.required_graph)
        check_operators(program.required_graph)
    except (CaptureError, UnlikeError) as error:
        why = f"{where}{error}" if isinstance(error, UnlikeError) else str(error)
        warnings.warn(
            f"{where}from here on the model does something else in evaluation mode, which is no part of the program, "
            f"so eval_step and predict are refused: {error}",
            stacklevel=2,
        )
        return replace(captured, program=replace(captured.program, unlike_evaluated=why))
    return Captured(program, constants, captured.fixed | evaluated.fixed)


@dataclass(frozen=True)
class _Wanted:
    """What of a model is captured besides its loss."""

    outputs: Outputs
    checks: bool


@dataclass
class _Noted:
    """What is found out while a model is traced, beside the trace.

    Attributes:
        fixed: what forward reads of the values of buffers.
        numbers: the names of the batch's numbers by their symbols.
        alone: where a single sample is not treated as others are; None for nowhere.
        evaluated: where an evaluation is not what the model does in evaluation mode; None for nowhere.
        checks: those of the forward that is traced, whose conditions are the last of its results; None before.
    """

    fixed: FixedBuffers
    numbers: dict[sympy.Basic, str] = field(default_factory=dict)
    alone: str | None = None
    evaluated: str | None = None
    checks: list[Noted] | None = None


class _Training(nn.Module):
    """A model with its loss: maps the tensors of a batch to a scalar, and to what else the model is to give.

    `dtype` is that of the model's parameters when they stand in for others. `layers` are those of which only the first
    of a kind is traced (`capture.alike`).
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        loss_fn: LossFunction | None,
        dtype: torch.dtype | None,
        wanted: _Wanted,
        noted: _Noted,
        watch: SizeWatch | None = None,
    ) -> None:
        super().__init__()
        self.layers: Mapping[int, str] = {}
        self.model = model
        self.training = model.training
        self._batch = batch
        self._noted = noted
        self._loss_fn: LossFunction | None
        object.__setattr__(self, "_loss_fn", loss_fn)  # a loss that is a module is no part of the model
        self._dtype = dtype
        self._wanted = wanted
        self._watch = watch

    @property
    def is_watched(self) -> bool:
        """Whether it is traced for what happens to a size."""
        return self._watch is not None

    @property
    def trained(self) -> list[nn.Module]:
        """What it calls that is, at least in parts, in training mode."""
        modules = [module for module in (self.model, self._loss_fn) if isinstance(module, nn.Module)]
        return [module for module in modules if any(part.training for part in module.modules())]

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        numbers = {name: batch[name].item() for name in self._batch.numbers}
        symbolic = {n: number for n, number in numbers.items() if isinstance(number, (torch.SymInt, torch.SymFloat))}
        self._noted.numbers.update((number.node.expr, name) for name, number in symbolic.items())
        batch = {name: tensor for name, tensor in batch.items() if name not in numbers}
        sizes_of: dict[str, Any] = {}
        for (name, dim), length in self._batch.free.items():  # one symbol for a length costs less than several
            size = batch[name].shape[dim]
            torch._check(size == sizes_of.setdefault(length, size))
        inputs = {**batch, **self._batch.constants, **numbers}
        sizes = {
            (name, d): n for name, t in batch.items() for d, n in enumerate(t.shape) if isinstance(n, torch.SymInt)
        }
        single = single_sample(batch, max(self._batch.size, 2))
        with self._watch.watching(sizes) if self._watch else contextlib.nullcontext():
            if self._dtype is None:
                with ProductsOfOneType():
                    return self._repeated(inputs, batch, single)
            with ComputeType(self._dtype, [*batch.values(), *single.values()]) as compute:
                loss, *given = self._repeated(inputs, batch, single)
                return compute.wide(loss), *given

    def _repeated(
        self, inputs: dict[str, Any], batch: Mapping[str, torch.Tensor], single: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        if self._watch:
            return self._results(inputs)
        found = repeated(
            self.model,
            batch,
            single,
            lambda tensors: self._results({**inputs, **tensors}),
            self.trained,
            layers=self.layers,
        )
        self._noted.alone, self._noted.evaluated = found.alone, found.evaluated
        return found.results

    def _results(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        with noting(self._wanted.checks) as checks:
            results = self._loss_and_outputs(inputs)
        if get_proxy_mode() is not None:
            self._noted.checks = checks
        return *results, *(check.value for check in checks)

    def _loss_and_outputs(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        constants = ConstantsHaveValues(self.model, self._noted.fixed)
        with (
            as_in_eager(constants.has_values),
            repeating_lists(),
            StatedBins(),
            refusing(),
            choosing(),
            constants,
            OnlyRegisteredAreTrained(),
            GradientsFollowTheValues(),
            unseeded(),
            Turns(self.model),
        ):
            output = self.model(**inputs)
            given = chosen(output, self._wanted.outputs)
            return loss_of(output, inputs, self._loss_fn), *given.values()


def _exported(training: _Training, batch: Batch) -> ExportedProgram:
    """The functional ATen graph of a training computation; dim 0 of each input that may hold samples is free, and what
    the user says. Layers that are alike are traced once; whatever then fails, all of them."""
    if training.is_watched:
        return _traced(training, batch)
    try:
        training.layers = repeated_modules(training.model)
        if training.layers:
            return _traced(training, batch)
    except StepsUnlikeError:
        raise
    except Exception:
        training.layers = {}
    return _traced(training, batch)


def _traced(training: _Training, batch: Batch) -> ExportedProgram:
    free = torch.export.Dim.AUTO
    device = device_of(training)
    inputs = batch.stand_ins(device)
    shapes = {
        name: {d: free for d in range(t.dim()) if name in batch.tensors and batch.is_free(name, d)}
        for name, t in inputs.items()
    }
    devices = [device] if device.type == "cuda" else []
    with (
        all_on_meta(training.model),
        no_leftovers(training.model, training._loss_fn),
        unchanged(training),
        quiet(),
        described(),
        careful_tracing(),
        computed_once(),
        few_registrations(device),
        torch.enable_grad(),
        torch.random.fork_rng(devices),
    ):
        exported = torch.export.export(training, (inputs,), strict=False, dynamic_shapes=(shapes,))
        dissolve_regions(exported)
        return write_derivatives(write_copies(functional(exported)), training)
