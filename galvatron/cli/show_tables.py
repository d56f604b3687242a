"""What is in a program, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from galvatron.inspection.classes import Overview
from galvatron.inspection.ops import LayerOps, OpFacts
from galvatron.inspection.placed_table import placed_table
from galvatron.printing import cell, wide_console
from galvatron.units import format_bytes, format_flop, format_seconds

if TYPE_CHECKING:
    from galvatron.inspection.choices import AxisChoice
    from galvatron.inspection.view import Amounts


def print_overview(found: Overview) -> None:
    """Prints what a program is made of."""
    _print(_overview(found))


def print_found(found: Sequence[LayerOps | OpFacts]) -> None:
    """Prints the ops of layers, or what is known of ops."""
    for one in found:
        _print(_layer(one) if isinstance(one, LayerOps) else _op(one))


def _print(parts: Iterator[RenderableType]) -> None:
    console = wide_console()
    for part in parts:
        console.print(part, highlight=False)


def _overview(found: Overview) -> Iterator[RenderableType]:
    head = [
        f"{found.name}, {found.form}",
        f"batch {found.batch_size}",
        *filter(None, (found.precision, found.cluster, found.plan)),
    ]
    yield cell(", ".join(head))
    yield _classes(found)
    yield _table("inputs", ("name", "type", "holds"), [(row.name, row.type, row.holds) for row in found.inputs])
    state = [
        (
            row.kind,
            row.dtype,
            "yes" if row.trained else "no",
            f"{row.tensors:,}",
            f"{row.elements:,}",
            format_bytes(row.bytes),
        )
        for row in found.state
    ]
    yield _table("state", ("kind", "type", "trained", *(">tensors", ">elements", ">size")), state)
    results = [(row.kind, row.name, f"%{row.value}", row.type) for row in found.results]
    yield _table("results", ("result", "of", "value", "type"), results)


def _classes(found: Overview) -> Table:
    staged = any(row.stages for row in found.classes)
    planned = any(row.strategies for row in found.classes) and not staged  # else the names of classes say it
    table = Table(title=f"layers; figures of {found.unit}, for each layer", show_footer=True)
    footer = [f"{found.parameters:,}", *_figures(found.figures)]
    table.add_column("class", "together", overflow="fold")
    table.add_column("kind")
    table.add_column("layers", f"{found.layers:,}", justify="right")
    table.add_column("which", overflow="fold")
    for name, total in zip(("parameters", "forward", "backward", "kept"), footer, strict=True):
        table.add_column(name, total, justify="right")
    if staged:
        table.add_column("stages", justify="right")
    if planned:
        table.add_column("strategies", overflow="fold")
    for row in found.classes:
        cells = [row.name, row.kind, f"{row.layers:,}", row.which, f"{row.parameters:,}", *_figures(row.figures)]
        cells += ([_numbers(row.stages)] if staged else []) + ([row.planned] if planned else [])
        table.add_row(*map(cell, cells))
    return table


def _figures(figures: Amounts) -> tuple[str, str, str]:
    kept = format_bytes(figures.kept_bytes)
    return format_flop(figures.forward_flop), format_flop(figures.backward_flop), kept


def _numbers(numbers: Sequence[int]) -> str:
    """Such as `0, 2–5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def _layer(found: LayerOps) -> Iterator[RenderableType]:
    yield cell(f"class {found.cls} ({found.kind}), {_layers(found.layers)}")
    if found.inputs:
        yield _table("inputs", ("name", "type"), [(f"%{name}", type_) for name, type_ in found.inputs])
    if found.bound:
        title = f"state, as {found.layers[0]} reads it"
        yield _table(title, ("name", "type", "state"), [(f"%{name}", type_, of) for name, type_, of in found.bound])
    rows: list[tuple[str, ...]] = []
    scope = source = None
    for row in found.ops:
        if row.scope != scope and row.scope:
            rows.append((f"in {row.scope}", "", "", "", "", "", ""))
        line = f"{row.source.rpartition('/')[2]}  {row.code}" if row.source and row.source != source else ""
        scope, source = row.scope, row.source
        figures = row.figures
        numbers = [figures.forward_flop, figures.backward_flop]
        flop = [format_flop(number) if number else "" for number in numbers]
        moved = format_bytes(figures.moved_bytes) if figures.moved_bytes else ""
        rows.append((", ".join(f"%{name}" for name in row.results), row.op, ", ".join(row.types), *flop, moved, line))
    columns = ("value", "op", "type", ">forward", ">backward", ">moved", "…line")
    yield _table(f"ops; figures of {found.unit}", columns, rows)
    yield cell(f"results: {', '.join(f'%{name}' for name in found.outputs)}")


def _counted(layers: int) -> str:
    return f"{layers:,} layer{'s' * (layers != 1)}"


def _layers(names: Sequence[str]) -> str:
    if len(names) < 2:
        return names[0] if names else "of no layer"
    return f"{len(names)} layers: {names[0]} … {names[-1]}"


def _op(found: OpFacts) -> Iterator[RenderableType]:
    row, figures = found.row, found.row.figures
    yield cell(found.text)
    yield cell(f"  class {found.cls}, {_counted(found.layers)}{f', in {row.scope}' if row.scope else ''}")
    if row.source:
        yield cell(f"  {row.source}  {row.code}")
    yield cell(
        f"  {found.unit}: forward {format_flop(figures.forward_flop)}, backward {format_flop(figures.backward_flop)}, "
        f"reads and writes {format_bytes(figures.moved_bytes)}, keeps {format_bytes(figures.kept_bytes)} by itself"
    )
    sizes = ", ".join(f"{name} = {size}" for name, size in found.sizes.items())
    yield cell(
        f"  rule: {found.rule}{sizes and f'   with {sizes}'}" if found.rule else f"  no rule: {found.why_no_rule}"
    )
    yield from (cell(f"  reads %{name} : {type_} ({made})") for name, type_, made in found.reads)
    yield cell(f"  read by {', '.join(found.read_by) or 'nothing'}")
    if found.placements:
        yield placed_table("where its values are", found.mesh, found.placements)
    for choice in found.choices:
        yield _choice(choice)


def _choice(choice: AxisChoice) -> Table:
    why = f", whole: {choice.whole}" if choice.whole else ""
    rows = [
        (
            "→" if way.chosen else "",
            way.does,
            ", ".join(way.operands),
            ", ".join(way.results),
            format_seconds(way.op_s),
            "does not fit what is around it" if way.more_s is None else format_seconds(way.more_s),
        )
        for way in choice.ways
    ]
    title = f"{choice.strategy} ({_counted(choice.layers)}), axis {choice.axis}{why}; of the whole batch"
    return _table(title, ("", "op", "operands", "results", ">takes", ">layer then takes more"), rows)


_CODE_COLUMNS = 48


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table; columns that begin with `>` are of numbers, those with `…` of lines of code, which are folded first."""
    table = Table(title=cell(title))
    for name in columns:
        justify = "right" if name.startswith(">") else "left"
        if name.startswith("…"):
            table.add_column(name.removeprefix("…"), overflow="fold", max_width=_CODE_COLUMNS)
        else:
            table.add_column(name.removeprefix(">"), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(cell, row))
    return table
