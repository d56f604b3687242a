"""The machine: seconds of a kernel and of a collective on a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from galvatron.errors import ClusterError, did_you_mean
from galvatron.ir.cluster import Cluster, Link
from galvatron.ir.collectives import MESSAGES
from galvatron.ir.layout import Axis
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
        what `reduce_scatter` and `all_to_all` take, and the message of `p2p`. Ring algorithms with latency α per step
        and bandwidth β: all-reduce `2(n-1)(α + bytes/(nβ))`, all-gather and reduce-scatter `(n-1)(α + bytes/(nβ))`
        (Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH", 2005).
        All-to-all sends one n-th to every other rank, each over the link it needs.

        Raises:
            ClusterError: unknown kind.
        """
        message = MESSAGES.get(kind)
        if message is None:
            raise ClusterError(f"unknown collective {kind!r}; {did_you_mean(kind, MESSAGES)}")
        size = axis.size
        if size == 1:
            return 0.0
        if message.way == "peer":
            crosses = self.cluster.crosses_nodes(size, axis.stride)
            own = self.cluster.cross_node if crosses else self.cluster.in_node
            return own.latency_s + payload_bytes / own.bytes_per_s
        link = self.link(axis)
        if message.way == "each":
            return (size - 1) * link.latency_s + self._exchange_s(payload_bytes / size, axis)
        return message.rounds * (size - 1) * (link.latency_s + payload_bytes / (size * link.bytes_per_s))

    def link(self, axis: Axis) -> Link:
        """The link that limits a ring over an axis.

        A ring that crosses nodes enters and leaves a node through the cards of all its members there, while the other
        groups of the same axis use theirs: 16 consecutive devices on 2 × 8 reach eight times the rate of one card,
        pairs of stride 8 once (Galvatron-2 measured 44.7 and 8.1 GB/s; NVIDIA/nccl issue 812 measured 192 GB/s on 8
        cards).
        """
        cluster = self.cluster
        if not cluster.crosses_nodes(axis.size, axis.stride):
            return cluster.in_node
        rate = min(cluster.in_node.bytes_per_s, cluster.cross_node.bytes_per_s * self._neighbours(axis))
        return Link(rate, cluster.cross_node.latency_s)

    def _exchange_s(self, part_bytes: float, axis: Axis) -> float:
        """Transfer time of an all-to-all in which each rank sends `part_bytes` to each other one."""
        cluster, near = self.cluster, self._neighbours(axis)
        if not cluster.crosses_nodes(axis.size, axis.stride):
            return (axis.size - 1) * part_bytes / cluster.in_node.bytes_per_s
        return max(
            (near - 1) * part_bytes / cluster.in_node.bytes_per_s,
            (axis.size - near) * part_bytes / cluster.cross_node.bytes_per_s,
        )

    def _neighbours(self, axis: Axis) -> int:
        """The ranks of a group that crosses nodes that are on one node."""
        return max(1, self.cluster.devices_per_node // axis.stride)
