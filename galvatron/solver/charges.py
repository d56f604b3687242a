"""What a price is paid for: the bytes in use at one moment, or at several, each with a share, layer by layer.

No peak is below what is in use at any moment, nor below a mean of several, so that each gives a bound. Where a choice
has most while a layer in the middle runs, and another that is about as good has most at the end, only a mean of both
moments tells what fits neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galvatron.solver.tables import Pipeline


@dataclass(frozen=True, eq=False)
class Charge:
    """Bytes of each stage.

    Attributes:
        layer: (P, K, S) of a layer. begin, end: (P, K, S) on top of the first and the last of a stage.
        move: (P, J, G, G) on top of a layer for the move to it; None where nothing is.
        passed: (L,) the share of the moments that are over when a layer has run, but for that of the last one; None of
            the update.
    """

    layer: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    move: np.ndarray | None
    passed: np.ndarray | None


def in_update(pipeline: Pipeline) -> Charge:
    """Of the update."""
    nothing = np.zeros_like(pipeline.begin)
    return Charge(np.broadcast_to(pipeline.updating, nothing.shape), nothing, nothing, None, None)


def at_end(pipeline: Pipeline) -> Charge:
    """Of the moment when the last layer of each stage runs."""
    return while_running(pipeline, only_last(pipeline.chain.layers))


def only_last(layers: int) -> np.ndarray:
    """(L,) all of the share at the last layer."""
    return (np.arange(layers) == layers - 1).astype(float)


def while_running(pipeline: Pipeline, shares: np.ndarray) -> Charge:
    """Of the moments when layers run, each with its share (L,); of several stages the last of each.

    Layers with other shares, or others ahead of them, have rows of their own (`apart`).
    """
    chain = pipeline.chain
    passed = np.cumsum(shares) - only_last(len(shares)) * shares[-1]
    still = np.cumsum(shares[::-1])[::-1]
    to_come, now = np.zeros((2, len(chain.state), 1))
    to_come[chain.kinds, 0], now[chain.kinds, 0] = still, shares * (1 - only_last(len(shares)))
    move = None
    if chain.moves_keep:
        moved = np.ones((len(chain.move_s), 1, 1))
        moved[chain.moves, 0, 0] = still
        move = (pipeline.in_flight[:, None, None, None] - 1 + moved) * chain.move_kept
    return Charge(
        layer=to_come * pipeline.full + (1 - to_come) * pipeline.spent + now * chain.transient,
        begin=pipeline.begin,
        end=pipeline.end[..., chain.place] + shares[-1] * chain.transient,
        move=move,
        passed=passed,
    )


def apart(pipeline: Pipeline, shares: np.ndarray) -> Pipeline:
    """The same with the rows that such shares need."""
    some = (shares > 0) & (only_last(len(shares)) == 0)
    before = np.cumsum(some) - some
    return pipeline.apart(2 * before + some, before)
