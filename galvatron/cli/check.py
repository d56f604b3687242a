"""`galvatron check`: what there is to know of a model before it is trained, or whether a program is a right one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from galvatron.cli.capture import Checks, Dynamic, Outputs, Precision, call_factory, read_dynamic
from galvatron.cli.inputs import Json, parsed_program, read_program_text
from galvatron.cli.output import as_json, error_json, say
from galvatron.errors import GalvatronError
from galvatron.ir.limits import DEVICES, SAMPLES

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE_S = 2.0
"""Seconds after which it is shown what goes on."""

Target = Annotated[
    str, typer.Argument(metavar="FILE.py:FACTORY|PROGRAM.gir", help="A function that makes the model, or a program.")
]


def command(
    target: Target,
    precision: Precision = None,
    dynamic: Dynamic = None,
    outputs: Outputs = None,
    devices: Annotated[
        int | None, typer.Option("--devices", min=1, max=DEVICES, metavar="N", help="Plans are tried for these [8].")
    ] = None,
    degree: Annotated[
        int | None, typer.Option("--degree", min=2, max=DEVICES, metavar="N", help="Ranks of each role [2].")
    ] = None,
    global_batch: Annotated[
        int | None,
        typer.Option("--global-batch", min=1, max=SAMPLES, metavar="N", help="Samples per step of these plans."),
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Compare with eager on the example batch.")] = False,
    checks: Checks = True,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="LAYER", help="Of a program: only the class of this layer.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="NAME", help="Of a program: only this value, operator or module of the model."),
    ] = None,
    placements: Annotated[
        bool,
        typer.Option(
            "--placements", help="Of a sharded program: where its values are, and why; as --layer and --only."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Tell what becomes of a model, or whether a program is right.

    Of a model, by a FACTORY as for `galvatron capture`: layers, samples, what cannot be split, which plans there are.
    The exit status is 0 if it can be captured, and 1 if it cannot or --run finds that it computes something else.

    Of a program file: whether it keeps every rule of its form, at which line it does not, and what would mend it; of a
    sharded one, with --placements, where every value and gradient is on each mesh axis, and why that is legal. The exit
    status is 0 if the program is right, and 1 if it is not.

    It is 2 if the question is wrong.
    """
    if _names_program(target):
        asked = {"--precision": precision, "--dynamic": dynamic, "--outputs": outputs, "--global-batch": global_batch}
        asked |= {"--devices": devices, "--degree": degree, "--run": run, "--no-checks": not checks}
        for option, value in asked.items():
            if value:
                raise GalvatronError(f"{option} is for a model, and {target} is a program")
        return _check_program(Path(target), layer, only, placements, json)
    for option, value in {"--layer": layer, "--only": only, "--placements": placements or None}.items():
        if value is not None:
            raise GalvatronError(f"{option} is for a program, and {target} is a model")
    model, example_inputs, loss_fn = call_factory(target)

    from galvatron.checking.examine import check

    tried: dict[str, Any] = {"devices": devices, "degree": degree}
    with _patience() as told:
        report = check(
            model,
            example_inputs,
            loss_fn=loss_fn,
            dynamic=read_dynamic(dynamic),
            outputs=outputs or (),
            precision=precision,
            **{name: given for name, given in tried.items() if given is not None},
            global_batch_size=global_batch,
            checks=checks,
            run=run,
            told=told,
        )
    if json:
        say(as_json(report.to_dict()))
    else:
        report.print(_console())
    if not report.captured or report.differs:
        raise typer.Exit(1)


def _names_program(target: str) -> bool:
    """Whether a program file is named, and not a function of a Python file."""
    return target == "-" or Path(target).suffix == ".gir" or (Path(target).suffix != ".py" and Path(target).is_file())


def _check_program(path: Path, layer: str | None, only: str | None, placements: bool, json: bool) -> None:
    from galvatron.checking.program import check_program

    try:
        text = read_program_text(path)
        report = check_program(parsed_program(text, path), text, layer=layer, only=only)
    except (GalvatronError, OSError) as error:
        if json:
            say(as_json({"error": error_json(error)}))
        raise
    if json:
        say(as_json(report.to_dict()))
    else:
        report.print(_console(), placements=placements or layer is not None or only is not None)
    if report.refused is not None:
        raise typer.Exit(1)


def _console() -> Console:
    from galvatron.checking.report import TEXT_WIDTH
    from galvatron.printing import wide_console

    return wide_console(width=TEXT_WIDTH)


@contextmanager
def _patience() -> Iterator[Callable[[str], None]]:
    """A function that shows on stderr what goes on, where that is a terminal and it takes longer than `PATIENCE_S`."""
    from rich.console import Console

    from galvatron.printing import cell

    status = Console(stderr=True).status("")
    timer = threading.Timer(PATIENCE_S, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda doing: status.update(cell(doing))
    finally:
        timer.cancel()
        timer.join()
        status.stop()
