"""What depends on the kind of the step that runs."""

from __future__ import annotations

from galvatron.ir.ops import shapes
from galvatron.ir.ops.operator import EVERY, Operator

OPERATORS: dict[str, Operator] = {
    # Of its two operands one counts, as of a sum whose other terms are zero.
    "step::either": Operator("+b*, +b* -> b*", shapes=shapes.pointwise, dtype="same", padded=EVERY, free=True),
}
