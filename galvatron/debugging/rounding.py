"""Which differences are rounding: a program beside the same computation in float64, and that in float32 beside it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from galvatron.debugging.comparison import distance, finite_norm, rounding_of
from galvatron.printing import text_table

FACTOR = 10.0
"""A difference is rounding that is at most so many times as large as what eager float32 differs by: sums in another
order differ by about as much."""

SHOWN = 40
"""Rows of a table: of more, those that are no rounding, and the largest others."""


@dataclass(frozen=True)
class Row:
    """One tensor of a program beside that of the eager model.

    Attributes:
        what: `loss`, `gradient` or `output`.
        name: of a gradient the parameter's, of an output the value's.
        layer, line: where it is made, or first read, and what that line of the model is.
        difference: of the program from float64, relative to the norm of the tensor.
        rounding: what the element type of the program may make of it: what eager float32 differs from float64 by, in
            units of that type.
    """

    what: str
    name: str
    layer: str
    line: str
    difference: float
    rounding: float

    @property
    def is_rounding(self) -> bool:
        """Whether the difference is within a small factor of rounding."""
        return self.difference <= FACTOR * self.rounding

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

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [asdict(row) | {"is_rounding": row.is_rounding} for row in self.rows]
        return {"dtype": self.dtype, "rows": [{k: _plain(v) for k, v in row.items()} for row in rows]}

    def __str__(self) -> str:
        rows = self.rows
        if len(rows) > SHOWN:
            chosen = sorted(rows, key=lambda row: (row.is_rounding, -row.difference / (row.rounding or 1.0)))[:SHOWN]
            rows = tuple(row for row in rows if row in chosen)
        lines = text_table(("", "", "layer", "differs by", "rounding", ""), map(_cells, rows))
        left = len(self.rows) - len(rows)
        lines += [f"({left} more, rounding or smaller)"] if left else []
        if self.departures:
            count = f"{len(self.departures)} of {len(self.rows)} differ by more than rounding of {self.dtype}"
            return "\n".join([*lines, f"{count}; the first is {self.departures[0]}"])
        return "\n".join([*lines, f"all {len(self.rows)} differ by rounding of {self.dtype}, or not at all"])


def _cells(row: Row) -> tuple[str, ...]:
    verdict = "rounding" if row.is_rounding else "NOT ROUNDING"
    return row.what, row.name, row.layer, f"{row.difference:.1e}", f"{row.rounding:.1e}", verdict


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Reference:
    """A tensor that eager computes, in float64 and in float32."""

    wide: Tensor
    narrow: Tensor

    def beside(self, found: Tensor, dtype: torch.dtype, least: float = 0.0) -> tuple[float, float]:
        """How much a tensor of a program that computes in a type differs, and what of that may be rounding.

        Args:
            least: the norm that the tensor is taken to have at least.
        """
        size = max(finite_norm(self.wide), least)
        units = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        rounding = max(units * rounding_of(self.narrow, self.wide, size), torch.finfo(dtype).eps)
        return distance(found.to(self.wide.device), self.wide, size), rounding
