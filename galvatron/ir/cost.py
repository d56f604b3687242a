"""Costs of a layer class, symbolic in the batch size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import sympy

from galvatron.ir.types import BATCH, Dim


@dataclass(frozen=True)
class ClassCost:
    """What one call of a layer class costs on one device, before any sharding; expressions in `B`.

    `saved_bytes` are the activations autograd keeps from forward to backward, `traffic_bytes` the memory read and
    written by the forward ops, `parameter_bytes` the trainable state.
    """

    forward_flop: Dim
    backward_flop: Dim
    traffic_bytes: Dim
    saved_bytes: Dim
    parameter_bytes: Dim


def at_batch(figure: Dim, batch_size: int) -> float:
    """A figure of a cost at a number of samples.

    Raises:
        TypeError: it is no number there, since it is not in `B` alone, or not real and finite.
    """
    found = float(sympy.sympify(figure).subs({BATCH: batch_size}))
    if not math.isfinite(found):
        raise TypeError(f"{figure} is {found} for {batch_size} samples")
    return found
