"""What a person is shown: names of strangers as plain text, whatever is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text


def printable(text: str) -> str:
    """Text for a terminal: line ends stay, other characters that are not printed are escaped."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def cell(text: str) -> Text:
    """A cell or title of a table that shows text on one line as it is; a plain string would be read as markup."""
    from rich.text import Text

    return Text(printable(text).replace("\n", "\\n"))
