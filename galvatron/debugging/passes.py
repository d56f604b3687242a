"""What a pass did to the numbers of a program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from galvatron.debugging.classes import class_departure, conversion_departure
from galvatron.debugging.comparison import Departure, departure
from galvatron.errors import GalvatronError, VerifyError
from galvatron.ir.gradients import gradients
from galvatron.ir.inlined import inlined
from galvatron.ir.program import Form, LayerKind, Program
from galvatron.partition import Partitioner
from galvatron.passes.base import PassResult
from galvatron.passes.pipeline import Step


def pass_departure(before: Program, after: Program) -> Departure | None:
    """Where a program that a pass gave departs from the one that it got; None where both compute the same.

    Up to the planned form the whole computation is run, with one micro-batch. Of a sharded program each class is run on
    all ranks of its mesh, beside the one that it was sharded from, and conversions must change no number; what there is
    between layers follows from their layouts, which the verifier compares.

    Raises:
        GalvatronError: the program is too large to be run here, or cannot be run.
    """
    if after.form < Form.SHARDED:
        return departure(inlined(before), inlined(after), after.batch_sizes & before.batch_sizes)
    return next(filter(None, _class_departures(before, after)), None)


def _class_departures(before: Program, after: Program) -> Iterator[Departure | None]:
    known = {cls.name for cls in before.classes}
    flowing = gradients(after).values
    borders = Partitioner(before, before.required_cluster).borders if before.form < Form.SHARDED else {}
    for layer in {layer.cls: layer for layer in after.all_layers}.values():
        cls = after.class_of[layer.cls]
        if cls.name in known:
            continue
        if layer.kind is LayerKind.CONVERSION:
            yield conversion_departure(cls, differentiable=not flowing.isdisjoint(layer.operands))
        elif cls.base in before.class_of:
            yield class_departure(before.class_of[cls.base].graph, cls, borders[cls.base].differentiable)


@dataclass
class Compared:
    """Instrument: runs the program before and after each pass, and stops where they depart.

    Attributes:
        found: for each pass that was compared its text, and why it could not be compared, if so.
    """

    found: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, step: Step, proceed: Callable[[], PassResult]) -> PassResult:
        result = proceed()
        why = ""
        if result.program != step.program:
            try:
                found = pass_departure(step.program, result.program)
            except GalvatronError as error:
                found, why = None, str(error)
            if found is not None:
                raise VerifyError(f"pass {str(step.pass_)!r} changes what is computed: {found}")
        self.found.append((str(step.pass_), why))
        return result
