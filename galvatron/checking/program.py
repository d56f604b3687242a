"""What there is to say of a program in a file, which was perhaps written by hand: whether it keeps the rules of its
form, and of a sharded one where everything is and why."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from galvatron.errors import GalvatronError, Problem, VerifyError, did_you_mean
from galvatron.inspection.placed_table import placed_table
from galvatron.inspection.placements import PlacedClass, PlacedValue, ReadValues, borders, folded, placed_classes
from galvatron.ir.program import Form, Program
from galvatron.ir.text.names import is_round_of
from galvatron.ir.text.printer import GRAPH, SHARED_GRAPH
from galvatron.ir.verify import RULES, excerpt, verify
from galvatron.printing import cell


@dataclass(frozen=True)
class Fault:
    """What is wrong with one line: the line's number in the file (None where several are alike) and its text. In a loop
    the line stands for several, of which this is the first that is wrong."""

    line: int | None
    text: str
    message: str


@dataclass(frozen=True)
class Refusal:
    """The rule that a program breaks, what that asks for, and what breaks it; `excerpt` shows the file there."""

    rule: str
    meaning: str
    faults: tuple[Fault, ...]
    excerpt: str


@dataclass(frozen=True)
class ProgramReport:
    """A program, the rules of its form (how many there are), and which one it breaks, if any; of one that breaks none
    its classes and what is read between layers."""

    program: str
    form: str
    rules: int
    refused: Refusal | None = None
    classes: tuple[PlacedClass, ...] = ()
    borders: tuple[ReadValues, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it: the fields by name, and `valid`."""
        return {"valid": self.refused is None, **dataclasses.asdict(self)}

    def print(self, console: Console, *, placements: bool = True) -> None:
        """Prints the report as lines and tables.

        Args:
            placements: also where values are, and why.
        """
        for part in self._parts(placements):
            console.print(part, soft_wrap=not isinstance(part, Table))

    def _parts(self, placements: bool) -> Iterator[RenderableType]:
        name = f"{self.program} ({self.form})"
        if self.refused is not None:
            yield cell(f"{name} breaks the rule {self.refused.rule}: {self.refused.meaning}")
            for fault in self.refused.faults:
                yield cell(f"line {fault.line}: {fault.message}" if fault.line else f"{fault.text}: {fault.message}")
            yield from map(cell, self.refused.excerpt.splitlines())
            return
        yield cell(f"{name} keeps all {self.rules} rules of its form")
        if not placements:
            count = sum(len(cls.values) for cls in self.classes)
            if count:
                yield cell(
                    f"--placements shows where its {count} values are, and why; --layer and --only those of a part"
                )
            return
        if self.classes:
            yield from map(cell, _LEGEND)
        yield from map(_class_table, self.classes)
        if self.borders:
            yield _border_table(self.borders)


_LEGEND = (
    "value | gradient: R whole on every rank, P each has a term of the sum, S(d) each has a part of dimension d;",
    "R' whole, of whose gradient each rank has a term; – without a gradient",
    "in rules: ~ multiplies the operand, + adds it; a dimension k! is never cut, v^ where ranks exchange inside the op",
)


def check_program(program: Program, text: str, *, layer: str | None = None, only: str | None = None) -> ProgramReport:
    """A program beside the rules of its form.

    Args:
        text: of the file that it was read from.
        layer: the one whose class is told; None: all.
        only: the value, the operator or the module of the model of which lines are told; None: all.

    Raises:
        GalvatronError: there is no such layer, or nothing of that name, or nothing is told of parts of this program.
    """
    if program.form < Form.SHARDED and (layer, only) != (None, None):
        raise GalvatronError(
            f"a part of a program is told by where its values are, which a {program.form} one does not say: "
            "leave --layer and --only out, or name a sharded program"
        )
    rules = sum(program.form in rule.forms for rule in RULES)
    report = ProgramReport(program.name, str(program.form), rules)
    try:
        verify(program)
    except VerifyError as error:
        return replace(report, refused=_refusal(error, text))
    report = replace(report, classes=placed_classes(program), borders=borders(program))
    report = report if layer is None else _of_layer(report, program, layer)
    return report if only is None else _only(report, only)


