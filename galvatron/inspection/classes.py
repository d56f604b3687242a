"""What a program is made of: its layer classes with their figures, its inputs, its state, its results."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from galvatron.inspection.view import Amounts, View
from galvatron.ir.program import Program
from galvatron.ir.summary import ClassSummary, class_summaries
from galvatron.ir.types import DTYPE_BYTES


@dataclass(frozen=True)
class ClassRow(ClassSummary):
    """A layer class with the figures of one of its layers."""

    figures: Amounts


@dataclass(frozen=True)
class InputRow:
    """An input by its forward name; `holds` is `samples`, or what else it is."""

    name: str
    type: str
    holds: str


@dataclass(frozen=True)
class StateRow:
    """All state that is alike: how many tensors, of how many elements and bytes together."""

    kind: str
    dtype: str
    trained: bool
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class ResultRow:
    """What a step is for: the loss, an update of some state, an output, a check, what says which parameters have a
    gradient."""

    kind: str
    name: str
    value: str
    type: str


@dataclass(frozen=True)
class Overview:
    """A program at a glance. `figures` are those of all layers together, `unit` says of what."""

    name: str
    form: str
    batch_size: int
    precision: str | None
    cluster: str | None
    plan: str | None
    unit: str
    layers: int
    parameters: int
    figures: Amounts
    classes: tuple[ClassRow, ...]
    inputs: tuple[InputRow, ...]
    state: tuple[StateRow, ...]
    results: tuple[ResultRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def overview(view: View) -> Overview:
    """What a program is made of."""
    program = view.program
    rows = tuple(
        ClassRow(**vars(one), figures=view.class_figures(program.class_of[one.name]))
        for one in class_summaries(program)
    )
    plan = program.plan
    return Overview(
        name=program.name,
        form=str(view.form),
        batch_size=program.batch_size,
        precision=program.precision,
        cluster=None if program.cluster is None else str(program.cluster),
        plan=None if plan is None else f"pp{plan.pipeline_degree}/m{plan.micro_batches}/{plan.schedule}",
        unit=view.unit,
        layers=sum(row.layers for row in rows),
        parameters=program.count_parameters(program.state_of),
        figures=Amounts(*(sum(row.layers * figure for row, figure in each) for each in _columns(rows))),
        classes=rows,
        inputs=_inputs(program),
        state=_state(program),
        results=_results(program),
    )


def _columns(rows: tuple[ClassRow, ...]) -> list[list[tuple[ClassRow, float]]]:
    names = list(Amounts.__dataclass_fields__)
    return [[(row, getattr(row.figures, name)) for row in rows] for name in names]


def _inputs(program: Program) -> tuple[InputRow, ...]:
    tensors = [
        InputRow(v.name, str(v.type), "samples" if v.name in program.batched else "the same for all samples")
        for v in program.inputs
    ]
    numbers = [InputRow(n.name, n.kind, f"a number that may change, such as {n.example}") for n in program.numbers]
    return (*tensors, *numbers)


def _state(program: Program) -> tuple[StateRow, ...]:
    sizes: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    for state in program.state:
        sizes[state.kind, state.type.dtype, state.trainable].append(prod(int(size) for size in state.type.shape))
    return tuple(
        StateRow(kind, dtype, trained, len(own), sum(own), sum(own) * DTYPE_BYTES[dtype])
        for (kind, dtype, trained), own in sizes.items()
    )


def _results(program: Program) -> tuple[ResultRow, ...]:
    made = program.values()
    named = [
        ("loss", "", program.output),
        *(("update", update.state, update.value) for update in program.updates),
        *(("output", output.name, output.value) for output in program.outputs),
        *(("check", check.says, check.value) for check in program.checks),
        *(("gradient", ", ".join(one.states), one.value) for one in program.reached),
    ]
    return tuple(ResultRow(kind, name, value, str(made[value].type)) for kind, name, value in named)
