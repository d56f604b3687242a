"""The problem of the solver: choices that cost something, and values that go from the choice that makes them to others.

Each choice is of one label out of several: the mode of an op, the state of a parameter. By its label a choice makes a
value in some state, or needs it in one. A value is converted at a price from state to state, and a copy once made
serves all that read the value: it may be made of another copy (`S → R'` serves readers of `R'`, and from it `R` is
free), so what a value costs is a cheapest arborescence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from galvatron.ir.layout import REPLICATE
from galvatron.partition.modes import AxisState

Price = Callable[[AxisState, AxisState], float]
"""Seconds to convert one value from a state to another; infinite where no single conversion does it."""


@dataclass(frozen=True)
class End:
    """Where a value is made or read: the number of the choice, and the state of the value by its labels."""

    choice: int
    states: tuple[AxisState, ...]


@dataclass(frozen=True)
class Delivery:
    """A value on its way from the choice that makes it to those that read it."""

    made: End
    read: tuple[End, ...]
    price: Price

    @cached_property
    def wanted(self) -> tuple[AxisState, ...]:
        """The states that readers may need."""
        return tuple(dict.fromkeys(state for end in self.read for state in end.states))

    @cached_property
    def stops(self) -> tuple[AxisState, ...]:
        """The states that it may be converted to on its way."""
        return tuple(dict.fromkeys((*self.wanted, REPLICATE)))


@dataclass
class Problem:
    """The choices, each with the price of its labels in seconds, and what is delivered between them."""

    choices: list[tuple[float, ...]] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)

    def choice(self, prices: tuple[float, ...]) -> int:
        """Adds a choice; gives back its number."""
        self.choices.append(prices)
        return len(self.choices) - 1
