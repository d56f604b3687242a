"""What a price is paid for: the bytes in use when the last layer of a stage runs, or in the update, layer by layer.

No peak is below what is in use at any moment, so that each gives a bound.
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
        updates: whether these are bytes of the update.
    """

    layer: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    move: np.ndarray | None
    updates: bool = False


def in_update(pipeline: Pipeline) -> Charge:
    """Of the update."""
    nothing = np.zeros_like(pipeline.begin)
    return Charge(np.broadcast_to(pipeline.updating, nothing.shape), nothing, nothing, None, updates=True)


def at_end(pipeline: Pipeline) -> Charge:
    """Of the moment when the last layer of each stage runs."""
    chain = pipeline.chain
    return Charge(
        layer=pipeline.full,
        begin=pipeline.begin,
        end=pipeline.end[..., chain.place] + chain.transient,
        move=pipeline.in_flight[:, None, None, None] * chain.move_kept if chain.moves_keep else None,
    )
