"""Plans that were searched before: kept by all that a search depends on, in a directory."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from galvatron.errors import GalvatronError
from galvatron.forms import searched
from galvatron.ir.ops.table import as_shipped
from galvatron.ir.plan import Plan
from galvatron.ir.planned import with_plan
from galvatron.ir.program import Program
from galvatron.ir.text import print_program
from galvatron.ir.versions import digest
from galvatron.search_options import SearchOptions

_LOG = logging.getLogger("galvatron")


def plan_file(
    program: Program, memory_bytes: int | None, options: SearchOptions, folder: str | os.PathLike[str]
) -> Path:
    """Where the plan is kept of a program of costs, which says its cluster, as it was measured, and its batch."""
    return _file(print_program(program), memory_bytes, options, folder)


def remembered(
    program: Program, memory_bytes: int | None, options: SearchOptions, folder: str | os.PathLike[str]
) -> Program:
    """The program under the plan that was found for it before, which is logged, or that a search finds now.

    A plan of a search that had to end early is not kept, nor one of a program with operators that only this process
    knows, and a file that cannot be read, or written, is as none.

    Raises:
        GalvatronError: whatever the search raises.
    """
    text = print_program(program)
    if not as_shipped(text):
        return searched(program, memory_bytes, options)
    path = _file(text, memory_bytes, options, folder)
    try:
        found = with_plan(program, Plan.load(path))
    except GalvatronError:
        found = None
    if found is not None:
        _LOG.info("the plan is that of an earlier search: %s", path)
        return found
    planned = searched(program, memory_bytes, options)
    plan = planned.required_plan
    if plan.search.complete:
        try:
            plan.save(path)
        except GalvatronError as error:
            _LOG.info("the plan is not kept: %s", error)
    return planned


def _file(text: str, memory_bytes: int | None, options: SearchOptions, folder: str | os.PathLike[str]) -> Path:
    return Path(folder) / "plans" / f"{digest(text, str(memory_bytes), str(options))}.json"
