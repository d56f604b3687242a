"""The same problem with fewer strategies: those that another can stand in for in every choice are left out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from galvatron.solver.relaxation import scaled
from galvatron.solver.tables import Chain, Pipeline


def without_worse(pipeline: Pipeline) -> tuple[Pipeline, np.ndarray]:
    """The problem without strategies that others of their place can stand in for, and which of its columns are left.

    One is left out for a kind of layer where another is worse in nothing. Of equal ones the first is left.
    """
    chain, figures = pipeline.chain, _figures(pipeline)
    beaten = np.zeros(chain.state.shape, dtype=bool)
    for first, end in pairwise((*chain.first_of_place, chain.strategies)):
        no_worse = _no_worse(figures[..., first:end])
        earlier = np.arange(end - first)[:, None] < np.arange(end - first)
        beaten[:, first:end] = (no_worse & (earlier | ~no_worse.swapaxes(1, 2))).any(axis=1)
    micro_s = np.where(beaten[:, None], np.inf, chain.micro_s)
    pipeline = replace(pipeline, chain=replace(chain, micro_s=micro_s))
    columns = np.flatnonzero(np.isfinite(pipeline.chain.total_s).any(axis=0))
    return pipeline.only(columns), columns


def without_worse_places(pipeline: Pipeline) -> tuple[Pipeline, np.ndarray]:
    """The problem without places that others can stand in for, and which of its columns are left.

    One is left out where for each of its strategies another place has one that is worse in nothing, and where that is
    moved to and from in no more time and memory: then all layers may change to it at once. Of equal ones the first is
    left.
    """
    left = np.flatnonzero(np.isin(pipeline.chain.place, _places_left(pipeline)))
    return pipeline.only(left), left


def _figures(pipeline: Pipeline) -> np.ndarray:
    """(C, K, S) what of a layer can be worse: all of it adds up to what a choice is told by, or is a part of it."""
    chain = pipeline.chain
    once_s = [chain.step_s]
    later = np.empty((0, *chain.state.shape))
    if chain.opening is not None:
        # The more of the first bytes a layer has, the less is left for layers behind it.
        pays = chain.opening.amount > 0
        toll_s, start_s = (np.where(pays, each, 0.0) for each in (chain.opening.toll_s, chain.opening.start_s))
        once_s += [chain.step_s + toll_s, chain.step_s + start_s, chain.step_s + toll_s + start_s]
        later = -chain.opening.amount[None]
    seconds = [scaled(chain.total_s, pipeline.made_up_s) + each for each in once_s]
    if pipeline.stages > 1:
        seconds += [*chain.micro_s.swapaxes(0, 1)]
    full = pipeline.full
    by_stage = (pipeline.spent, full, full + chain.transient, full + pipeline.begin)
    by_stage += (full + chain.transient + pipeline.begin,)
    bytes_ = [_unlike(each) for each in by_stage]
    found = np.concatenate([np.stack(seconds), later, *bytes_, pipeline.updating[None]])
    return np.where(np.isfinite(chain.total_s), found, np.inf)


def _unlike(tables: np.ndarray) -> np.ndarray:
    """Those of some tables that are not equal to one before."""
    return np.stack(list({table.tobytes(): table for table in tables}.values()))


def _no_worse(figures: np.ndarray) -> np.ndarray:
    """(K, S, S) whether the first strategy can stand in for the second one in layers of a kind."""
    result = np.ones((*figures.shape[1:], figures.shape[2]), dtype=bool)
    for figure in figures:
        result &= figure[:, :, None] <= figure[:, None, :]
    return result


def _places_left(pipeline: Pipeline) -> np.ndarray:
    """The places for which no other can stand in."""
    chain, figures = pipeline.chain, _figures(pipeline)
    pairs = np.argwhere(_no_worse(chain.least_by_place(figures)).all(axis=0) & ~np.eye(chain.places, dtype=bool))
    pairs = pairs[_moves_no_worse(pipeline, *pairs.T)]
    covered, back = _covered(chain, figures, *pairs.T), _covered(chain, figures, *pairs.T[::-1])
    # Of two that are as good in some kind the first must stay, so that the first of the best choices is found.
    has = np.logical_or.reduceat(np.isfinite(chain.total_s), chain.first_of_place, axis=1)
    equal = (has[:, pairs[:, 0]] & back).any(axis=0)
    pairs = pairs[covered.all(axis=0) & (~equal | (pairs[:, 0] < pairs[:, 1]))]
    can = np.zeros((chain.places, chain.places), dtype=bool)
    can[pairs[:, 0], pairs[:, 1]] = True
    left = np.ones(chain.places, dtype=bool)
    for place in reversed(range(chain.places)):
        left[place] = not (can[:, place] & left).any()
    return np.flatnonzero(left)


def _covered(chain: Chain, figures: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(K, n) whether, for layers of a kind, each strategy of the second place of each pair has one of the first place
    that can stand in for it."""
    ends = np.append(chain.first_of_place[1:], chain.strategies)
    most = int((ends - chain.first_of_place).max())
    # Strategies of each place, and as many more as others have, which are none.
    own = np.minimum(chain.first_of_place[:, None] + np.arange(most), ends[:, None])
    own[own == ends[:, None]] = chain.strategies
    figures = np.append(figures, np.full((*figures.shape[:2], 1), np.inf), axis=2)
    result = np.empty((figures.shape[1], len(first)), dtype=bool)
    for kind, row in enumerate(result):
        can = np.ones((len(first), most, most), dtype=bool)
        for figure in figures[:, kind]:
            can &= figure[own[first]][:, :, None] <= figure[own[second]][:, None, :]
        row[:] = np.all(can.any(axis=1), axis=1)
    return result


def _moves_no_worse(pipeline: Pipeline, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) whether all moves from and to the second place of each pair may be from and to the first one instead."""
    chain = pipeline.chain
    result: np.ndarray = np.all(pipeline.end[..., first] <= pipeline.end[..., second], axis=(0, 1))
    others = np.arange(chain.places) != second[:, None]
    for move in (chain.move_s, chain.move_kept, pipeline.enter_s, pipeline.receive_s):
        for step in _unlike(move):
            stays = np.diagonal(step)
            result &= stays[first] <= stays[second]
            for each in (step, step.T):
                result &= ((each[first] <= each[second]) | ~others).all(axis=1)
    return result
