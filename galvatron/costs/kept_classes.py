"""What classes cost before any sharding, kept on disk beside what they cost under strategies (`costs.kept`).

It follows from the text of the program, the kind of device and the code, which are in the name of the file.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from galvatron.costs.kept import keeping
from galvatron.costs.sheets import opened, sealed
from galvatron.errors import GalvatronError
from galvatron.ir.cost import ClassCost, at_batch
from galvatron.ir.files import write_bytes
from galvatron.ir.ops.table import as_shipped
from galvatron.ir.program import Program
from galvatron.ir.text import print_program
from galvatron.ir.text.arguments import format_argument, parse_expression
from galvatron.ir.versions import digest

_LOG = logging.getLogger("galvatron")

Costs = tuple[ClassCost, ...]
"""One for each class of a program."""

_FIGURES = tuple(field.name for field in fields(ClassCost))


def class_costs(program: Program, kind: str, find: Callable[[], Costs]) -> Costs:
    """What the classes of a clustered program cost on a kind of device: what is kept where costs are kept now, or what
    is found, and then kept there."""
    kept = keeping()
    if kept is None or not as_shipped(text := print_program(program, comments=False)):
        return find()
    name = digest(text, kind)
    path = kept.folder / f"{name}.classes"
    if (known := _read(path, name, program)) is not None:
        return known
    costs = find()
    told = [[format_argument(getattr(cost, figure)) for figure in _FIGURES] for cost in costs]
    try:
        write_bytes(path, sealed(name, json.dumps(told).encode()))
    except OSError as error:
        _LOG.info("the costs of classes are not kept: %s", error)
    return costs


def _read(path: Path, name: str, program: Program) -> Costs | None:
    """What a file tells; None without one, and of one that is damaged."""
    try:
        told = json.loads(opened(name, path.read_bytes()))
        costs = tuple(_cost(figures, program.batch_size) for figures in told)
        if len(costs) != len(program.classes):
            raise GalvatronError("it is of other classes")
        os.utime(path)
    except FileNotFoundError:
        return None
    except (OSError, GalvatronError, TypeError, ValueError, RecursionError) as error:
        _LOG.info("the costs of classes in %s are told anew: %s", path, error)
        return None
    return costs


def _cost(figures: Any, batch_size: int) -> ClassCost:
    """
    Raises:
        GalvatronError, TypeError, ValueError: these are no figures of a cost.
    """
    cost = ClassCost(*(parse_expression(text) for text in figures))  # type: ignore[arg-type]  # seen below
    if any(at_batch(getattr(cost, figure), batch_size) < 0 for figure in _FIGURES):
        raise ValueError("a figure is negative")
    return cost
