"""Random numbers: slices are drawn apart, partial sums pass where all ranks draw the same."""

from __future__ import annotations

from functools import partial

from galvatron.ir.ops import shapes
from galvatron.ir.ops.call import pointwise
from galvatron.ir.ops.creation import created
from galvatron.ir.ops.operator import Draws, Operator, alike

_filled = partial(Operator, created, shapes=shapes.filled, dtype="shared", draws=Draws(), size="size")
_drawn = partial(Operator, "b* -> b*", shapes=shapes.like_first, draws=Draws())

OPERATORS: dict[str, Operator] = {
    "dropout": Operator(
        "+b* -> b*",
        written="F.dropout(input, p, train)",
        shapes=shapes.dropped,
        dtype="shared",
        draws=Draws("train", linear=True, drops=True),
    ),
    "native_dropout": Operator("b* -> b*, b*", draws=Draws("train", drops=True)),
    "bernoulli": Operator(pointwise, written="torch.bernoulli(self)", shapes=shapes.like_first, draws=Draws()),
    **alike("cauchy exponential geometric log_normal normal_functional poisson randint_like uniform", _drawn()),
    "normal": Operator(pointwise, draws=Draws()),
    "normal.float_float": Operator(created, draws=Draws(), size="size"),
    "rand": _filled(written="torch.rand(size, dtype=, device=)"),
    "rand_like": _drawn(written="torch.rand_like(self, dtype=, memory_format=)", dtype="shared"),
    "randint": Operator(created, draws=Draws(), size="size"),
    "randn": _filled(written="torch.randn(size, dtype=, device=)"),
    "randn_like": _drawn(written="torch.randn_like(self, dtype=, memory_format=)", dtype="shared"),
    "rrelu": Operator(shapes=shapes.like_first, draws=Draws("training")),
}
