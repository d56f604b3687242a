"""Files of strangers: printed programs and plans, damaged at random in the ways in which files are damaged."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

from galvatron.ir.planned import resolve
from galvatron.ir.text import print_program
from tests.ir.breaking import SITE, collecting, converted, with_draw, with_function
from tests.ir.programs import FORMS, clustered, rounded, sharded, staged, updating

TEXTS = (
    *(print_program(make()) for make in FORMS.values()),
    *(print_program(rounded(FORMS[form]()), comments=False) for form in ("captured", "staged")),
    *map(print_program, (updating(staged()), with_function(staged()), converted(), collecting())),
    print_program(with_draw(sharded(), "dropout", "random.", SITE)),
)
PLANS = tuple(
    resolve(clustered(6), shorthand, 16, 4).to_json()
    for shorthand in ("dp4", "pp2/m4/1f1b/dp1-tp2", "pp2/m4/interleaved2/dp2-zero3-recompute")
)

_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|[%@#]?[\w.]+|[^\w\s]')
_NUMBER = re.compile(r"[0-9]+")
_NUMBERS = ("0", "1", "2", "3", "7", "-1", "00", "1e9", "0.5", "4096", str(2**31), str(2**63), "9" * 400, "1e400", "")
_HUGE = tuple(map(str, (2**31, 2**53, 2**63 - 1, 2**64, 10**30, 10**300))) + ("9" * 5000, "1e308", "1e-320")
_OPENING = ("(", "[", "{", "-(", "[[", "S(", "f32[", "for i in 0..9 {\n", "Max(B, ", "B + (", "function f {", '"')
_PIECES = (
    '"', "\\", "{", "}", "[", "]", "(", ")", ",", ":", "×", "//", "\n", "\0", "\ud800", "\u2028", "é", "%x", "@x", "#0",
    "B", "b", "inf", "nan", "null", "true", "none", "for i in 0..9 {", "{i}", "{9i-3}", "R'", "S(0)", "S(9, outer=B)",
    "dp2-tp2", "layer x %x = @block(%x)", "B**64", "Max(B, 1)", "1 / 0", "dtype.f32", "NaN", "[[[[", "{{{{",
)  # fmt: skip


def mutated(text: str, draw: random.Random) -> str:
    """The text after one to four random changes."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        text = draw.choice(_CHANGES)(text, draw)
    return text


def _flip(text: str, draw: random.Random) -> str:
    """A byte is another one; what is no UTF-8 then stays as a lone surrogate."""
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return data.decode("utf-8", "surrogateescape")


def _swap(text: str, draw: random.Random) -> str:
    tokens = list(_TOKEN.finditer(text))
    if len(tokens) < 2:
        return text
    first, second = sorted(draw.sample(tokens, 2), key=lambda token: token.start())
    between = text[first.end() : second.start()]
    return text[: first.start()] + second[0] + between + first[0] + text[second.end() :]


def _replace(text: str, draw: random.Random) -> str:
    """A token is another of the text that begins alike."""
    tokens = list(_TOKEN.finditer(text))
    if not tokens:
        return text
    old = draw.choice(tokens)
    alike = [token[0] for token in tokens if token[0][0] == old[0][0] or token[0][0].isalpha() and old[0][0].isalpha()]
    return text[: old.start()] + draw.choice(alike) + text[old.end() :]


def _span(text: str, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(text) + 1)
    return start, min(len(text), start + draw.choice((1, 3, 10, 80, 1000)))


def _delete(text: str, draw: random.Random) -> str:
    start, end = _span(text, draw)
    return text[:start] + text[end:]


def _duplicate(text: str, draw: random.Random) -> str:
    start, end = _span(text, draw)
    return text[:end] + text[start:end] * draw.choice((1, 1, 2, 20)) + text[end:]


def _insert(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text) + 1)
    return text[:at] + draw.choice(_PIECES) + text[at:]


def _number(text: str, draw: random.Random) -> str:
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return text
    old = draw.choice(numbers)
    near = str(int(old[0]) + draw.choice((-1, 1, 2))) if len(old[0]) < 20 else "1"
    return text[: old.start()] + draw.choice((near, near, *_NUMBERS)) + text[old.end() :]


