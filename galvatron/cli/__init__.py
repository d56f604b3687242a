"""The command line: `galvatron` and `python -m galvatron`.

One file per command. Results go to stdout, everything else to stderr. A command imports what it needs when it runs, so
that `--help` is quick and never loads torch.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from galvatron.cli import (
    bisect,
    capture,
    check,
    demo,
    diff,
    emit,
    estimate,
    explain,
    opt,
    profile,
    reduce,
    report,
    run,
    search,
    show,
    trace,
)
from galvatron.cli.errors import ErrorReportingGroup
from galvatron.cli.output import FileCommand
from galvatron.errors import GalvatronError

BUG = 70
"""The exit status where the command line itself is at fault, as `EX_SOFTWARE` of BSD's `sysexits.h`."""

app = typer.Typer(
    name="galvatron",
    cls=ErrorReportingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _module in (
    demo, check, capture, search, estimate, explain, report, show, trace, diff, emit, opt, run, bisect, reduce,
):  # fmt: skip
    app.command(_module.__name__.rpartition(".")[2], cls=FileCommand)(_module.command)
app.add_typer(profile.app)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"galvatron {version('galvatron')}")
        raise typer.Exit


@app.callback()
def _galvatron(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    imported: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="FILE.py",
            help="Run a file first, such as one with operators and their rules; repeatable.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Turns an unmodified PyTorch model into the fastest distributed training program that fits the cluster."""
    for path in imported or ():
        capture.run_file(path)


def main() -> None:
    """Runs the command line; the exit status is 2 when the user's input is at fault, 1 when `check` finds a model that
    cannot be captured, or a program that is wrong, and `BUG` for an error of our own, which is no answer."""
    try:
        app(prog_name="galvatron")
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(2 if isinstance(error, (GalvatronError, OSError)) else BUG)
