"""What happens on a device when a graph runs: kernels and collectives, linear in the local batch size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from galvatron.ir.cluster import Cluster
from galvatron.ir.layout import Axis


@dataclass(frozen=True)
class Linear:
    """A quantity that is linear in the local batch size."""

    constant: float
    slope: float

    def __call__(self, batch: float) -> float:
        return self.constant + self.slope * batch

    @staticmethod
    def through(batches: tuple[int, int], values: tuple[float, float]) -> Linear:
        """The line through the values at two batch sizes."""
        slope = (values[1] - values[0]) / (batches[1] - batches[0])
        return Linear(values[0] - slope * batches[0], slope)


@dataclass(frozen=True)
class Kernel:
    """One kernel: its matmul FLOPs in an element type, and the bytes it reads and writes.

    `of_weight` says that it makes the gradient of a weight, and nothing else.
    """

    name: str
    dtype: str
    flop: Linear
    traffic_bytes: Linear
    of_weight: bool = False


@dataclass(frozen=True)
class Collective:
    """One collective on a mesh axis; `payload_bytes` as in `Cluster.collective_s`."""

    kind: str
    axis: Axis
    payload_bytes: Linear


@dataclass(frozen=True)
class Profile:
    """One call of a graph on one device.

    `saved_bytes` are the unique storages that autograd keeps from forward to backward, other than state and
    `shared_bytes`: inputs without a gradient (masks, ids), which many layers keep together. `forward_extra_bytes` and
    `backward_extra_bytes` are the peaks of live memory above inputs, state and what is saved.
    """

    forward: tuple[Kernel | Collective, ...]
    backward: tuple[Kernel | Collective, ...]
    saved_bytes: Linear
    shared_bytes: tuple[tuple[str, Linear], ...]
    forward_extra_bytes: Linear
    backward_extra_bytes: Linear


def kernels_s(events: Iterable[Kernel | Collective], cluster: Cluster, batch: float) -> float:
    """Seconds of the kernels among events at a local batch size.

    The roofline model (Williams, Waterman, Patterson 2009): a kernel takes the longer of its FLOPs at the matmul rate
    and its bytes at memory bandwidth, plus one launch.
    """
    device = cluster.device
    return sum(
        max(e.flop(batch) / device.flop_per_s(e.dtype), e.traffic_bytes(batch) / device.memory_bytes_per_s)
        + device.kernel_launch_s
        for e in events
        if isinstance(e, Kernel)
    )


def collectives_s(events: Iterable[Kernel | Collective], cluster: Cluster, batch: float) -> float:
    """Seconds of the collectives among events at a local batch size; nothing overlaps them."""
    return sum(
        cluster.collective_s(e.kind, e.payload_bytes(batch), e.axis.size, e.axis.stride)
        for e in events
        if isinstance(e, Collective)
    )
