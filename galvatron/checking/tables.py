"""What was found, as tables and lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from galvatron.checking.found import Found, FoundClass, Run, Samples
from galvatron.ir.planned import PlanShorthand
from galvatron.printing import cell
from galvatron.units import format_count

SMALL = 0.01
"""Kinds of ops with a smaller share of their class's time are left out."""


def shown(found: Found) -> Iterator[RenderableType]:
    """What was found, part by part."""
    yield _class_table(found)
    yield from map(cell, _lines(found))
    yield _whole_table(found)
    yield from _plan_tables(found)


def shown_run(run: Run) -> str:
    """What was seen of the example batch, as a line."""
    if run.skipped:
        return f"not compared with eager: {run.skipped}"
    if not run.differs:
        return (
            f"on the example batch equal to eager: the loss is {run.loss:.6g}, and {run.compared} tensors differ by "
            f"{run.difference:.1e} at most ({run.where})"
        )
    return (
        f"WRONG on the example batch: {run.where} differs from eager by {run.difference:.1e} (rounding is below "
        f"{run.tolerance:.0e}); the loss is {run.loss:.6g}, and {run.eager_loss:.6g} in eager: do not train this "
        "program. Forward goes another way while it is traced, such as where it asks for the class of a tensor"
    )


def _class_table(found: Found) -> Table:
    planned = [cls for cls in found.classes if cls.kind == "layer"]
    count = sum(len(cls.layers) for cls in planned)
    of = format_count(len(planned), "class", "classes")
    table = Table(title=f"{format_count(found.parameters, 'parameter')} in {format_count(count, 'layer')} of {of}")
    table.add_column("class", overflow="fold")
    table.add_column("kind")
    table.add_column("layers", justify="right")
    table.add_column("parameters each", justify="right")
    table.add_column("modules", overflow="fold")
    for cls in found.classes:
        table.add_row(*map(cell, (cls.name, cls.kind, str(len(cls.layers)), f"{cls.parameters:,}", _modules(cls))))
    return table


def _modules(cls: FoundClass) -> str:
    """The modules of the first and the last layer of a class."""
    ends = cls.modules[:1] if len(cls.modules) == 1 else (cls.modules[0], cls.modules[-1])
    return (" … " if len(cls.modules) > 2 else ", ").join(", ".join(names) for names in ends if names)


def _lines(found: Found) -> Iterator[str]:
    """Facts of which each has a line."""
    yield from _sample_lines(found.samples)
    for draw in found.draws:
        times = f" ×{draw.count}" if draw.count > 1 else ""
        yield f"random numbers: {draw.op}{times} in {draw.cls}: {draw.line}"
    for tie in found.ties:
        yield f"shared: {', '.join(tie.parameters)} by {', '.join(tie.layers)}"


def _sample_lines(samples: Samples) -> Iterator[str]:
    others = f"; the same for all: {', '.join(samples.others)}" if samples.others else ""
    yield f"samples: {', '.join(samples.inputs)}{others}; batch sizes {samples.sizes}"
    if samples.lengths:
        yield f"sizes that may change: {'; '.join(samples.lengths)}"
    if samples.coupled:
        yield f"samples interact, so there is one micro-batch only: {samples.coupled}"
    elif samples.epilogue:
        yield f"samples interact at the end of the loss, which runs once per step (gpipe or m1): {samples.epilogue}"
    else:
        yield "samples do not interact: any number of micro-batches is exact"


def _whole_table(found: Found) -> Table:
    table = Table(
        title=f"what every rank computes whole, on {found.degree} ranks",
        caption=f"share of a class's time on one device; less than {SMALL:.0%} left out",
    )
    for name in ("role", "class", "op", "why"):
        table.add_column(name, overflow="fold")
    for name in ("ops", "share"):
        table.add_column(name, justify="right")
    refused = [(row.role, row.cls, "", row.why, "", "") for row in found.refused_roles]
    large = (row for row in found.whole if row.share >= SMALL)
    left = [(row.role, row.cls, row.op, row.why, str(row.count), f"{row.share:.1%}") for row in large]
    for role in found.roles:
        rows = [row for row in (*refused, *left) if row[0] == role] or [(role, "", "nothing", "", "", "")]
        before = ("", "")
        for row in rows:
            head = ("", row[1] if row[1] != before[1] else "") if row[0] == before[0] else row[:2]
            table.add_row(*map(cell, (*head, *row[2:])))
            before = row[:2]
        table.add_section()
    return table


def _plan_tables(found: Found) -> Iterator[RenderableType]:
    """Which plans there are, and below why others are refused."""
    rows: dict[str, dict[int, str]] = defaultdict(dict)
    reasons: dict[str, str] = {}
    for plan in found.plans:
        shorthand = PlanShorthand.parse(plan.plan)
        mark = "yes" if not plan.refused else reasons.setdefault(plan.refused, f"no ({len(reasons) + 1})")
        rows[f"pp{shorthand.pipeline_degree}/{shorthand.strategy}"][shorthand.micro_batches] = mark
    counts = sorted({count for row in rows.values() for count in row})
    samples = format_count(found.global_batch_size, "sample")
    table = Table(title=f"plans for {format_count(found.devices, 'device')} and {samples}")
    table.add_column("plan")
    for count in counts:
        table.add_column(f"m{count}")
    for name, row in rows.items():
        table.add_row(*map(cell, (name, *(row[count] for count in counts))))
    yield table
    yield from (cell(f"{mark.removeprefix('no ')} {reason}") for reason, mark in reasons.items())
