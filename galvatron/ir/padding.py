"""Filler: what stands at the end of a padded shard, and which ops may run beside it.

A dimension that a mesh axis does not divide (a vocabulary of 50257 on two ranks) is sharded in slices that are rounded
up; the last rank's ends in filler. Three things hold for it everywhere:

- filler of a value is finite and never counted: no op sums over it, no collective on its axis moves it, no layer
  passes it on;
- filler of a gradient is zero;
- filler of a parameter is zero, at first and, since its gradient is, after any step of an optimizer.

So only ops whose entry in the table of operators says so (`Operator.padded`) read a padded shard, and collectives on
other axes, to which filler is like any other element. Those of ATen keep its dimension in the result and have a finite
value and derivative at filler, so that the gradient's zeros remain. Those of `ir.spmd` know the whole size of the
dimension: they leave filler out, and give it a gradient of zero.
"""

from __future__ import annotations

from galvatron.ir.graph import Op
from galvatron.ir.ops.table import operator_of


def paddable(op: Op) -> range:
    """The positions of the operands of an op that may be padded shards."""
    return operator_of(op).padded
