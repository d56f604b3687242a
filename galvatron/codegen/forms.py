"""How a person writes each ATen op: the forms in the table of operators (`Operator.written`), read.

In a form such as `F.linear(input, weight, bias)`

- a name stands for the argument, `name=` for a keyword argument that is left out when it has its default, `*name` for a
  list spread into arguments, and positional arguments at the end are left out when they have their defaults; one whose
  default has no place there is marked `name!`;
- `x.f(...)` is a method of the argument `x`, any other dotted name is a function;
- `self[dim, index]` or `self[dim, start:end:step]` is one place or a stretch of a dimension, `self[indices]` an index
  for each dimension;
- an operator form such as `self + other` is written as it stands;
- `or` stands between forms, the preferred one first.

An op that has none, or whose arguments have no place in its form, is written `torch.ops.aten.name.overload(...)`. Every
form means exactly what its op means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from galvatron.ir.ops.schemas import schema_of
from galvatron.ir.ops.table import of_target
from galvatron.ir.ops.targets import parsed


@dataclass(frozen=True)
class Spelling:
    """One form, read.

    Exactly one of `operator` (the text between, or before, the operands), `brackets` (the parameters in them) and
    `function` is set; a `receiver` makes the function a method of that argument, or is what stands before the brackets.
    `needed` are the arguments that must differ from their defaults.
    """

    positional: tuple[str, ...] = ()
    spread: str = ""
    keywords: tuple[str, ...] = ()
    operator: str = ""
    brackets: tuple[str, ...] = ()
    function: str = ""
    receiver: str = ""
    needed: frozenset[str] = frozenset()

    @property
    def written(self) -> frozenset[str]:
        """The parameters that have a place in the form."""
        return frozenset((*self.positional, self.spread, *self.keywords, *self.brackets, self.receiver)) - {""}


def forms(target: str) -> tuple[Spelling, ...]:
    """The forms of an operator, the preferred one first."""
    text = of_target(target).form(parsed(target).overload)
    parameters = frozenset(p.name for p in schema_of(target).parameters)
    return tuple(_read(form, parameters) for form in text.split(" or ")) if text else ()


@cache
def _read(text: str, parameters: frozenset[str]) -> Spelling:
    if text.endswith("]"):
        receiver, *brackets = re.findall(r"\w+", text)
        return Spelling(brackets=tuple(brackets), receiver=receiver)
    if not text.endswith(")"):
        words = re.findall(r"\w+|[^\w\s]+", text)
        operands = tuple(w for w in words if w.isidentifier())
        return Spelling(operands, operator=next(w for w in words if not w.isidentifier()))
    function, _, listed = text[:-1].partition("(")
    head, _, method = function.partition(".")
    receiver = head if head in parameters else ""
    arguments = [a.strip() for a in listed.split(",") if a.strip()]
    return Spelling(
        positional=tuple(a.rstrip("!") for a in arguments if a.rstrip("!").isidentifier()),
        spread=next((a[1:] for a in arguments if a.startswith("*")), ""),
        keywords=tuple(a[:-1] for a in arguments if a.endswith("=")),
        function=method if receiver else function,
        receiver=receiver,
        needed=frozenset(a[:-1] for a in arguments if a.endswith("!")),
    )
