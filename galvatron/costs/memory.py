"""Bytes of a device by what holds them."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at one moment; their sum is what is in use.

    Attributes:
        parameters: values that the layers read; at ZeRO level 3 this rank's part of them.
        masters: what the optimizer updates, where the type of the values is another.
        gradients: in the type of the masters.
        optimizer: what it keeps from step to step, by its rule.
        buffers: frozen parameters and buffers, with new values that wait for the end of the step.
        activations: what autograd keeps of the micro-batches in flight.
        working: what a layer needs beside that while it runs, or the update.
        communication: parameters and gradients that are whole for a layer or under way, messages between stages.
        fixed: workspaces that libraries keep.
    """

    parameters: float = 0.0
    masters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    buffers: float = 0.0
    activations: float = 0.0
    working: float = 0.0
    communication: float = 0.0
    fixed: float = 0.0

    @property
    def total(self) -> float:
        """Bytes in use."""
        return sum(getattr(self, kind) for kind in KINDS)

    def __add__(self, other: Memory) -> Memory:
        return Memory(*(getattr(self, kind) + getattr(other, kind) for kind in KINDS))

    def __sub__(self, other: Memory) -> Memory:
        return Memory(*(getattr(self, kind) - getattr(other, kind) for kind in KINDS))


KINDS = tuple(field.name for field in fields(Memory))
"""In the order in which they are shown."""
