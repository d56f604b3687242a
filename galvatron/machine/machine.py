"""The machine: seconds of a kernel and of a collective on a cluster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from galvatron.ir.cluster import Cluster
from galvatron.ir.contention import Contention
from galvatron.ir.layout import Axis
from galvatron.machine.collectives import Collectives
from galvatron.machine.kernel import Kernel, KernelAt
from galvatron.machine.kernels import Kernels


@dataclass(frozen=True)
class Machine:
    """What the devices and links of a cluster take, by its published or measured rates."""

    cluster: Cluster

    @property
    def launch_s(self) -> float:
        """Seconds that any kernel takes on the device, however little it does."""
        return self.cluster.device.kernel_launch_s

    def host_s(self, ops: int, views: int, *, backward: bool = False) -> float:
        """Seconds of the process, in eager mode, for ops that launch something and for views: a pass takes so long at
        least, whatever the device does meanwhile. On a processor both are one, and launching is a part of what a kernel
        takes; see `dispatched_s`."""
        device = self.cluster.device
        if device.kind == "cpu":
            return 0.0
        backward_s = device.host_op_s if device.host_backward_s is None else device.host_backward_s
        return ops * (backward_s if backward else device.host_op_s) + views * device.host_view_s

    def dispatched_s(self, ops: int, views: int) -> float:
        """Seconds by which ops lengthen what the device computes beside their kernels: on a processor, which dispatches
        them. A kernel is measured as it is called again and again, and among others its call takes longer."""
        device = self.cluster.device
        if device.kind != "cpu":
            return 0.0
        return ops * max(0.0, device.host_op_s - device.kernel_launch_s) + views * device.host_view_s

    def kernel_s(self, kernel: Kernel) -> float:
        """Seconds of one kernel on the device, its launch included."""
        return self._kernels.seconds(kernel)

    def kernel_at_s(self, kernel: KernelAt, batch: float) -> float:
        """The same of a kernel at a local batch size, found once: many layers have it."""
        key = kernel, batch
        if (seconds := self._seconds.get(key)) is None:
            seconds = self._seconds[key] = self.kernel_s(kernel.at(batch))
        return seconds

    def layer_s(self, fingerprint: str, samples: float) -> tuple[float, float] | None:
        """Seconds of all kernels of a layer class as a rank runs it, forward and backward, at a local batch size, where
        they were measured together; None elsewhere.

        Args:
            fingerprint: of its local graph (`galvatron.ir.fingerprints`).
        """
        return self._kernels.layer_s(fingerprint, samples)

    @property
    def knows_layers(self) -> bool:
        """Whether any layer was measured."""
        return bool(self.cluster.device.measured.layers)

    def work_s(self, kernel: Kernel) -> float:
        """Seconds of a kernel without its launch."""
        return self._kernels.seconds(kernel) - self.launch_s

    def moved_s(self, traffic_bytes: float) -> float:
        """Seconds of reading and writing so many bytes, in kernels that take many tensors at once."""
        return self._kernels.updating_s(traffic_bytes)

    def collective_s(self, kind: str, payload_bytes: float, axis: Axis) -> float:
        """Seconds of one collective on an axis; 0 on one of a single rank.

        `payload_bytes` is the whole tensor as one rank sees it: what `all_reduce` reduces, what `all_gather` returns,
        what `reduce_scatter` and `all_to_all` take, what `broadcast` sends, and the message of `p2p`.

        Raises:
            ClusterError: unknown kind.
        """
        return self._collectives.seconds(kind, payload_bytes, axis)

    def alike(self, axis: Axis) -> int:
        """A number that axes share on which every collective of a sharded graph takes equally long."""
        return self._collectives.alike(axis)

    def contention(self, axes: Iterable[Axis]) -> Contention:
        """What kernels and a collective over these axes cost each other: at the outermost level that they reach."""
        levels = [self.cluster.level_of(axis.size, axis.stride) for axis in axes]
        return self.cluster.levels[max(levels)].contention if levels else Contention()

    @cached_property
    def _seconds(self) -> dict[tuple[KernelAt, float], float]:
        return {}

    @cached_property
    def _kernels(self) -> Kernels:
        return Kernels(self.cluster.device)

    @cached_property
    def _collectives(self) -> Collectives:
        return Collectives(self.cluster)
