"""What stages that share devices take at least, against brute force over every division and choice."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from galvatron.solver import Pipeline, Ranks, Rates, rank_bounds
from galvatron.solver.charges import Charge, at_end, in_update
from tests.solver.tables import Drawn, drawn, every_choice, pipelines


def ranks_of(pipeline: Pipeline, drawn: Drawn) -> Ranks:
    """Stages that go to and fro between two devices, if there are several."""
    holders = np.array([0, 1, 0])[: pipeline.stages]
    shape = (pipeline.stages, pipeline.chain.phases)
    rates = [Rates(drawn.whole(*shape), *drawn.whole(2, pipeline.stages)) for _ in range(holders.max() + 2)]
    return Ranks(pipeline, holders, tuple(rates[1:]), rates[0])


def priced(ranks: Ranks, choice: tuple[int, ...], borders: tuple[int, ...]) -> tuple[float, bool]:
    """Seconds by the rates of the bound, and whether what is charged fits, without moves."""
    chain, devices = ranks.pipeline.chain, ranks.devices
    stage = np.searchsorted(borders, np.arange(len(choice)), side="right") - 1
    seconds, used = 0.0, {charge.updates: np.zeros(devices) for charge in charges(ranks)}
    for layer, (strategy, its) in enumerate(zip(choice, stage, strict=True)):
        kind = chain.kinds[layer]
        seconds += float(ranks.bound.own[its] @ np.where(np.isinf(own := chain.micro_s[kind, :, strategy]), 1e9, own))
        seconds += float(chain.step_s[kind, strategy]) / devices
        for charge in charges(ranks):
            at, device = (its, kind, strategy), ranks.holders[its]
            used[charge.updates][device] += charge.layer[at]
            used[charge.updates][device] += charge.begin[at] * (layer in borders)
            used[charge.updates][device] += charge.end[at] * (layer + 1 in borders)
    possible = all(np.isfinite(chain.total_s[chain.kinds[layer], s]) for layer, s in enumerate(choice))
    return seconds, possible and all((bytes_ <= ranks.budget).all() for bytes_ in used.values())


def charges(ranks: Ranks) -> list[Charge]:
    return [at_end(ranks.pipeline), in_update(ranks.pipeline)]


@settings(max_examples=200, deadline=None)
@given(pipelines(), drawn())
def test_bounds_hold(pipeline: Pipeline, drawn: Drawn) -> None:
    """Also of every choice that goes through a layer in a strategy."""
    ranks = ranks_of(pipeline, drawn)
    every = [(choice, *priced(ranks, choice, borders)) for choice, borders in every_choice(pipeline)]
    fitting = [(choice, seconds) for choice, seconds, fits in every if fits]
    best_s = min((seconds for _, seconds in fitting), default=np.inf)
    bounds = rank_bounds(ranks, best_s)
    assert bounds.least_s <= best_s * (1 + 1e-9) + 1e-9
    if not ranks.fits:
        assert np.isinf(best_s)
    for choice, seconds in fitting:
        assert bounds.by_layer(seconds + 1e-9)[np.arange(len(choice)), choice].all()
