"""A program beside the eager model, tensor by tensor: a table that says of each difference whether it is rounding."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from galvatron.debugging.rounding import Difference
from galvatron.ir.json_values import finite
from galvatron.printing import text_table

SHOWN = 40, 10
"""Rows of a table, at most: of those that are no rounding, and of the others, of which the loss is always one."""


@dataclass(frozen=True)
class Row(Difference):
    """One tensor of a program beside that of the eager model in float64: its rounding is that of the program's element
    type, which is what eager differs by in that type, or in float32, in units of it, for a program in float64.

    Attributes:
        what: `loss`, `gradient` or `output`.
        name: of a gradient the parameter's, of an output the value's.
        layer, line: where it is made, or first read, and what that line of the model is.
    """

    what: str
    name: str
    layer: str
    line: str

    def __str__(self) -> str:
        where = f" in {self.layer}" if self.layer else ""
        line = f"\n  {self.line}" if self.line else ""
        return f"the {self.what}{f' of {self.name}' if self.name else ''}{where}{line}"


@dataclass(frozen=True)
class Comparison:
    """A program beside the eager model: `str()` of it is a table.

    Attributes:
        rows: in the order in which they are computed: outputs of layers, the loss, gradients from the last layer on.
        dtype: the element type in which the program computes.
    """

    rows: tuple[Row, ...]
    dtype: str

    @cached_property
    def departures(self) -> tuple[Row, ...]:
        """What differs by more than rounding."""
        return tuple(row for row in self.rows if not row.is_rounding)

    @property
    def _forward_is_captured(self) -> bool:
        """Whether all that layers give was compared with the captured program, and none of it is off."""
        outputs = [row for row in self.rows if row.what == "output"]
        return bool(outputs) and all(row.is_rounding for row in outputs)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [asdict(row) | {"is_rounding": row.is_rounding} for row in self.rows]
        return finite({"dtype": self.dtype, "rows": rows})

    def __str__(self) -> str:
        largest = sorted(self.rows, key=lambda row: (row.what != "loss", -row.difference / (row.rounding or 1.0)))
        chosen = [row for row in largest if not row.is_rounding][: SHOWN[0]]
        chosen += [row for row in largest if row.is_rounding][: SHOWN[1]]
        rows = [row for row in self.rows if row in chosen]
        lines = text_table(("", "", "layer", "differs by", "rounding", ""), map(_cells, rows))
        left = len(self.rows) - len(rows)
        lines += [f"({left} more, which differ by less)"] if left else []
        if self.departures:
            count = f"{len(self.departures)} of {len(self.rows)} differ by more than rounding of {self.dtype}"
            lines.append(f"{count}; the first is {self.departures[0]}")
            return "\n".join([*lines, *([_FORWARD] if self._forward_is_captured else [])])
        return "\n".join([*lines, f"all {len(self.rows)} differ by rounding of {self.dtype}, or not at all"])


_FORWARD = (
    "what layers give is what the captured program computes: either the model is another one than was captured, which "
    "`galvatron check --run` tells, or it is in the loss or in backward that the program is wrong"
)


def _cells(row: Row) -> tuple[str, ...]:
    verdict = "rounding" if row.is_rounding else "NOT ROUNDING"
    return row.what, row.name, row.layer, f"{row.difference:.1e}", f"{row.rounding:.1e}", verdict
