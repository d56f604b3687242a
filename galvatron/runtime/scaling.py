"""Dynamic loss scaling for float16 (Micikevicius et al., "Mixed Precision Training", 2018).

Gradients of a loss are often too small for float16, whose least positive number is 6e-8. So the backward starts from a
multiple of the loss, as large as it may be without an overflow, and the gradients are divided by the same number.
"""

from __future__ import annotations

from torch import Tensor

from galvatron.errors import GalvatronError

_LEAST = 2.0**-16


class LossScaler:
    """The number that the gradient of the loss is multiplied by.

    It is halved after a step whose gradients overflow and doubled after `growth_steps` others in a row. It follows from
    figures that all ranks have in common, so that ranks agree on it, and on which steps to skip, without being told.

    Attributes:
        scale: a power of two.
        good_steps: steps since the scale last changed.
    """

    def __init__(self, scale: float = 2.0**16, growth_steps: int = 2000) -> None:
        self.scale = scale
        self.growth_steps = growth_steps
        self.good_steps = 0

    def start(self, loss: Tensor) -> None:
        """Have the backward of a loss start from the scale instead of from one; the loss itself stays as it is."""
        if loss.requires_grad:
            scale = self.scale
            loss.register_hook(lambda gradient: gradient * scale)

    def accepts(self, squared_norm: Tensor) -> bool:
        """Whether a step may update, given the squared norm of all its gradients (scaled), and what the next one does.

        Raises:
            GalvatronError: steps are skipped again and again, whatever the scale.
        """
        if not squared_norm.isfinite():
            self.scale, self.good_steps = self.scale / 2, 0
            if self.scale < _LEAST:
                raise GalvatronError(
                    f"gradients in float16 overflow even at a loss scale of {self.scale}: the model itself computes "
                    'infinities or invalid numbers; train with precision="bf16" or None'
                )
            return False
        self.good_steps += 1
        if self.good_steps >= self.growth_steps:
            self.scale, self.good_steps = self.scale * 2, 0
        return True
