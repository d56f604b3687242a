"""Programs printed on the way through a pipeline, whole or as what passes changed, to stderr or into files."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from galvatron.errors import GalvatronError, PassError, did_you_mean
from galvatron.ir.files import write_text
from galvatron.ir.graph import Graph, Op
from galvatron.ir.program import Program
from galvatron.passes.base import PassResult
from galvatron.passes.pipeline import Step
from galvatron.printing import print_differences


@dataclass
class PrintPrograms:
    """Instrument: prints programs to stderr.

    Attributes:
        before, after: the names of passes before and after which it prints.
        after_all: whether it does after every pass.
        after_change: whether it does after every pass that changes the program.
        differences: whether it prints in what a pass changed the program, instead of all of it.
        only: the one layer that is printed; empty for all.
        locations: whether each op has the line of the model beside it.
        met: whether any program that was printed has the layer.
    """

    before: Collection[str] = ()
    after: Collection[str] = ()
    after_all: bool = False
    after_change: bool = False
    differences: bool = False
    only: str = ""
    locations: bool = False
    met: bool = False

    def __call__(self, step: Step, proceed: Callable[[], PassResult]) -> PassResult:
        name = step.pass_.name
        if name in self.before:
            _show(f"// before {step.pass_}", self._text(step.program))
        result = proceed()
        changed = result.program != step.program
        if name in self.after or self.after_all or (self.after_change and changed):
            note = "" if changed else " (no change)"
            text = self._differences(step.program, result.program) if self.differences else self._text(result.program)
            _show(f"// after {step.pass_}{note}", text)
        return result

    def _differences(self, first: Program, second: Program) -> str:
        try:
            return "\n".join(differences(self._part(first), self._part(second)))
        except PassError as error:
            return f"// {error}"

    def _part(self, program: Program, *, alone: bool = False) -> Program:
        found = part(program, self.only, alone=alone)
        self.met = True
        return found

    def _text(self, program: Program) -> str:
        from galvatron.ir.text.printer import program_text

        try:
            return program_text(self._part(program, alone=True), locations=self.locations)
        except PassError as error:  # it may have been there before
            return f"// {error}\n"


@dataclass
class DumpTree:
    """Instrument: writes the program before the first pass and after each into a folder, `00-given.gir` and so on, and
    beside each in what the pass changed it (`.diff`). Passes of several pipelines are numbered on. `write` writes a
    text into a file."""

    folder: str | Path
    write: Callable[[Path, str], None] = write_text
    _count: int = 0

    def __call__(self, step: Step, proceed: Callable[[], PassResult]) -> PassResult:
        if not self._count:
            self._write("00-given.gir", step.program)
        result = proceed()
        self._count += 1
        name = f"{self._count:02d}-{step.pass_.name}"
        self._write(f"{name}.gir", result.program)
        self._write_text(f"{name}.diff", "\n".join(differences(step.program, result.program)))
        return result

    def _write(self, name: str, program: Program) -> None:
        from galvatron.ir.text.printer import program_text

        self._write_text(name, program_text(program).rstrip("\n"))

    def _write_text(self, name: str, text: str) -> None:
        path = Path(self.folder) / name
        try:
            self.write(path, text and f"{text}\n")
        except (OSError, ValueError) as error:
            raise GalvatronError(f"cannot write {str(path)!r}: {error}") from None


def differences(first: Program, second: Program) -> list[str]:
    """See `galvatron.ir.text.differences`."""
    from galvatron.ir.text.differences import program_differences

    return program_differences(first, second)


def part(program: Program, layer: str, *, alone: bool = False) -> Program:
    """What of a program is one layer: its ops, or its class and what calls it; all of it for the empty name.

    Of a captured program these are the ops of the module of that name. The result is to be looked at; it is not valid.

    Args:
        alone: ops of a captured program are given what they read of others, and give what others read.

    Raises:
        PassError: there is no such layer.
    """
    if not layer:
        return program
    if (graph := program.graph) is not None:
        ops = ops_within(graph, layer)
        own = graph.part(ops)
        read = {value.name for value in own.state}
        left = own if alone else replace(graph, state=tuple(one for one in graph.state if one.name in read), ops=ops)
        return replace(program, graph=left, state=tuple(state for state in program.state if state.name in read))
    found = [one for one in program.all_layers if one.name == layer]
    found = found or [one for one in program.all_layers if one.cls == layer]
    if not found:
        names = dict.fromkeys(name for one in program.all_layers for name in (one.name, one.cls))
        raise PassError(f"there is no layer {layer!r}; {did_you_mean(layer, names)}")
    used = {one.cls for one in found}
    bases = {program.class_of[name].base for name in used}
    classes = tuple(cls for cls in program.classes if cls.name in used | bases)
    stages = tuple(
        replace(stage, layers=tuple(one for one in stage.layers if one in found), state=()) for stage in program.stages
    )
    return replace(
        program,
        classes=classes,
        layers=tuple(one for one in program.layers if one in found),
        stages=tuple(stage for stage in stages if stage.layers),
        state=tuple(state for state in program.state if any(state.name in one.state for one in found)),
        candidates=tuple(one for one in program.candidates if one.cls in used | bases),
        cuts=(),
        cluster=None,
    )


def ops_within(graph: Graph, module: str) -> tuple[Op, ...]:
    """The ops of a graph that are of a module, or of one inside it.

    Raises:
        PassError: none is.
    """
    scopes = {op.source.scope: None for op in graph.ops if op.source is not None}
    inside = re.compile(rf"(.*\.)?{re.escape(module)}(\..*)?")
    own = {scope for scope in scopes if inside.fullmatch(scope)}
    if not own:
        raise PassError(f"no op is of a module {module!r}; {did_you_mean(module, scopes)}")
    return tuple(op for op in graph.ops if op.source is not None and op.source.scope in own)


def _show(heading: str, text: str) -> None:
    print_differences(text.split("\n"), heading=heading, stderr=True)
