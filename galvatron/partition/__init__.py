"""The SPMD partitioner: one mechanism for every intra-layer parallelism.

The table of operators says which dimensions of an op are the same, `ir.factors` carries them through a graph, modes say
how an op may then run on one mesh axis (`modes`), roles what holds at a layer's border (`boundary`) and which modes
there are to choose from (`choices`, without those that `padding` and `groups` rule out), and the solver finds the
cheapest inside (`bounded`, `solver`, `prices`). `axes` solves each axis once for all strategies that have it,
`partition` puts them together, `decisions` says why ops are whole, `localize` writes the local graph, `conversion` the
collectives, `crossing` those between layers, and `context` keeps the sharded classes of a program, those that share
parameters (`galvatron.ir.ties`) sharded together.
"""

from galvatron.partition.context import Partitioner
from galvatron.partition.crossing import Crossing, OnMesh, joined_axes

__all__ = ["Crossing", "OnMesh", "Partitioner", "joined_axes"]
