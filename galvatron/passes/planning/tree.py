"""The decision tree of a stage: what each mesh axis does, from the innermost to the outermost, until the devices are
used up.

A node decides one axis: its degree, its role, and how it keeps the parameters that it leaves whole. A rule takes off a
branch as soon as what is decided so far breaks it, and what would have grown there is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from galvatron.ir.strategy import AxisRole


@dataclass(frozen=True)
class Decision:
    """What an axis does: its role, and the ZeRO level over it; None where it leaves no parameters whole."""

    role: str
    zero: int | None = None

    @staticmethod
    def every(roles: Sequence[str], levels: Sequence[int]) -> tuple[Decision, ...]:
        """Every decision of an axis: with each level where its role leaves parameters whole."""
        return tuple(
            Decision(role, level) for role in roles for level in ((None,) if role.partition("+")[0] == "tp" else levels)
        )


Axes = tuple[tuple[Decision, int], ...]
"""Decisions with their degrees, outermost first."""


@dataclass(frozen=True)
class AxisRule:
    """One reason to take off a branch: whether axes break it, as then all do that begin inside with these."""

    name: str
    sound: bool
    argument: str
    broken: Callable[[Axes], bool]


def _role_again(axes: Axes) -> bool:
    roles = [decision.role.partition("+")[0] for decision, _ in axes]
    return len(set(roles)) < len(roles)


def _another_level(axes: Axes) -> bool:
    levels = {decision.zero for decision, _ in axes if decision.zero is not None}
    return len(levels) > 1


def _talks_outside(axes: Axes) -> bool:
    roles = [decision.role.partition("+")[0] for decision, _ in axes]
    nested = [role for role in roles if role in ("cp", "ulysses")]
    return "tp" in roles[:-1] or nested == ["ulysses", "cp"]


RULES = (
    AxisRule(
        "one-zero-level",
        True,
        "a layer has one ZeRO level, over all axes that leave parameters whole",
        _another_level,
    ),
    AxisRule(
        "role-once",
        True,
        "a strategy names each role once, and tp and tp+sp both shard parameters",
        _role_again,
    ),
    AxisRule(
        "what-talks-most-is-inside",
        False,
        "in every layer tp sends whole activations to all of its ranks, ulysses in parts, and cp keys and values; dp "
        "sends once per step. Links are no slower further inside, and in another order a layer does the same work",
        _talks_outside,
    ),
)
"""In the order in which they are asked."""


@dataclass(frozen=True)
class Tree:
    """What has grown.

    Attributes:
        leaves: of all devices.
        cut: leaves that are gone, by rule.
    """

    leaves: tuple[Axes, ...]
    cut: Counter[str]

    @property
    def unpruned(self) -> int:
        """How many leaves there were without rules."""
        return len(self.leaves) + self.cut.total()


def grow(devices: int, decisions: Sequence[Decision], rules: Sequence[AxisRule] = RULES) -> Tree:
    """The tree of a stage on a number of devices, in which each decision is taken at most once."""
    cut: Counter[str] = Counter()

    def below(left: int, axes: Axes) -> Iterator[Axes]:
        if left == 1:
            yield axes
            return
        for decision in decisions:
            if any(decision == other for other, _ in axes):
                continue
            for degree in divisors(left)[1:]:
                grown = ((decision, degree), *axes)
                broken = next((rule for rule in rules if rule.broken(grown)), None)
                if broken is None:
                    yield from below(left // degree, grown)
                else:
                    cut[broken.name] += _count(left // degree, len(decisions) - len(grown))

    return Tree(tuple(below(devices, ())), cut)


def roles_of(axes: Axes) -> tuple[AxisRole, ...]:
    """What a strategy says of a leaf; dp and tp are always written, as dp1 outside or tp1 inside, so that text shows
    what is left out."""
    named = {decision.role for decision, _ in axes}
    outer = () if "dp" in named else (AxisRole("dp", 1),)
    inner = () if named & {"tp", "tp+sp"} else (AxisRole("tp", 1),)
    return (*outer, *(AxisRole(decision.role, degree) for decision, degree in axes), *inner)


def level_of(axes: Axes) -> int:
    """The ZeRO level of a leaf."""
    return next((decision.zero for decision, _ in axes if decision.zero is not None), 0)


@lru_cache(maxsize=4096)
def _count(devices: int, decisions: int) -> int:
    """Ways to give the rest of the devices to axes, each with a decision of its own."""
    if devices == 1:
        return 1
    return decisions * sum(_count(devices // degree, decisions - 1) for degree in divisors(devices)[1:])


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """All divisors in increasing order."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return (*small, *(number // d for d in reversed(small) if d * d != number))
