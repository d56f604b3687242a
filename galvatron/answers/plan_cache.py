"""Plans that were searched before: kept by all that a search depends on, in a directory."""

from __future__ import annotations

import hashlib
import logging
import os
from functools import cache
from pathlib import Path

import torch

import galvatron
from galvatron.errors import GalvatronError
from galvatron.forms import searched
from galvatron.ir.plan import Plan
from galvatron.ir.planned import with_plan
from galvatron.ir.program import Program
from galvatron.ir.text import print_program
from galvatron.search_options import SearchOptions

_LOG = logging.getLogger("galvatron")


def plan_file(
    program: Program, memory_bytes: int | None, options: SearchOptions, folder: str | os.PathLike[str]
) -> Path:
    """Where the plan is kept of a program of costs, which says its cluster, as it was measured, and its batch."""
    digest = hashlib.sha256()
    for part in (print_program(program), str(memory_bytes), str(options), _version()):
        digest.update(f"{len(part)};{part}".encode(errors="surrogatepass"))
    return Path(folder) / "plans" / f"{digest.hexdigest()[:32]}.json"


def remembered(
    program: Program, memory_bytes: int | None, options: SearchOptions, folder: str | os.PathLike[str]
) -> Program:
    """The program under the plan that was found for it before, which is logged, or that a search finds now.

    A plan of a search that had to end early is not kept, and a file that cannot be read, or written, is as none.

    Raises:
        GalvatronError: whatever the search raises.
    """
    path = plan_file(program, memory_bytes, options, folder)
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


@cache
def _version() -> str:
    """What the answer of a search depends on besides: this package, file by file, and torch."""
    root = Path(galvatron.__file__).parent
    files = [(str(path.relative_to(root)), path.stat()) for path in sorted(root.rglob("*.py"))]
    return repr([torch.__version__, *((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)])
