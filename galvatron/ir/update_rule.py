"""What the rule of an optimizer costs for a parameter, in figures that follow from no name of an optimizer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UpdateRule:
    """What an optimizer keeps of a parameter, and does to update it.

    Attributes:
        copies: bytes of its state, from step to step, for each byte of the parameter in the type that is trained.
        passes: bytes that an update reads and writes, for each byte of the parameter.
        spare: bytes of temporaries, for each byte of the parameter, that are there of all parameters at once: on a GPU,
            where a kernel takes many tensors.
        whole: whether the rule reads the whole of a parameter: then one rank of the stage updates it.
        flop: of the products of an update, for each element of the parameter.
        product_type: the element type of these.
    """

    name: str
    copies: float
    passes: float
    spare: float = 0.0
    whole: bool = False
    flop: float = 0.0
    product_type: str = ""


ADAMW = UpdateRule("adamw", copies=2.0, passes=7.0, spare=1.0)
"""What is assumed where nobody says: two moments, in one kernel that reads value, gradient and moments and writes value
and moments; and of all parameters at once the square roots of the second ones."""

ROUND_BYTES = 32 << 20
"""Of the parameters that an owner gets or gives at once, where one rank updates a parameter whole."""
