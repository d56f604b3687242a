"""Runs of layers that one loop can say: same class, names that count up, operands that follow a pattern."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import groupby

from galvatron.codegen.names import escaped
from galvatron.ir.program import Layer

INDEX = "i"
"""The loop variable."""

_NUMBER = re.compile(r"((?<![0-9])[0-9]{1,9}(?![0-9]))")


def template(names: Sequence[str], start: int) -> str | None:
    """What one f-string has between its quotes to say names that differ in numbers that count up:
    `model.layers.{i}.weight` for `i` from `start`.

    Names that are all equal are their own template. None when the names follow no such pattern.
    """
    rows = [_NUMBER.split(name) for name in names]
    if len({len(row) for row in rows}) != 1:
        return None
    parts: list[str] = []
    for column in zip(*rows, strict=True):
        if len(set(column)) == 1:
            parts.append(escaped(column[0]).replace("{", "{{").replace("}", "}}"))
            continue
        numbers = [int(c) if _NUMBER.fullmatch(c) and str(int(c)) == c else None for c in column]
        first = numbers[0]
        if first is None or any(n != first + k for k, n in enumerate(numbers)):
            return None
        offset = first - start
        distance = f" {'+' if offset > 0 else '-'} {abs(offset)}" if offset else ""
        parts.append(f"{{{INDEX}{distance}}}")
    return "".join(parts)


def first_number(names: Sequence[str]) -> int:
    """The number that counts up in `names`, at the first of them; 0 when none does."""
    for column in zip(*(_NUMBER.findall(name) for name in names[:2]), strict=False):
        if column[0] != column[-1]:
            return int(column[0])
    return 0


def runs(layers: Sequence[Layer], at_least: int, same: Callable[[Sequence[Layer]], bool]) -> list[Sequence[Layer]]:
    """Cuts layers into maximal runs of one class for which `same` holds, and single layers."""
    cut: list[Sequence[Layer]] = []
    for _, group in groupby(layers, key=lambda layer: (layer.cls, layer.kind)):
        run = tuple(group)
        if len(run) >= at_least and same(run):
            cut.append(run)
        else:
            cut.extend((layer,) for layer in run)
    return cut


def chain(run: Sequence[Layer], outside: frozenset[str]) -> tuple[int | None, ...] | None:
    """For each operand, which result of the layer before it is (None: it is the same for all), if there is a pattern.

    Args:
        outside: names that something outside the run reads; of the run's results only the last layer's may be.
    """
    carried: list[int | None] = []
    for position, names in enumerate(zip(*(layer.operands for layer in run), strict=True)):
        if len(set(names)) == 1:
            carried.append(None)
            continue
        before = run[0].results
        source = before.index(names[1]) if names[1] in before else None
        follows = source is not None and all(
            later.operands[position] == earlier.results[source] for earlier, later in zip(run, run[1:], strict=False)
        )
        if not follows or source in carried:
            return None
        carried.append(source)
    inner = {name for layer in run[:-1] for name in layer.results}
    if inner & outside or all(c is None for c in carried):
        return None
    return tuple(carried)


def quoted(text: str) -> str:
    """The string literal of a template: an f-string if it mentions the loop variable, or has braces of its own."""
    return f'f"{text}"' if "{" in text or "}" in text else f'"{text}"'
