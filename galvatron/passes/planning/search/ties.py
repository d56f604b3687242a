"""Parameters that several layers share: whole, or in parts, as all of these layers keep them.

In which parts is left open until bounds have been found. What a layer costs depends on whether its ties are whole
(`CostModel`), not on how they are kept in parts: so all ways to keep them in parts have the same tables, of which each
allows a layer the columns of strategies that keep its ties so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from galvatron.costs.objective import Setting
from galvatron.ir import limits
from galvatron.ir.plan import Ties
from galvatron.ir.strategy import Strategy
from galvatron.passes.planning.search.columns import Choice, Options

IN_PARTS = Strategy(())
"""How a tie is kept that is open: in parts, as its layers say."""

_Item = TypeVar("_Item", bound=Hashable)


def choices_of_ties(
    tied: Mapping[str, Sequence[int]], setting: Setting, candidates: Sequence[Options]
) -> Iterator[Choice]:
    """The same choice with each tie whole, whatever its layers have, or open, where they have strategies that can keep
    it alike. If there are more ways to keep ties than `limits.WAYS`, all are kept alike; if these are still too many,
    whole.

    Args:
        tied: the layers of each tie, by its name.
    """
    keepings = {id(candidates[i]): _keepings(candidates[i]) for i in itertools.chain(*tied.values())}
    options = [common([keepings[id(candidates[index])] for index in layers]) for layers in tied.values()]
    patterns, alike = itertools.product((False, True), repeat=len(tied)), False
    if math.prod(1 + len(own) for own in options) > limits.WAYS:
        every = common(options)
        options = [every if len(every) < limits.WAYS else []] * len(options)
        patterns, alike = ((in_parts,) * len(tied) for in_parts in (False, True)), True
    for pattern in patterns:
        left = list(candidates)
        for layers, own, in_parts in zip(tied.values(), options, pattern, strict=True):
            allowed = frozenset(own)
            for index in layers if in_parts else ():
                left[index] = tuple(s for s in left[index] if s.keeping in allowed)
        if all(left):
            ties = tuple((name, IN_PARTS if in_parts else None) for name, in_parts in zip(tied, pattern, strict=True))
            yield Choice(replace(setting, ties=ties), left, alike)


def is_open(ties: Ties) -> bool:
    """Whether something is left open."""
    return any(kept == IN_PARTS for _, kept in ties)


def ways(ties: Ties, options: Mapping[str, Sequence[Strategy | None]], *, alike: bool) -> Iterator[Ties]:
    """Ties with what was open kept in some way.

    Args:
        options: of each open tie the ways that there are to keep it.
        alike: whether all are kept in the same one.
    """
    every = list(options.values())
    alike_all = ((own,) * len(every) for own in common(every))
    for chosen in alike_all if alike else itertools.product(*every):
        kept = dict(zip(options, chosen, strict=True))
        yield tuple((name, kept.get(name, whole)) for name, whole in ties)


def common(each: Sequence[Sequence[_Item]]) -> list[_Item]:
    """What is in all of some sequences, in the order of the first."""
    first, *others = map(dict.fromkeys, each)
    return [item for item in first if all(item in other for other in others)]


def _keepings(options: Options) -> list[Strategy]:
    return [s.keeping for s in options if s.keeping is not None]
