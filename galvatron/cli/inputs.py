"""What several commands read: programs, plans, clusters, and the options that name them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galvatron.errors import GalvatronError, ParseError, VerifyError
from galvatron.ir.limits import FILE_CHARACTERS, SAMPLES

if TYPE_CHECKING:
    from galvatron.ir.cluster import Cluster
    from galvatron.ir.plan import Plan
    from galvatron.ir.program import Program

ProgramFile = Annotated[Path, typer.Argument(metavar="PROGRAM.gir", help="A captured program; - reads stdin.")]
ClusterText = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="PRESET:NODESxDEVICES|PROFILE.json",
        help="The cluster, such as a100-80g:2x8, or one that was measured.",
    ),
]
PlanText = Annotated[
    str,
    typer.Option("--plan", metavar="PLAN", help="A plan file, or one strategy for all layers: pp2/m4/1f1b/dp1-tp2."),
]
GlobalBatch = Annotated[
    int | None,
    typer.Option(
        "--global-batch",
        min=1,
        max=SAMPLES,
        metavar="N",
        help="Samples per step, if not those of the plan file, or of the example batch.",
    ),
]
Inductor = Annotated[
    bool, typer.Option("--inductor", help="Layers will be compiled: compile(..., inductor=True) runs other kernels.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def read_program(path: Path, *, verified: bool = True, computed: bool = True) -> Program:
    """Reads a program file, or stdin for `-`; a valid one, unless the caller sees to that.

    Args:
        computed: see `verify`.

    Raises:
        ParseError: malformed text, with the file, line and column.
        VerifyError: the program breaks a rule of its form.
        GalvatronError: not text.
        OSError: no such file, or not readable.
    """
    program = parsed_program(read_program_text(path), path)
    if verified:
        from galvatron.ir.verify import verify

        with _naming(path):
            verify(program, computed=computed)
    return program


def parsed_program(text: str, path: Path) -> Program:
    """The program that a file has as its text.

    Raises:
        ParseError: malformed text, with the file, line and column.
    """
    from galvatron.ir.text import parse_program

    with _naming(path):
        return parse_program(text)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors about a program say which file it is from."""
    try:
        yield
    except (ParseError, VerifyError) as error:
        error.args = (f"{path}: {error}",)
        raise


def read_program_text(path: Path) -> str:
    """The text of a program file, or stdin for `-`.

    Raises:
        GalvatronError: not text.
        OSError: no such file, or not readable.
    """
    from galvatron.ir.files import read_text

    try:
        return sys.stdin.read(FILE_CHARACTERS + 1) if str(path) == "-" else read_text(path)
    except UnicodeDecodeError:
        raise GalvatronError(f"{path} is not a text file") from None
    except ValueError as error:
        raise GalvatronError(f"cannot read {str(path)!r}: {error}") from None


def read_cluster(text: str) -> Cluster:
    """The cluster that a preset string names, or the one on which the profile in a file was taken.

    Raises:
        ClusterError: malformed, or an unknown preset; or the file has no such profile.
        ParseError, OSError: the file cannot be read.
    """
    from galvatron.profiler.clusters import named_cluster

    return named_cluster(text)


def read_plan(text: str, program: Program, cluster: Cluster, global_batch_size: int | None) -> Plan:
    """The plan in a file, or the one that a shorthand means for this program, cluster and batch; without a batch for
    its own, or that of the program.

    Raises:
        PlanError, ParseError, StrategyError: it does not parse, or does not fit the program, cluster or batch.
    """
    from galvatron.ir import planned

    plan = planned.read_plan(text)
    if global_batch_size is None:
        global_batch_size = plan.global_batch_size if isinstance(plan, planned.Plan) else program.batch_size
    return planned.fitted(plan, program, cluster.world_size, global_batch_size)
