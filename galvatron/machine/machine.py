"""The machine: seconds of a kernel and of a collective on a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from galvatron.ir.cluster import Cluster
from galvatron.ir.layout import Axis
from galvatron.machine.collectives import Collectives
from galvatron.machine.kernel import Kernel


@dataclass(frozen=True)
class Machine:
    """What the devices and links of a cluster take, by its published or measured rates."""

    cluster: Cluster

    @property
    def launch_s(self) -> float:
        """Seconds that any kernel takes, however little it does."""
        return self.cluster.device.kernel_launch_s

    def kernel_s(self, kernel: Kernel) -> float:
        """Seconds of one kernel that is launched by itself."""
        return self.work_s(kernel) + self.launch_s

    def work_s(self, kernel: Kernel) -> float:
        """Seconds of a kernel without its launch.

        The roofline model (Williams, Waterman, Patterson 2009): the longer of its FLOP at the matmul rate and its bytes
        at memory bandwidth.
        """
        return max(kernel.flop / self.cluster.device.flop_per_s(kernel.dtype), self.moved_s(kernel.traffic_bytes))

    def moved_s(self, traffic_bytes: float) -> float:
        """Seconds of reading and writing so many bytes, in kernels that take many tensors at once."""
        return traffic_bytes / self.cluster.device.memory_bytes_per_s

    def collective_s(self, kind: str, payload_bytes: float, axis: Axis) -> float:
        """Seconds of one collective on an axis; 0 on one of a single rank.

        `payload_bytes` is the whole tensor as one rank sees it: what `all_reduce` reduces, what `all_gather` returns,
        what `reduce_scatter` and `all_to_all` take, what `broadcast` sends, and the message of `p2p`.

        Raises:
            ClusterError: unknown kind.
        """
        return self._collectives.seconds(kind, payload_bytes, axis)

    @cached_property
    def _collectives(self) -> Collectives:
        return Collectives(self.cluster)
