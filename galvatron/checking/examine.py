"""`check`: from a model to its report."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from galvatron.arguments import check_inputs, check_model, check_outputs, read_precision
from galvatron.batches import BatchLike
from galvatron.bugs import in_passes, ours
from galvatron.checking.found import Found
from galvatron.checking.layers import found_classes, found_draws, found_samples, found_ties
from galvatron.checking.plans import batch_for, found_plans
from galvatron.checking.report import Report
from galvatron.checking.run import check_has_values, compared_with_eager
from galvatron.checking.whole import found_whole, strategy_of
from galvatron.errors import CaptureError, GalvatronError
from galvatron.ir import limits
from galvatron.ir.capture import (
    BatchDims,
    Dynamic,
    LossFunction,
    Outputs,
    capture_graph,
    device_of,
    listing,
    read_batch,
)
from galvatron.ir.cluster import Cluster
from galvatron.ir.documents import shown
from galvatron.ir.planned import without_plan
from galvatron.ir.program import Program
from galvatron.partition.boundary import roles_of_graphs
from galvatron.passes import FRONT_END, LOWERING, PLANNING
from galvatron.passes.pipeline import Pipeline
from galvatron.plain import plain_torch

Told = Callable[[str], None]
"""Is told what goes on."""

DEVICE = "a100-80g"
"""Whose rates say what an op takes of a layer's time, and guide sharding."""

_HERE = str(Path(__file__).parents[1])


def check(
    model: nn.Module,
    example_inputs: BatchLike,
    *,
    loss_fn: LossFunction | None = None,
    batch_dims: BatchDims | None = None,
    dynamic: Dynamic | None = None,
    outputs: Outputs = (),
    precision: str | None = None,
    devices: int = 8,
    degree: int = 2,
    global_batch_size: int | None = None,
    checks: bool = True,
    run: bool = False,
    told: Told = lambda doing: None,
) -> Report:
    """What Galvatron makes of a model: whether it is captured, its layers, and how they may be parallelised.

    Needs neither the ranks nor the devices that it speaks of, computes nothing but under `run`, and leaves the model as
    it is. The model is captured once. Of the plans that fit its rules, one of each role and pipeline degree is lowered
    and verified as `compile` would: micro-batches change nothing of that.

    Args:
        model, example_inputs, loss_fn, batch_dims, dynamic, outputs, precision, checks: see `galvatron.compile`.
        devices: for how many devices plans are tried.
        degree: on how many ranks it is said what stays whole under each role.
        global_batch_size: samples per step of the plans; None is the least that divides under all of them and is not
            smaller than the example, or the example's where the program holds for no such batch.
        run: compute the loss and gradients of the example batch, once by the model itself and once by the program, and
            compare them, and what forward writes into the model's state. Needs a model and a batch with values, in the
            model's own precision. A forward that draws random numbers cannot be compared, which the report says.
        told: is called with what goes on, in words.

    Returns:
        The report. A model that cannot be captured has one too, which says why.

    Raises:
        GalvatronError: an argument is wrong.
        InternalError: a bug of Galvatron.
    """
    check_model(model, loss_fn)
    check_inputs(example_inputs)
    check_outputs(outputs)
    compute = read_precision(precision)
    _check_number("devices", devices, 1, limits.DEVICES)
    _check_number("degree", degree, 2, limits.DEVICES)
    if global_batch_size is not None:
        _check_number("global_batch_size", global_batch_size, 1, limits.SAMPLES)
    batch = read_batch(model, example_inputs, batch_dims, dynamic) if run else None
    if batch is not None:
        check_has_values(model, batch, precision)
    told("capturing the model")
    begun, captured, program, refused = time.perf_counter(), None, None, ()
    with plain_torch(device_of(model)):
        with _warnings_of_ours() as left_out, listing() as refusals:
            try:
                with ours("capturing the model"):
                    captured = capture_graph(
                        model,
                        example_inputs,
                        loss_fn=loss_fn,
                        precision=compute,
                        batch_dims=batch_dims,
                        dynamic=dynamic,
                        outputs=outputs,
                        checks=checks,
                    )
            except CaptureError as error:
                refused = tuple(dict.fromkeys((*refusals, str(error))))
            else:
                told("finding its layers")
                program = _passed(FRONT_END, captured.program)
        capture_s = time.perf_counter() - begun
        compared = None
        if captured is not None and batch is not None:
            told("running it on the example batch")
            with ours("running the program"):
                compared = compared_with_eager(model, batch, loss_fn, captured)
        return Report(
            model=type(model).__name__,
            precision=precision,
            capture_s=capture_s,
            refused=refused,
            warnings=tuple(dict.fromkeys(left_out)),
            run=compared,
            found=None if program is None else _found(program, devices, degree, global_batch_size, told),
        )


def _found(program: Program, devices: int, degree: int, global_batch_size: int | None, told: Told) -> Found:
    told("pricing its layers")
    costed = _passed(PLANNING[:1], program)
    batch = batch_for(program, devices) if global_batch_size is None else global_batch_size
    target = without_plan(costed, Cluster.parse(f"{DEVICE}:1x{devices}"), batch)
    told(f"sharding its layers on {degree} ranks")
    whole, refused_roles = found_whole(target, degree)
    plans = []
    for plan in found_plans(target, lambda planned: _passed(LOWERING, planned)):
        told(f"lowering plans for {devices} devices: {plan.plan}")
        plans.append(plan)
    return Found(
        parameters=program.count_parameters(program.state_of),
        classes=found_classes(program),
        samples=found_samples(program),
        draws=found_draws(program),
        ties=found_ties(program),
        degree=degree,
        roles=tuple(str(strategy_of(role, degree)) for role in roles_of_graphs(cls.graph for cls in program.classes)),
        whole=whole,
        refused_roles=refused_roles,
        devices=devices,
        global_batch_size=batch,
        plans=tuple(plans),
    )


def _passed(names: Sequence[str], program: Program) -> Program:
    return Pipeline.of(names).run(program, [in_passes])


def _check_number(name: str, value: object, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise GalvatronError(f"{name} must be a whole number from {least} to {most}, not {shown(value)}")


@contextmanager
def _warnings_of_ours() -> Iterator[list[str]]:
    """What Galvatron warns of inside the `with` block, once it is over; other warnings are given then."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield texts
    for warning in found:
        if warning.filename.startswith(_HERE):
            texts.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
