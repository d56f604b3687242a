"""What a person is shown: names of strangers as plain text, whatever is in them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text


def printable(text: str) -> str:
    """Text for a terminal: line ends stay, other characters that are not printed are escaped."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """Text on one line: all that is not printed is escaped, line ends too."""
    return printable(text).replace("\n", "\\n")


def cell(text: str) -> Text:
    """A cell or title of a table that shows text on one line as it is; a plain string would be read as markup."""
    from rich.text import Text

    return Text(one_line(text))


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as a notebook shows it, in whatever colours that has: all texts as they are, numbers at the right.

    Columns that begin with `>` are of numbers.
    """
    sides = ["right" if name.startswith(">") else "left" for name in columns]

    def line(tag: str, texts: Sequence[str]) -> str:
        styled = zip(texts, sides, strict=True)
        cells = (f'<{tag} style="text-align: {side}">{html.escape(one_line(text))}</{tag}>' for text, side in styled)
        return f"<tr>{''.join(cells)}</tr>"

    head = line("th", [name.removeprefix(">") for name in columns])
    body = "".join(line("td", row) for row in rows)
    caption = f'<caption style="text-align: left; color: inherit">{html.escape(one_line(title))}</caption>'
    return f"<table>{caption}<thead>{head}</thead><tbody>{body}</tbody></table>"
