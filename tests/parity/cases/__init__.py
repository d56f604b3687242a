"""Random plans that once were wrong: planned programs as text, each under a line that names the model and its batch.

    // random-3, batch 7, without labels 1 4

The test that draws a failing plan writes it to `latest.gir`, and then each smaller one: what is left is the smallest.
Under a name of its own it is kept, and `test_cases.py` runs it as it was: its graphs, its plan, its batch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from galvatron.ir.program import Program
from galvatron.ir.text import parse_program, print_program
from tests.parity.harness import subject
from tests.parity.subjects import Batch, ignore_labels

FOLDER = Path(__file__).parent
_TITLE = re.compile(r"// (?P<model>\S+), batch (?P<seed>\d+)(?:, without labels (?P<ignored>[\d ]+))?")


@dataclass(frozen=True)
class Case:
    """A planned program of a model of `subjects`, and its batch: the seed, and the samples without labels."""

    model: str
    program: Program
    seed: int
    ignored: Sequence[int] = ()

    @property
    def batch(self) -> Batch:
        batch = subject(self.model).batch(self.program.batch_size, self.seed)
        return ignore_labels(batch, list(self.ignored)) if self.ignored else batch

    @property
    def text(self) -> str:
        ignored = f", without labels {' '.join(map(str, self.ignored))}" if self.ignored else ""
        return f"// {self.model}, batch {self.seed}{ignored}\n\n{print_program(self.program)}"

    def keep(self) -> Path:
        """Write the case to `latest.gir`."""
        path = FOLDER / "latest.gir"
        path.write_text(self.text)
        return path

    @staticmethod
    def read(path: Path) -> Case:
        text = path.read_text()
        title = _TITLE.match(text)
        assert title is not None, f"{path} does not begin with a line such as `// random-3, batch 7`"
        ignored = tuple(map(int, (title["ignored"] or "").split()))
        return Case(title["model"], parse_program(text), int(title["seed"]), ignored)
