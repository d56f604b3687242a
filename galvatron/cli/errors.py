"""How the command line reports errors."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from galvatron.cli.output import accept_any_text, error_text, say
from galvatron.errors import GalvatronError


class ErrorReportingGroup(TyperGroup):
    """Turns an error in the user's input, or a file that cannot be used, into one message on stderr and exit status 2.

    `--debug` lets the exception through; so does any other exception, which is a bug and keeps its traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        accept_any_text()
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (GalvatronError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            say(f"galvatron: error: {error_text(error)}", err=True)
            raise typer.Exit(2) from None
