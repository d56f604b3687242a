"""What a pass did to the numbers of a program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from galvatron.debugging.classes import class_departure, conversion_departure
from galvatron.debugging.comparison import Departure, Failure, departure
from galvatron.debugging.wiring import Rewired, paired_results, rewired, wiring_departures
from galvatron.errors import GalvatronError, VerifyError
from galvatron.ir.alignment import aligned
from galvatron.ir.gradients import gradients
from galvatron.ir.graph import Graph, Op
from galvatron.ir.inlined import inlined
from galvatron.ir.layout import Mesh
from galvatron.ir.program import Form, LayerKind, Program
from galvatron.ir.text.graph_lines import op_text
from galvatron.ir.verify import verify
from galvatron.passes.base import PassResult
from galvatron.passes.pipeline import Pipeline, Step, run_step


def pass_departure(before: Program, after: Program) -> Departure | Failure | Rewired | None:
    """Where a program that a pass gave departs from the one that it got; None where both compute the same.

    Up to the planned form the whole computation is run, with one micro-batch. Of a sharded program each class is run on
    all ranks of its mesh, beside the one that it was sharded from, conversions must change no number, and layers must
    read and have what they did before; that a value is read as it is laid out is for the verifier.

    Raises:
        GalvatronError: these are programs of two models, one lacks what is compared, is too large to be run here, or
            cannot be run.
    """
    _check_models(before, after)
    if after.form < Form.SHARDED:
        return _flat_departure(before, after)
    if before.form is Form.CAPTURED:
        raise GalvatronError(f"a {before.form} program has no layers to compare those of a {after.form} one with")
    if found := next(wiring_departures(before, after), None):
        return found
    return next(filter(None, _class_departures(before, after)), None)


def _flat_departure(before: Program, after: Program) -> Departure | Failure | Rewired | None:
    """Results are the same that are called the same. An update that the later program lacks is of what is there."""
    unwritten = {f"the value of the update of {update.state}": update.state for update in before.updates}
    pairs: list[tuple[str, str]] = []
    for name, then, now in paired_results(before, after):
        now = unwritten.get(name) if now is None else now
        if then is None or now is None:
            return rewired(name, then, now)
        pairs.append((now, then))
    first, second = inlined(before), inlined(after)
    if first == second and all(now == then for now, then in pairs):
        return None  # passes that only plan leave the graph as it is, which need not be run to be the same
    return departure(first, second, after.batch_sizes & before.batch_sizes, before.trainable, pairs)


def unlike_numbers(before: Program, after: Program) -> list[str]:
    """Ops of two programs that compute the same by the numbers that were tried, which yet have other floating numbers
    or truth values among their arguments, such as an epsilon: each as it was (`-`) and as it is (`+`)."""
    if after.form < Form.SHARDED:
        pairs = [("", inlined(before), inlined(after), ())]
    else:
        classes = (cls for cls in after.classes if cls.base in before.class_of)
        pairs = [(cls.name, before.class_of[cls.base].graph, cls.graph, cls.mesh) for cls in classes]
    lines: list[str] = []
    for within, first, second, mesh in pairs:
        found = unlike_ops(first, second, mesh)
        lines += [f"in class @{within}", *found] if found and within else found
    return lines


def unlike_ops(first: Graph, second: Graph, mesh: Mesh) -> list[str]:
    """The same of two graphs, of which the second is on a mesh."""
    lines: list[str] = []
    for place, there in aligned(first, second).ops.items():
        one, other = first.ops[place], second.ops[there]
        if one.target == other.target and _numbers(one) != _numbers(other):
            lines += [f"- {op_text(one)}", f"+ {op_text(other, mesh)}"]
    return lines


def _numbers(op: Op) -> list[tuple[str, float]]:
    given = {**op.arguments, **dict(op.kwargs)}
    return [(name, value) for name, value in given.items() if isinstance(value, (float, bool))]


def _check_models(before: Program, after: Program) -> None:
    """
    Raises:
        GalvatronError: the programs are not of one model: they have other inputs, numbers or state.
    """
    for what, first, second in (
        ("input", before.inputs, after.inputs),
        ("number", before.numbers, after.numbers),
        ("state", before.state, after.state),
    ):
        then, now = {one.name for one in first}, {one.name for one in second}
        if odd := sorted(
            now - then if what == "state" else now ^ then
        ):  # passes leave out constants that nothing reads
            raise GalvatronError(f"only one of the programs has the {what} {odd[0]!r}: they are not of one model")
    known = before.state_of
    for state in after.state:
        if state != known[state.name]:
            raise GalvatronError(f"{state.name} is another state in each of the programs: they are not of one model")


def _class_departures(before: Program, after: Program) -> Iterator[Departure | None]:
    flowing, formals = gradients(after).values, gradients(before).formals
    for layer in {layer.cls: layer for layer in after.all_layers}.values():
        cls = after.class_of[layer.cls]
        if cls == before.class_of.get(cls.name):
            continue
        if layer.kind is LayerKind.CONVERSION:
            yield conversion_departure(cls, differentiable=not flowing.isdisjoint(layer.operands))
        elif cls.base in before.class_of:
            yield class_departure(before.class_of[cls.base].graph, cls, frozenset(formals[cls.base]))
        else:
            raise GalvatronError(f"@{cls.name} is sharded from @{cls.base}, which the program before does not have")


@dataclass(frozen=True)
class Outcome:
    """What became of the numbers of a program in a pass.

    Attributes:
        index, pass_: its place in the pipeline, and its text.
        kind: `unchanged` where the pass gave what it got, `same`, `departs`, `unknown` where the program could not be
            run, or the type of the error that it raised.
        text: more about it.
        before, after: the program that it got, and what it gave (None when it raised).
    """

    index: int
    pass_: str
    kind: str
    text: str
    before: Program
    after: Program | None

    @property
    def failed(self) -> bool:
        """Whether something is wrong."""
        return self.kind not in ("unchanged", "same", "unknown")

    def is_like(self, other: Outcome | None) -> bool:
        """Whether another pass of the same name failed in the same way."""
        own, its = (one and (one.pass_.partition("{")[0], one.kind) for one in (self, other))
        return own == its


def outcomes(program: Program, pipeline: Pipeline) -> Iterator[Outcome]:
    """The passes one after the other, as far as they go, each with what became of the numbers.

    Raises:
        PassError: a pass needs another form than it gets.
    """
    pipeline.check(program.form)
    for index, pass_ in enumerate(pipeline.passes):
        try:
            after = run_step(Step(pipeline, index, program)).program
            verify(after)
        except Exception as error:
            yield Outcome(index, str(pass_), type(error).__name__, str(error), program, None)
            return
        kind, text = _compared(program, after)
        yield Outcome(index, str(pass_), kind, text, program, after)
        program = after


def _compared(before: Program, after: Program) -> tuple[str, str]:
    if after == before:
        return "unchanged", ""
    try:
        found = pass_departure(before, after)
    except GalvatronError as error:
        return "unknown", str(error)
    return ("same", "") if found is None else ("departs", str(found))


def failure(program: Program, pipeline: Pipeline) -> Outcome | None:
    """The first pass that raises, leaves a program that breaks a rule, or changes what is computed; None without."""
    return next((one for one in outcomes(program, pipeline) if one.failed), None)


_TOLD = {"unchanged": "unchanged", "same": "computes the same", "unknown": "not compared: "}


@dataclass(frozen=True)
class CompareEach:
    """Instrument: runs the program before and after each pass, says how it went, and stops where they depart."""

    def __call__(self, step: Step, proceed: Callable[[], PassResult]) -> PassResult:
        result = proceed()
        kind, text = _compared(step.program, result.program)
        if kind == "departs":
            raise VerifyError(f"pass {str(step.pass_)!r} changes what is computed: {text}")
        print(f"// {step.pass_}: {_TOLD[kind]}{text}", file=sys.stderr)
        return result
