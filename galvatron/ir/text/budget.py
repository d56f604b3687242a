"""What one text may still cost its reader: a few lines can stand for a million names, or for hours of algebra."""

from __future__ import annotations

from collections.abc import Iterable

import sympy

from galvatron.errors import GalvatronError
from galvatron.ir import limits

_COMPARING = frozenset({"Mod", "Max", "Min"})
"""Functions that try to prove an order of their arguments."""

_CHEAP = frozenset({"+", "-", "*", "/", "**", "Add", "Mul", "Pow", "Integer", "Float"})


_SHORT = frozenset({"+", "-", "*"})
"""Operations that on whole numbers take no time: those of a text have at most `limits.DIGITS` digits."""


class Budget:
    """Counts what a text of a given length has used up.

    The same arithmetic costs nothing the second time, and what is refused does not depend on what was read before.
    """

    def __init__(self, characters: int) -> None:
        self._units = limits.COMPUTE + characters // limits.COMPUTE_CHARACTERS
        self._characters = limits.EXPANDED_CHARACTERS
        self._computed: set[tuple[object, ...]] = set()

    def compute(self, operation: str, operands: tuple[object, ...]) -> None:
        """Pays for one operation on numbers.

        Raises:
            GalvatronError: its operands are too large, or the text has used up what it may.
        """
        if operation in _SHORT and all(type(operand) is int for operand in operands):
            return
        key = (operation, *map(type, operands), *operands)
        if key in self._computed:
            return
        self._computed.add(key)
        size = sum(parts(operand) for operand in operands)
        most = limits.EXPRESSION_PARTS if operation in _CHEAP else limits.FUNCTION_PARTS
        if size > most:
            raise GalvatronError(f"more than {most} parts in one expression or function")
        symbolic = any(isinstance(operand, sympy.Basic) for operand in operands)
        self._units -= 2 + size // 8
        if symbolic and operation not in _CHEAP:
            self._units -= size * (20 if operation in _COMPARING else 10)
        if self._units < 0:
            raise GalvatronError("the text has too many different expressions")

    def expand(self, names: Iterable[str], times: int) -> None:
        """Pays for names that are written out several times.

        Raises:
            GalvatronError: the text has used up what it may.
        """
        self._characters -= times * sum(limits.NAME_CHARACTERS + len(name) for name in names)
        if self._characters < 0:
            raise GalvatronError("the loops and runs of the text stand for too much")


def parts(value: object) -> int:
    """Numbers, symbols and operations in an expression."""
    return 1 + sum(map(parts, value.args)) if isinstance(value, sympy.Basic) else 1
