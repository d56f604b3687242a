"""The problem of the solver: choices, and values that go from the choice that makes them to others.

Each choice is of one label out of several: the mode of an op, the state of a parameter. By its label a choice makes a
value in some state, or needs it in one. A value is converted at a price from state to state, and a copy once made
serves all that read the value: it may be made of another copy (`S → R'` serves readers of `R'`, and from it `R` is
free), so what a value costs is a cheapest arborescence.

A problem has no prices: these are a `Quote`, and many quotes may be made for one problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from galvatron.ir.layout import REPLICATE
from galvatron.partition.modes import AxisState, Split


@dataclass(frozen=True)
class End:
    """Where a value is made or read: the number of the choice, and the state of the value by its labels."""

    choice: int
    states: tuple[AxisState, ...]


@dataclass(frozen=True, eq=False)
class Steps:
    """All conversions that may be of use to a value that is made in one of some states and stops at others; one object
    for all that are equal (`steps`)."""

    sources: tuple[AxisState, ...]
    stops: tuple[AxisState, ...]

    @cached_property
    def pairs(self) -> tuple[tuple[AxisState, AxisState], ...]:
        """First from each source to every stop, then from each stop to every other."""
        return tuple((source, stop) for source in (*self.sources, *self.stops) for stop in self.stops)


@lru_cache(maxsize=1 << 14)
def steps(sources: tuple[AxisState, ...], stops: tuple[AxisState, ...]) -> Steps:
    """The conversions between states."""
    return Steps(sources, stops)


@dataclass(frozen=True)
class Delivery:
    """A value on its way from the choice that makes it to those that read it."""

    value: str
    made: End
    read: tuple[End, ...]

    @cached_property
    def wanted(self) -> tuple[AxisState, ...]:
        """The states that readers may need."""
        return tuple(dict.fromkeys(state for end in self.read for state in end.states))

    @cached_property
    def stops(self) -> tuple[AxisState, ...]:
        """The states that it may be converted to on its way: rows go by what they choose from slices, and back."""
        routed = (state for state in (*self.made.states, *self.wanted) if isinstance(state, Split) and state.by)
        slices = (replace(state, by="") for state in routed)
        return tuple(dict.fromkeys((*self.wanted, REPLICATE, *slices)))

    @cached_property
    def steps(self) -> Steps:
        """The conversions that may be of use."""
        return steps(tuple(dict.fromkeys(self.made.states)), self.stops)


@dataclass
class Problem:
    """The choices, each by the number of its labels, and what is delivered between them."""

    choices: list[int] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)

    def choice(self, labels: int) -> int:
        """Adds a choice; gives back its number."""
        self.choices.append(labels)
        return len(self.choices) - 1


@dataclass(frozen=True)
class Quote:
    """Prices for a problem: of the labels of each choice, and of the steps of each delivery (`Steps.pairs`), in
    seconds; infinite where no single conversion does it, 0 from a state to itself."""

    choices: Sequence[Sequence[float]]
    deliveries: Sequence[tuple[float, ...]]
