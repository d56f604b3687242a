"""`galvatron run`: runs a program on random numbers in this process, before and after passes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from galvatron.cli.bisect import Passes, chosen
from galvatron.cli.inputs import Json, ProgramFile, read_program
from galvatron.cli.output import as_json, say
from galvatron.errors import GalvatronError

if TYPE_CHECKING:
    from galvatron.ir.program import Program


def command(
    program_file: ProgramFile,
    passes: Passes = "",
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare what is computed before and after every pass.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="BEFORE.gir", help="Compare with the program that this one was made from."),
    ] = None,
    json: Json = False,
) -> None:
    """Run a program on random numbers, forward and backward, in float64 and on one device.

    Without --compare its loss and the norms of its gradients are shown. With it the program is run before and after
    every pass, at several scales of the numbers, and each class that `shard` cut on all ranks of its mesh; the first op
    of which a value or a gradient departs is named. --against does the same with a program that was made of another
    one by whatever means, such as by hand. The exit status is 1 if something departs.
    """
    program = read_program(program_file)
    for option, given in {"--compare": compare, "--passes": passes}.items():
        if against is not None and given:
            raise GalvatronError(f"{option} runs passes, and --against compares two programs: leave one out")
    if against is not None:
        return _against(read_program(against), program, json)
    if not compare:
        return _show(program, json)
    from galvatron.debugging.passes import outcomes

    found = list(outcomes(program, chosen(passes, program)))
    rows = [{"pass": one.pass_, "numbers": one.kind, "text": one.text} for one in found]
    say(as_json(rows) if json else _comparison(rows))
    if any(one.failed for one in found):
        raise typer.Exit(1)


def _against(before: Program, after: Program, json: bool) -> None:
    from galvatron.debugging.passes import pass_departure, unlike_numbers
    from galvatron.ir.program import Form

    if before.form >= Form.SHARDED:
        raise GalvatronError(f"the program that it is compared with is {before.form}: name one before shard")
    found = pass_departure(before, after)
    unlike = unlike_numbers(before, after) if found is None else []
    told = {"numbers": "same" if found is None else "departs", "text": "" if found is None else str(found)}
    told |= {"text": "\n".join([_UNLIKE, *unlike])} if unlike else {}
    text = ": ".join(filter(None, told.values())) if found is None else told["text"]
    say(as_json(told) if json else text)
    if found is not None:
        raise typer.Exit(1)


_UNLIKE = "the numbers that were tried do not show that the programs differ here, so look whether that is meant"


def _comparison(rows: list[dict[str, str]]) -> str:
    return "\n".join(f"{row['pass']}: {row['numbers']}" + (f": {row['text']}" if row["text"] else "") for row in rows)


def _show(program: Program, json: bool) -> None:
    from galvatron.debugging.comparison import one_run

    loss, norms = one_run(program)
    if json:
        say(as_json({"loss": loss, "gradient_norms": norms}))
        return
    say(f"loss {loss:.10g}")
    for name, norm in norms.items():
        say(f"gradient of {name}: norm {norm:.10g}")
