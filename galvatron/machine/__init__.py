"""What things take on a cluster: the one place where bytes and FLOP become seconds.

A kernel is described by what it is (`kernel`, and `work` for its arithmetic), a `Machine` prices kernels and
collectives. Whoever decides by time asks it: the sharding solver, the cost model of the search and of `estimate`, and
the statistics. `operators` says which kernels an op of a graph is.
"""

from galvatron.ir.ops.work import Work
from galvatron.machine.kernel import Kernel
from galvatron.machine.machine import Machine

__all__ = ["Kernel", "Machine", "Work"]
