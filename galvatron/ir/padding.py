"""Filler: what stands at the end of a padded shard, and which ops may run beside it.

A dimension that a mesh axis does not divide (a vocabulary of 50257 on two ranks) is sharded in slices that are rounded
up; the last rank's ends in filler. Three things hold for it everywhere:

- filler of a value is finite and never counted: no op sums over it, no collective on its axis moves it, no layer
  passes it on;
- filler of a gradient is zero;
- filler of a parameter is zero, at first and, since its gradient is, after any step of an optimizer.

So only ops of `PADDABLE` read a padded shard, and collectives on other axes, to which filler is like any other element.
Those of ATen keep its dimension in the result and have a finite value and derivative at filler, so that the gradient's
zeros remain. Those of `ir.spmd` know the whole size of the dimension: they leave filler out, and give it a gradient of
zero.
"""

from __future__ import annotations

from galvatron.ir.ops.targets import parsed

_EVERY = range(8)

PADDABLE: dict[str, range] = {
    # products and sums
    "linear": _EVERY, "mm": _EVERY, "addmm": _EVERY, "bmm": _EVERY, "baddbmm": _EVERY, "matmul": _EVERY,
    "add": _EVERY, "sub": _EVERY, "neg": _EVERY, "mul": _EVERY, "tanh": _EVERY,
    "div": range(1),  # not the divisor, whose filler may be zero
    # views and copies
    "_to_copy": _EVERY, "clone": _EVERY, "view": _EVERY, "reshape": _EVERY, "flatten": _EVERY, "unflatten": _EVERY,
    "expand": _EVERY, "squeeze": _EVERY, "unsqueeze": _EVERY, "permute": _EVERY, "transpose": _EVERY, "t": _EVERY,
    "numpy_T": _EVERY, "slice": _EVERY, "select": _EVERY,
    # as ops of `ir.spmd`
    "embedding": range(1), "cross_entropy_loss": range(1), "logsumexp": range(1),
}  # fmt: skip
"""Name of an op → the positions of its operands that may be padded shards."""


def paddable(target: str) -> range:
    """The positions of the operands of an op that may be padded shards."""
    return PADDABLE.get(parsed(target).name, range(0))
