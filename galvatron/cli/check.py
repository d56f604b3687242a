"""`galvatron check`: what there is to know of a model before it is trained."""

from __future__ import annotations

import json as documents
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from galvatron.cli.capture import Checks, Dynamic, FactoryText, Outputs, Precision, call_factory, read_dynamic
from galvatron.cli.inputs import Json
from galvatron.ir.limits import DEVICES, SAMPLES

PATIENCE_S = 2.0
"""Seconds after which it is shown what goes on."""


def command(
    factory: FactoryText,
    precision: Precision = None,
    dynamic: Dynamic = None,
    outputs: Outputs = None,
    devices: Annotated[
        int, typer.Option("--devices", min=1, max=DEVICES, metavar="N", help="Devices that plans are tried for.")
    ] = 8,
    degree: Annotated[int, typer.Option("--degree", min=2, max=DEVICES, metavar="N", help="Ranks of each role.")] = 2,
    global_batch: Annotated[
        int | None,
        typer.Option("--global-batch", min=1, max=SAMPLES, metavar="N", help="Samples per step of these plans."),
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Compare with eager on the example batch.")] = False,
    checks: Checks = True,
    json: Json = False,
) -> None:
    """Tell what becomes of a model: layers, samples, what cannot be split, which plans there are.

    FACTORY is that of `galvatron capture`. The exit status is 0 if the model can be captured, 1 if it cannot or --run
    finds that it computes something else, and 2 if the question is wrong.
    """
    model, example_inputs, loss_fn = call_factory(factory)

    from galvatron.checking import check

    with _patience() as told:
        report = check(
            model,
            example_inputs,
            loss_fn=loss_fn,
            dynamic=read_dynamic(dynamic),
            outputs=outputs or (),
            precision=precision,
            devices=devices,
            degree=degree,
            global_batch_size=global_batch,
            checks=checks,
            run=run,
            told=told,
        )
    if json:
        print(documents.dumps(report.to_dict(), indent=2))
    else:
        from rich.console import Console

        from galvatron.checking.report import TEXT_WIDTH

        console = Console()
        if not console.is_terminal:
            console.width = TEXT_WIDTH
        report.print(console)
    if not report.captured or report.differs:
        raise typer.Exit(1)


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
