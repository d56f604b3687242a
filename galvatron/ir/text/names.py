"""Names and strings as text: bare where they are plain, quoted where they are not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from galvatron.errors import GalvatronError

_BARE = re.compile(r"[\w.@$+-]+")
_WORD = re.compile(r"[A-Za-z_][\w.@$+-]*")
_COUNTER = re.compile(r"(?<![0-9])(?:0|[1-9][0-9]{0,8})(?![0-9])", re.ASCII)
"""A number that may count with a loop: longer ones are names of something, and offsets between them longer still."""
_MARKED = re.compile("\x00([0-9]+)\x00")
_TEMPLATE = re.compile(r"\{([0-9]{0,20})i([+-][0-9]{1,20})?\}")


def quote(text: str) -> str:
    """A string literal on one line."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def bare_or_quoted(text: str) -> str:
    """A name without a sigil. Numbers in a bare name are marked, see `unmark`."""
    return _mark(text) if _WORD.fullmatch(text) else quote(text)


def sigiled(sigil: str, text: str) -> str:
    """`%name` or `%"odd name"`."""
    return sigil + (_mark(text) if _BARE.fullmatch(text) else quote(text))


def _mark(name: str) -> str:
    return _COUNTER.sub("\x00\\g<0>\x00", name)


def split_marks(text: str) -> tuple[str, tuple[int, ...]]:
    """Printed text with its marked numbers taken out: equal skeletons differ in numbers only."""
    return _MARKED.sub("\x00", text), tuple(int(n) for n in _MARKED.findall(text))


def fill_marks(skeleton: str, numbers: tuple[str, ...]) -> str:
    """The inverse of `split_marks`, for numbers or templates of them."""
    parts = skeleton.split("\x00")
    return "".join(part + number for part, number in zip(parts, (*numbers, ""), strict=True))


def unmark(text: str) -> str:
    """Printed text without marks."""
    return text.replace("\x00", "")


def template(step: int, offset: int) -> str:
    """`{2i+1}` for step 2, offset 1."""
    return "{" + (str(step) if step != 1 else "") + "i" + (f"{offset:+}" if offset else "") + "}"


def is_round_of(line: str, written: str) -> bool:
    """Whether a line of text is another one, or what that is in a round of the loop around it."""
    if "{" not in line:
        return line == written
    numbers = [(int(match[1] or 1), int(match[2] or 0)) for match in _TEMPLATE.finditer(line)]
    found = re.fullmatch("([0-9]+)".join(map(re.escape, _TEMPLATE.sub("\x00", line).split("\x00"))), written)
    if found is None or not all(step for step, _ in numbers):
        return False
    rounds = {
        divmod(int(number) - offset, step) for number, (step, offset) in zip(found.groups(), numbers, strict=True)
    }
    return len(rounds) < 2 and all(rest == 0 for _, rest in rounds)


def counted(name: str, first: int) -> Callable[[int], str]:
    """What fills the templates of a name with a loop counter that begins with `first` and grows.

    Raises:
        GalvatronError: a malformed template, or a negative number.
    """
    numbers = []
    for match in _TEMPLATE.finditer(name):
        step, offset = int(match[1] or 1), int(match[2] or 0)
        if step * first + offset < 0:
            raise GalvatronError(f"{match[0]} is negative for i = {first}")
        numbers.append((step, offset))
    form = _TEMPLATE.sub("\x00", name)
    if "{" in form:
        raise GalvatronError(f"malformed loop counter in {name!r}")
    form = form.replace("%", "%%").replace("\x00", "%d")
    if len(numbers) > 1:
        return lambda i: form % tuple(step * i + offset for step, offset in numbers)
    step, offset = numbers[0]
    return lambda i: form % (step * i + offset)
