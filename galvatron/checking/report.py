"""`Report`: what `galvatron check` has to say of a model."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType

from galvatron.checking.found import Found, Run
from galvatron.checking.tables import shown, shown_run
from galvatron.ir.json_values import finite
from galvatron.printing import cell
from galvatron.units import format_seconds

TEXT_WIDTH = 120
"""Columns of what goes to no terminal."""


@dataclass(frozen=True)
class Report:
    """Whether a model can be captured, and what its program is like. `str()` is a text for a reader.

    Attributes:
        model: the name of its class.
        precision: see `galvatron.compile`.
        capture_s: seconds from the model to its layers.
        refused: why it cannot be captured, in the order in which it was found; empty if it can. What can be passed over
            while a model is traced is listed whole: branches on values, hooks, seeds, writes that autograd does not
            see, ops that no program has. Anything else ends the list, and what follows the first may follow from it.
        warnings: what the program leaves out, such as checks of values.
        run: what program and model compute of the example batch; None if that was not asked for.
        found: what there is to know of the program; None of a model that is refused.
    """

    model: str
    precision: str | None
    capture_s: float
    refused: tuple[str, ...]
    warnings: tuple[str, ...]
    run: Run | None
    found: Found | None

    @property
    def captured(self) -> bool:
        return self.found is not None

    @property
    def differs(self) -> bool:
        """Whether program and model were seen to compute different things."""
        return self.run is not None and self.run.differs

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it: the fields by name, `captured` and `differs`; None for what is infinite or NaN."""
        return finite({"captured": self.captured, "differs": self.differs, **dataclasses.asdict(self)})

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=TEXT_WIDTH, color_system=None)
        self.print(console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    def print(self, console: Console) -> None:
        """Prints the report as tables."""
        for part in self._parts():
            console.print(part)

    def _parts(self) -> Iterator[RenderableType]:
        name = f"{self.model} in {self.precision}" if self.precision else self.model
        verdict = "cannot be captured" if self.found is None else "is captured"
        yield cell(f"{name} {verdict} ({format_seconds(self.capture_s)})")
        yield from (cell(f"refused: {reason}") for reason in self.refused)
        yield from (cell(f"warning: {text}") for text in self.warnings)
        if self.run is not None:
            yield cell(shown_run(self.run))
        if self.found is not None:
            yield from shown(self.found)
