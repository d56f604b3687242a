"""Where values are on each mesh axis, where their gradients are, and why that is legal, as a table."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from galvatron.inspection.placements import PlacedValue, Spot
from galvatron.printing import cell


def placed_table(title: str, mesh: Iterable[str], values: Iterable[PlacedValue]) -> Table:
    """The table, with a column for each axis of the mesh."""
    table = Table(title=cell(title), show_lines=True)
    table.add_column("value", overflow="fold")
    table.add_column("by", overflow="fold")
    for axis in mesh:
        table.add_column(cell(axis), no_wrap=True)
    table.add_column("why", overflow="fold", ratio=1)
    for value in values:
        placed = (_placed(spot) for spot in value.spots)
        table.add_row(*map(cell, (f"%{value.name}", _by(value), *placed)), _why(value.spots))
    return table


def _by(value: PlacedValue) -> str:
    return value.by if not value.rule else f"{value.by}  [{value.rule}]"


def _placed(spot: Spot) -> str:
    return f"{spot.value} | {spot.gradient or '–'}"


def _why(spots: tuple[Spot, ...]) -> Text:
    """The reasons, a line for each axis; one that is the same on all axes once."""
    reasons = {spot.why for spot in spots}
    if len(reasons) == 1:
        return cell(reasons.pop())
    return Text("\n").join(cell(f"{spot.axis}: {spot.why}") for spot in spots)
