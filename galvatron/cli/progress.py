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


@contextmanager
def shown_progress() -> Iterator[None]:
    """Searches in the block are followed on stderr: the best plan so far, and what no plan beats. An interruption ends
    the command where it does not end a search with a plan."""
    from galvatron.passes.planning.search.watch import listening

    live = Live(console=Console(stderr=True), transient=True, auto_refresh=False)
    begin = time.monotonic()

    def tell(progress: Progress) -> None:
        if time.monotonic() - begin < _QUIET_S:
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
