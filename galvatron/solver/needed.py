"""What the layers of a stage that are still to come need of its budget, at least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galvatron.solver.tables import Pipeline


@dataclass(frozen=True, eq=False)
class Needed:
    """Bytes (P, L, S) that must be left of a budget behind a layer, if it is in a stage and has a strategy.

    Attributes:
        bytes: beside those in use when the layer runs, but for its own transient ones. peak: beside the most that has
            been in use, with what is behind it. update: beside those of the update so far.
    """

    bytes: np.ndarray
    peak: np.ndarray
    update: np.ndarray

    @classmethod
    def of(cls, pipeline: Pipeline, allowed: np.ndarray, enterable: np.ndarray) -> Needed:
        """Where layers may have some strategies, (P, L, S), and stages may begin with some layers, (P, L)."""
        chain, (stages, layers, _) = pipeline.chain, allowed.shape
        found = cls(*np.full((3, *allowed.shape), np.inf))
        for layer in reversed(range(layers)):
            ending = pipeline.end[:, chain.kinds[layer]][:, chain.place]
            last = np.append(enterable[1:, layer + 1], False) if layer + 1 < layers else np.arange(stages) == stages - 1
            found.bytes[last, layer] = found.peak[last, layer] = ending[last]
            found.update[last, layer] = 0.0
            if layer + 1 == layers:
                continue
            kind, can = chain.kinds[layer + 1], allowed[:, layer + 1]
            bytes_, peak, update = (each[:, layer + 1] for each in (found.bytes, found.peak, found.update))
            running = pipeline.full[:, kind] + np.maximum(bytes_, chain.transient[kind] + peak)
            over = pipeline.spent[:, kind] + peak
            for each, going in (
                (found.bytes, running),
                (found.peak, over),
                (found.update, pipeline.updating[kind] + update),
            ):
                least = np.where(can, going, np.inf).min(axis=1)
                each[:, layer] = np.minimum(each[:, layer], least[:, None])
        return found
