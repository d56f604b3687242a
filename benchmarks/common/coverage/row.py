"""One row: an architecture is built, captured once, and trained for a step under each kind of plan."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from common.architectures import named
from common.architectures.base import Architecture, Batch, Subject
from common.coverage.eager import repeatable
from common.coverage.outcomes import RowOutcome, told, without_paths, worst
from common.coverage.plans import plans_for
from common.coverage.step import EXAMPLE, STEP, Step
from common.doubles import precise
from galvatron import api, forms
from galvatron.ir.capture import Captured, capture_graph
from galvatron.ir.cluster import Cluster
from galvatron.ir.program import Program
from galvatron.ir.text import print_program

MEMORY_BYTES = 6 << 30
"""What one process may allocate."""

Tell = Callable[[RowOutcome], None]


def run_row(name: str, results: Connection) -> None:
    """The main function of a row's process: sends `RowOutcome`s, each in the place of the one before."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    torch.set_num_threads(1)
    results.send(row_of(named(name), results.send))


def row_of(architecture: Architecture, tell: Tell) -> RowOutcome:
    """What becomes of an architecture; `tell` hears, before each step, what it is if that step never ends."""
    row = RowOutcome(architecture.name, architecture.family, architecture.library)
    tell(replace(row, outcome="unsound", cause="the process ended while the model was built"))
    try:
        subject = architecture.build()
        problem = repeatable(subject, subject.batch(EXAMPLE, 0))
    except ImportError as error:
        return replace(row, outcome="absent", cause=str(error))
    except Exception as error:
        problem = told(error)[1]
    if problem:
        return replace(row, outcome="unsound", cause=without_paths(problem))
    row = replace(row, parameters=sum(parameter.numel() for parameter in subject.model.parameters()))
    tell(replace(row, outcome="timeout", cause="in the capture"))
    began = time.process_time()
    try:
        captured = _captured(subject)
    except Exception as error:
        outcome, cause = told(error)
        return replace(row, capture_s=_since(began), outcome=outcome, cause=without_paths(cause))
    row = replace(
        row,
        capture_s=_since(began),
        layers=len(captured.program.planned_layers),
        single="f32[" in print_program(captured.program),
        evaluation=without_paths(captured.program.unlike_evaluated),
    )
    return _with_plans(row, subject, captured, architecture.sequence, tell)


def _captured(subject: Subject) -> Captured:
    """The model as a program with costs for two devices, which is what plans are made for."""
    with precise(subject.model):
        found = capture_graph(subject.model, subject.batch(EXAMPLE, 0), loss_fn=subject.loss_fn)
    return replace(found, program=forms.with_costs(found.program, Cluster.parse(f"{api.NOMINAL_DEVICE}:1x2"), None))


def _with_plans(row: RowOutcome, subject: Subject, captured: Captured, sequence: bool, tell: Tell) -> RowOutcome:
    batch = subject.batch(STEP, 1)
    if STEP not in captured.program.batch_sizes or not _takes(captured.program, batch):
        batch = subject.batch(EXAMPLE, 1)
    step = Step(subject, captured, batch, row.single)
    for attempts in plans_for(row.name, sequence):
        tell(replace(row, outcome="timeout", cause=f"under {attempts[0]}"))
        row = replace(row, plans=(*row.plans, step.under(attempts)))
    return replace(row, outcome=worst([plan.outcome for plan in row.plans]))


def _takes(program: Program, batch: Batch) -> bool:
    """Whether the inputs that a program fixes are of that size in a batch; a model may loop over one of its inputs."""
    fixed = {v.name: v.type.shape for v in program.inputs if all(isinstance(size, int) for size in v.type.shape)}
    return all(tuple(batch[name].shape) == shape for name, shape in fixed.items())


def _since(began: float) -> float:
    """CPU seconds, which say the same on a busy machine."""
    return round(time.process_time() - began, 2)
