"""What stands around passes: verifying, timing, reproducers.

Printing is in `passes.printing`, counting in `passes.counting`. An instrument is a callable `(step, proceed) ->
PassResult`; see `galvatron.passes.pipeline.Instrument`. All text goes to stderr, so that stdout stays the program.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path

from galvatron.errors import GalvatronError, PassError, VerifyError, raised_at
from galvatron.ir.files import write_text
from galvatron.ir.program import Program
from galvatron.passes.base import PassResult
from galvatron.passes.pipeline import Pipeline, Step


@dataclass
class VerifyEach:
    """Instrument: verifies the result of every pass; `seconds` are those of each verification."""

    seconds: list[float] = field(default_factory=list)

    def __call__(self, step: Step, proceed: Callable[[], PassResult]) -> PassResult:
        result = proceed()
        try:
            self.verify(result.program)
        except VerifyError as error:
            raise VerifyError(f"after pass {str(step.pass_)!r}: {error}") from error
        return result

    def verify(self, program: Program) -> None:
        """Verifies a program.

        Raises:
            VerifyError: it breaks a rule of its form.
        """
        from galvatron.ir.verify import verify

        start = time.perf_counter()
        try:
            verify(program)
        finally:
            self.seconds.append(time.perf_counter() - start)


@dataclass
class Timing:
    """Instrument: measures every pass; `report()` prints the table."""

    seconds: list[tuple[str, float]] = field(default_factory=list)

    def __call__(self, step: Step, proceed: Callable[[], PassResult]) -> PassResult:
        start = time.perf_counter()
        try:
            return proceed()
        finally:
            self.seconds.append((step.pass_.name, time.perf_counter() - start))

    def report(self, verifying: Sequence[float] = ()) -> None:
        """Prints the seconds of every pass and their share to stderr, beside those of verifying what it gave.

        Args:
            verifying: in seconds; first the program that was given, then what each pass gave, as far as they came.
        """
        from rich.console import Console
        from rich.table import Table

        passes = [("(given)", 0.0), *self.seconds] if verifying else self.seconds
        sums = (sum(seconds for _, seconds in passes), sum(verifying))
        table = Table("pass", title="time in passes", show_footer=True)
        table.columns[0].footer = "total"
        for name, footer in (("seconds", f"{sums[0]:.3f}"), ("verifying", f"{sums[1]:.3f}"), ("share", "")):
            table.add_column(name, footer=footer, justify="right")
        for (name, seconds), checked in zip(passes, chain(verifying, repeat(0.0)), strict=False):
            share = f"{(seconds + checked) / sum(sums):.0%}" if sum(sums) else ""
            table.add_row(name, f"{seconds:.3f}", f"{checked:.3f}", share)
        Console(stderr=True).print(table)


@dataclass
class Before:
    """Instrument: keeps the program that the named pass was last given."""

    name: str
    program: Program | None = None

    def __call__(self, step: Step, proceed: Callable[[], PassResult]) -> PassResult:
        if step.pass_.name == self.name:
            self.program = step.program
        return proceed()


@dataclass(frozen=True)
class Reproducer:
    """Instrument: when a pass fails, writes the program it got, and the command that fails the same way, to `path`.

    An error of Galvatron keeps its type and gets the path added to its message; any other exception, a bug in the pass,
    becomes a `PassError`. `write` writes a text into a file.
    """

    path: Path
    write: Callable[[Path, str], None] = write_text

    def __call__(self, step: Step, proceed: Callable[[], PassResult]) -> PassResult:
        try:
            return proceed()
        except GalvatronError as error:
            error.args = (f"{error}\n{self._write(step)}",)
            raise
        except Exception as error:
            where, _ = raised_at(error)
            what = f"pass {step.pass_.name!r} failed: {type(error).__name__}: {error}, at {where}"
            raise PassError(f"{what}\n{self._write(step)}") from error

    def _write(self, step: Step) -> str:
        from galvatron.ir.text import print_program

        rest = Pipeline(step.pipeline.passes[step.index :])
        try:
            text = f"// galvatron opt {self.path} --passes '{rest}'\n{print_program(step.program)}"
            self.write(self.path, text)
        except Exception as error:
            # Whatever goes wrong here must not hide the failure that is being reported.
            return f"no reproducer could be written to {self.path}: {error}"
        return f"reproducer: {self.path}"
