"""What a price is paid for: the bytes in use at one moment, layer by layer.

No peak is below what is in use at any moment, so that each gives bounds of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galvatron.solver.tables import Pipeline


@dataclass(frozen=True, eq=False)
class Charge:
    """Bytes of each stage at one moment.

    Attributes:
        layer: (P, K, S) of a layer. begin, end: (P, K, S) on top of the first and the last of a stage.
        move: (P, J, G, G) on top of a layer for the move to it; None where nothing is.
        in_update: whether the moment is the update.
        running: the layer that runs, if that is not the last of its stage.
    """

    layer: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    move: np.ndarray | None
    in_update: bool = False
    running: int | None = None


def at_end(pipeline: Pipeline) -> Charge:
    """While the last layer of each stage runs."""
    return Charge(
        layer=pipeline.full,
        begin=pipeline.begin,
        end=pipeline.end[..., pipeline.chain.place] + pipeline.chain.transient,
        move=_moved(pipeline, pipeline.in_flight) if pipeline.chain.moves_keep else None,
    )


def in_update(pipeline: Pipeline) -> Charge:
    """In the update."""
    nothing = np.zeros_like(pipeline.begin)
    layer = np.broadcast_to(pipeline.updating, nothing.shape)
    return Charge(layer, nothing, nothing, None, in_update=True)


def while_running(pipeline: Pipeline, layer: int) -> Charge:
    """While a layer of a single stage runs, from which on no row is one of layers before it (`Pipeline.apart`)."""
    chain = pipeline.chain
    behind, now = np.unique(chain.kinds[layer + 1 :]), chain.kinds[layer]
    bytes_ = pipeline.full.copy()
    bytes_[:, now] += chain.transient[now]
    bytes_[:, behind] = pipeline.spent[:, behind]
    move = None
    if chain.moves_keep:
        later = np.unique(chain.moves[layer + 1 :])
        move = _moved(pipeline, pipeline.in_flight)
        move[:, later] = _moved(pipeline, pipeline.in_flight - 1)[:, later]
    return Charge(bytes_, pipeline.begin, pipeline.end[..., chain.place], move, running=layer)


def _moved(pipeline: Pipeline, held: np.ndarray) -> np.ndarray:
    return held[:, None, None, None] * pipeline.chain.move_kept
