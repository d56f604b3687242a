"""What a person is shown: names of strangers as plain text, whatever is in them."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

FILE_WIDTH = 160
"""Columns of tables that go to no terminal."""


def printable(text: str) -> str:
    """Text for a terminal: line ends stay, other characters that are not printed are escaped."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def print_differences(lines: Sequence[str], *, heading: str = "", stderr: bool = False) -> None:
    """Prints lines; on a terminal those that are removed (`-`), added (`+`) or comments are in colour."""
    file = sys.stderr if stderr else sys.stdout
    if not file.isatty():
        print(printable("\n".join((heading, *lines) if heading else lines)), file=file)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if heading:
        console.print(Text(printable(heading), style="bold"))
    for line in map(printable, lines):
        console.print(Text(line, style=_STYLES.get(line.lstrip()[:2], "")))


_STYLES = {"- ": "red", "+ ": "green", "//": "dim"}


def one_line(text: str) -> str:
    """Text on one line: all that is not printed is escaped, line ends too."""
    return printable(text).replace("\n", "\\n")


def cell(text: str) -> Text:
    """A cell or title of a table that shows text on one line as it is; a plain string would be read as markup."""
    from rich.text import Text

    return Text(one_line(text))


def wide_console(*, stderr: bool = False, width: int = FILE_WIDTH) -> Console:
    """What tables are printed to: as wide as the terminal, and where there is none of `width` columns."""
    from rich.console import Console

    own = Console(stderr=stderr)
    return own if own.is_terminal else Console(stderr=stderr, width=width)


def text_table(columns: Sequence[str], rows: Iterable[Sequence[str]], sides: str = "") -> list[str]:
    """Lines of a table, each column as wide as its widest text, which is on one line whatever is in it.

    Args:
        sides: a letter for each column, `l` for texts at the left and `r` at the right; those that have none are at the
            left.
    """
    shown = [[one_line(text) for text in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    right = [side == "r" for side in sides.ljust(len(widths), "l")]
    return ["  ".join(map(_aligned, row, widths, right)).rstrip() for row in shown]


def _aligned(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], sides: str = "") -> str:
    """A table as a notebook shows it, in whatever colours that has: all texts as they are. `sides` as of
    `text_table`."""
    aligned = ["right" if side == "r" else "left" for side in sides.ljust(len(columns), "l")]

    def line(tag: str, texts: Sequence[str]) -> str:
        styled = zip(texts, aligned, strict=True)
        cells = (f'<{tag} style="text-align: {side}">{html.escape(one_line(text))}</{tag}>' for text, side in styled)
        return f"<tr>{''.join(cells)}</tr>"

    head = line("th", columns)
    body = "".join(line("td", row) for row in rows)
    caption = f'<caption style="text-align: left; color: inherit">{html.escape(one_line(title))}</caption>'
    return f"<table>{caption}<thead>{head}</thead><tbody>{body}</tbody></table>"
