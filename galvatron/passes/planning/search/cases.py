"""Cases: the plans of one setting, told apart by which layers that share parameters agree.

Whether they do decides what each of them costs (`CostModel.with_agreement`). A case fixes the answers, so that the
dynamic programs may take each layer's costs for themselves, whatever the others do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from galvatron.costs.model import CostModel
from galvatron.costs.objective import Setting
from galvatron.ir.strategy import Strategy
from galvatron.partition.ties import agreement


@dataclass(frozen=True)
class Case:
    """A setting, the strategies that each layer may have, and the ties (by position) whose layers agree."""

    setting: Setting
    candidates: tuple[tuple[Strategy, ...], ...]
    agreed: frozenset[int] = frozenset()


def cases(model: CostModel, setting: Setting, candidates: Sequence[Sequence[Strategy]]) -> Iterator[Case]:
    """Every plan of a setting is in one case that prices it as it is.

    There is a case for each way in which the layers of each tie can agree, and one more that prices them as if they
    never did. Plans in which they do are in that one too, at a wrong price: `rest` takes them out.
    """
    tied = model.tied()
    ways = [(None, *_agreements([candidates[i] for i in layers])) for layers in tied]
    for chosen in itertools.product(*ways):
        left = tuple(map(tuple, candidates))
        for layers, common in zip(tied, chosen, strict=True):
            left = _limited(left, layers, common) if common is not None else left
        yield Case(setting, left, frozenset(i for i, common in enumerate(chosen) if common is not None))


def rest(model: CostModel, case: Case, strategies: Sequence[Strategy]) -> list[Case] | None:
    """None for a plan that its case prices as it is; otherwise the case without those in which some tie agrees as it
    does in this plan, in parts: the first layer differs, or the first does not but the second does, and so on."""
    for tie, layers in enumerate(model.tied()):
        common = agreement(strategies[i] for i in layers)
        if common is not None and tie not in case.agreed:
            parts: list[Case] = []
            for position, index in enumerate(layers):
                left = _limited(case.candidates, layers[:position], common)
                other = tuple(s for s in left[index] if agreement([s]) != common)
                if other:
                    parts.append(replace(case, candidates=(*left[:index], other, *left[index + 1 :])))
            return parts
    return None


def _agreements(candidates: Sequence[Sequence[Strategy]]) -> list[Strategy]:
    """What layers with these candidates can agree on."""
    options = [dict.fromkeys(agreement([s]) for s in strategies) for strategies in candidates]
    return [common for common in options[0] if common is not None and all(common in others for others in options)]


def _limited(
    candidates: tuple[tuple[Strategy, ...], ...], layers: Sequence[int], common: Strategy
) -> tuple[tuple[Strategy, ...], ...]:
    """The candidates when some layers have nothing but this to agree on."""
    return tuple(
        tuple(s for s in options if agreement([s]) == common) if index in layers else options
        for index, options in enumerate(candidates)
    )
