"""`galvatron demo`: trains a small model on four local ranks and shows every step of the way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the artifacts go.")] = Path("out/demo"),
) -> None:
    """Capture, search, compile and train a small Llama on four local ranks."""
    from galvatron.demo import main

    main(output)
