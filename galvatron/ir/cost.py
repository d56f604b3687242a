"""Costs of a layer class, symbolic in the batch size."""

from __future__ import annotations

from dataclasses import dataclass

from galvatron.ir.types import Dim


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
