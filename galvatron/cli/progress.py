"""How far a search is, on stderr, once it takes longer than a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from galvatron.units import format_seconds

if TYPE_CHECKING:
    from galvatron.passes.planning.search.watch import Progress

_QUIET_S = 1.0

_LINES_S = 4.0
"""Between two lines where they cannot be written over: at least this, and as long as the search has taken so far."""


@contextmanager
def shown_progress() -> Iterator[None]:
    """Searches in the block are followed on stderr: the best plan so far, and what no plan beats. On a terminal that is
    one line which changes, elsewhere a line now and then. An interruption ends the command where it does not end a
    search with a plan."""
    from galvatron.passes.planning.search.watch import listening

    console = Console(stderr=True)
    live = Live(console=console, transient=True, auto_refresh=False)
    begin = time.monotonic()
    next_s = _QUIET_S

    def tell(progress: Progress) -> None:
        nonlocal next_s
        since_s = time.monotonic() - begin
        if since_s < next_s:
            return
        if not console.is_terminal:
            next_s = since_s + max(_LINES_S, since_s)
            typer.echo(progress_line(progress), err=True)
            return
        if not live.is_started:
            live.start()
        live.update(Text(progress_line(progress)), refresh=True)

    try:
        with listening(tell):
            yield
    except KeyboardInterrupt:
        typer.echo("galvatron: interrupted before any plan was found", err=True)
        raise typer.Exit(130) from None
    finally:
        if live.is_started:
            live.stop()


def progress_line(progress: Progress) -> str:
    """One line that says how far a search is."""
    if not progress.costed:
        return f"searching: costs of {progress.done} of {progress.of} combinations"
    best = format_seconds(progress.best_s) if progress.best_s < float("inf") else "none yet"
    bound = f"no plan takes less than {format_seconds(progress.bound_s)}"
    return f"searching: {progress.done} of {progress.of} combinations, best so far {best}, {bound}"