def _refusal(error: VerifyError, text: str) -> Refusal:
    faults = tuple(_once(Fault(_line(text, one), one.text.strip(), one.message) for one in error.problems))
    known = {fault.line - 1 for fault in faults if fault.line is not None}
    return Refusal(error.rule, error.meaning, faults, excerpt(text.splitlines(), known))


def _once(faults: Iterable[Fault]) -> Iterator[Fault]:
    """Of lines in a loop only the first round that is wrong."""
    for line, group in groupby(faults, key=lambda fault: fault.line):
        first, *others = group
        own = [fault for fault in others if line is None or fault.text == first.text]
        more = " (and in more rounds of the loop)" if len(own) < len(others) else ""
        yield from (replace(first, message=first.message + more), *own)


def _line(text: str, problem: Problem) -> int | None:
    """The line of a file that a problem is about, from 1; None where the file has no such line, or several."""
    wanted, section = _plain(problem.text), _plain(problem.section)
    found: list[int] = []
    inside = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line and not line[0].isspace():
            inside = GRAPH if _plain(line) == SHARED_GRAPH else _plain(line)
        if inside == section and is_round_of(_plain(line), wanted):
            found.append(number)
    return found[0] if len(found) == 1 else None


def _plain(line: str) -> str:
    """A line without its columns, comment and the number of its source."""
    return re.sub(r"(\s+#\d+)?$", "", " ".join(line.partition("  //")[0].split()))


def _of_layer(report: ProgramReport, program: Program, layer: str) -> ProgramReport:
    known = {one.name: one.cls for one in program.all_layers}
    if layer not in known:
        raise GalvatronError(f"there is no layer {layer!r}; {did_you_mean(layer, known)}")
    classes = tuple(cls for cls in report.classes if known[layer] in cls.names)
    own = tuple(border for border in report.borders if known[layer] in (border.maker, border.reader))
    return replace(report, classes=classes, borders=own)


def _only(report: ProgramReport, only: str) -> ProgramReport:
    classes = tuple(replace(cls, values=tuple(v for v in cls.values if _is(v, only))) for cls in report.classes)
    if not report.classes:
        raise GalvatronError("no layer that is asked for is on more than one device: leave --only out")
    if not any(cls.values for cls in classes):
        known = {name for cls in report.classes for value in cls.values for name in _names(value)}
        raise GalvatronError(f"there is no value, operator or module {only!r}; {did_you_mean(only, known - {''})}")
    return replace(report, classes=tuple(cls for cls in classes if cls.values), borders=())


def _is(value: PlacedValue, only: str) -> bool:
    return only.removeprefix("%") in _names(value) or value.module.startswith(f"{only}.")


def _names(value: PlacedValue) -> tuple[str, ...]:
    """What a value may be asked for by: itself, its operator, also without what it is from, and its module."""
    operator = value.by.partition("(")[0]
    return value.name, operator, operator.partition(".")[2], operator.rpartition(".")[2], value.module


def _class_table(cls: PlacedClass) -> Table:
    title = f"{', '.join(f'@{name}' for name in cls.names)}, of {folded(cls.layers)}"
    return placed_table(title, cls.mesh, cls.values)


def _border_table(found: tuple[ReadValues, ...]) -> Table:
    table = Table(title="what layers read")
    for name in ("values", "made by", "read by", "as", "why"):
        table.add_column(name, overflow="fold")
    for border in found:
        maker = f"@{border.maker}" if border.maker else "the batch"
        values = folded(tuple(f"%{name}" for name in border.values))
        table.add_row(*map(cell, (values, maker, f"@{border.reader}", border.layout, border.why)))
    return table