def _lines(text: str, draw: random.Random) -> str:
    """Two lines change places, or one goes, or comes twice."""
    lines = text.split("\n")
    first, second = draw.randrange(len(lines)), draw.randrange(len(lines))
    change = draw.randrange(3)
    if change == 0:
        lines[first], lines[second] = lines[second], lines[first]
    elif change == 1:
        del lines[first]
    else:
        lines.insert(second, lines[first])
    return "\n".join(lines)


def _sections(text: str, draw: random.Random) -> str:
    """Two sections change places, or one of another file comes in."""
    sections = text.split("\n\n")
    first, second = draw.randrange(len(sections)), draw.randrange(len(sections))
    if draw.random() < 0.5:
        sections[first], sections[second] = sections[second], sections[first]
    else:
        sections.insert(first, draw.choice(draw.choice(TEXTS).split("\n\n")))
    return "\n\n".join(sections)


def _bytes(text: str, draw: random.Random) -> str:
    """A few bytes in a row are any others."""
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    start = draw.randrange(len(data) + 1)
    data[start : start + draw.choice((1, 4, 64))] = draw.randbytes(draw.choice((1, 4, 64)))
    return data.decode("utf-8", "surrogateescape")


def _huge(text: str, draw: random.Random) -> str:
    """One number, or every hundredth, is one of those that a computer has no room for."""
    numbers = list(_NUMBER.finditer(text))
    for old in reversed(draw.sample(numbers, min(len(numbers), draw.choice((1, 1, len(numbers) // 100 + 1))))):
        text = text[: old.start()] + draw.choice(_HUGE) + text[old.end() :]
    return text


def _deep(text: str, draw: random.Random) -> str:
    """Something opens very often, and perhaps closes as often."""
    at = draw.randrange(len(text) + 1)
    opening, times = draw.choice(_OPENING), draw.choice((10, 101, 1000, 50_000))
    inside = text[at : at + draw.choice((0, 1, 20))]
    closing = {"(": ")", "[": "]", "{": "}"}.get(opening.strip()[-1:], "") * draw.choice((0, times))
    return text[:at] + opening * times + inside + closing + text[at:]


def _loop(text: str, draw: random.Random) -> str:
    """Some lines stand in a loop, or in loops, that count far."""
    lines = text.split("\n")
    first = draw.randrange(len(lines))
    last = min(len(lines), first + draw.choice((1, 3, 20)))
    depth, count = draw.choice((1, 1, 3, 8)), draw.choice(("7", "999", "99999", "100000", "1000000000", "9" * 30))
    body = [draw.choice((line, re.sub("[0-9]+", "{i}", line))) for line in lines[first:last]]
    lines[first:last] = [f"for i in 0..{count} {{"] * depth + body + ["}"] * depth
    return "\n".join(lines)


def _long(text: str, draw: random.Random) -> str:
    """A token is one of a hundred thousand characters."""
    tokens = list(_TOKEN.finditer(text))
    if not tokens:
        return text
    old = draw.choice(tokens)
    return text[: old.start()] + old[0][0] + draw.choice(("x", "9", "é", ".", "%")) * 10**5 + text[old.end() :]


_CHANGES: tuple[Callable[[str, random.Random], str], ...] = (
    _flip, _swap, _replace, _replace, _replace, _delete, _duplicate, _insert, _number, _number, _lines, _sections,
    _bytes, _huge, _deep, _loop, _long,
)  # fmt: skip


def mutated_document(text: str, draw: random.Random) -> str:
    """A plan document after a change of its text, or of a value in it."""
    if draw.random() < 0.5:
        return mutated(text, draw)
    document = json.loads(text)
    place, key = document, draw.choice(list(document))
    while isinstance(place[key], (dict, list)) and place[key] and draw.random() < 0.8:
        place = place[key]
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
    values = (0, -1, 1, 2, 10**9, 10**30, 1.5, True, None, "", "dp2", "\ud800", "x" * 10**5, [], {}, [[]], [{}], [[[]]])
    if draw.random() < 0.2:
        del place[key]
    else:
        place[key] = draw.choice(values)
    return json.dumps(document)
