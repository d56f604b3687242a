"""What a user asks of the strategies that layers have: `layers.*=tp2`, `head=zero3-recompute`, `tp>8`.

A constraint is a glob of layer names and traits of a strategy; without a glob it is about every layer. What is required
leaves a layer only strategies that have all its traits, what is forbidden those that do not.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from galvatron.errors import PlanError, StrategyError, did_you_mean
from galvatron.ir.strategy import RECOMPUTE, ROLE_NAMES, Strategy

Trait = Callable[[Strategy], bool]

_COMPARE = {"": operator.eq, "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
_DEGREES = "|".join(dict.fromkeys(role.removesuffix("+sp") for role in ROLE_NAMES))
_NUMBERED = re.compile(rf"(zero|{_DEGREES})(<=|>=|<|>)?([0-9]{{1,9}})(\+sp)?")
_EXAMPLES = ("tp2", "tp>8", "tp2+sp", "zero3", "recompute=selective", *ROLE_NAMES)


@dataclass(frozen=True)
class Constraint:
    """Traits of the strategies of some layers, as `text` says them."""

    text: str
    layers: str
    traits: tuple[Trait, ...]

    @staticmethod
    def parse(text: str) -> Constraint:
        """Reads `GLOB=TRAITS`, or `TRAITS` of all layers.

        Traits are those of a strategy, with dashes between them: a degree (`tp2`, `tp2+sp`, `tp>8`), a role on any
        number of devices (`cp`), a ZeRO level (`zero3`, `zero<2`), a recomputation (`recompute`, `recompute=none`).

        Raises:
            StrategyError: no such trait; the message names it, and the nearest one.
        """
        glob, equals, rest = text.partition("=")
        whole = all(map(_trait, text.split("-")))
        traits, layers = (text, "*") if whole or not equals else (rest, glob)
        found: list[Trait] = []
        for token in traits.split("-"):
            trait = _trait(token)
            if trait is None:
                raise StrategyError(f"constraint {text!r}: unknown trait {token!r}; {did_you_mean(token, _EXAMPLES)}")
            found.append(trait)
        return Constraint(text, layers, tuple(found))

    def concerns(self, layer: str) -> bool:
        """Whether it is about a layer."""
        return fnmatchcase(layer, self.layers)

    def holds(self, strategy: Strategy) -> bool:
        """Whether a strategy has all traits."""
        return all(trait(strategy) for trait in self.traits)


@dataclass(frozen=True)
class Constraints:
    """What is required of layers, and forbidden to them."""

    required: tuple[Constraint, ...] = ()
    forbidden: tuple[Constraint, ...] = ()

    @staticmethod
    def parse(required: Sequence[str], forbidden: Sequence[str]) -> Constraints:
        """
        Raises:
            StrategyError: see `Constraint.parse`.
        """
        return Constraints(tuple(map(Constraint.parse, required)), tuple(map(Constraint.parse, forbidden)))

    def check(self, layers: Sequence[str]) -> None:
        """Checks that every constraint is about some layer.

        Raises:
            PlanError: one is about none; names the nearest layers.
        """
        for constraint in (*self.required, *self.forbidden):
            if not any(map(constraint.concerns, layers)):
                raise PlanError(
                    f"constraint {constraint.text!r}: the program has no layer {constraint.layers!r}; "
                    f"{did_you_mean(constraint.layers, layers)}"
                )

    def about(self, layer: str) -> Constraints:
        """Those that are about a layer."""
        return Constraints(*(tuple(c for c in own if c.concerns(layer)) for own in (self.required, self.forbidden)))

    def left(self, strategies: Sequence[Strategy]) -> tuple[Strategy, ...]:
        """The strategies that a layer may still have which all of them are about."""
        every = (*((c, True) for c in self.required), *((c, False) for c in self.forbidden))
        return tuple(s for s in strategies if all(c.holds(s) == wanted for c, wanted in every))

    def __str__(self) -> str:
        parts = [f"{c.text} required" for c in self.required] + [f"{c.text} forbidden" for c in self.forbidden]
        return ", ".join(parts)


def _trait(token: str) -> Trait | None:
    """The trait that a token says; None if it is none."""
    if match := _NUMBERED.fullmatch(token):
        what, compared, digits, sp = match.groups()
        number, holds = int(digits), _COMPARE[compared or ""]
        if what == "zero":
            return None if sp else lambda strategy: holds(strategy.zero, number)
        role = what + (sp or "")
        return None if sp and what != "tp" else lambda strategy: holds(strategy.degree(role), number)
    if token in ROLE_NAMES:
        return lambda strategy: strategy.degree(token) > 1
    head, _, kind = token.partition("=")
    if head == "recompute" and (kind or "full") in RECOMPUTE and token != "recompute=":
        return lambda strategy: strategy.recompute == (kind or "full")
    return None
