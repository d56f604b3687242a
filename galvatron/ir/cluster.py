"""Clusters: devices, and the links between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One accelerator: memory in bytes, achievable matmul rate per element type in FLOP/s, memory bandwidth in bytes/s."""

    name: str
    memory_bytes: int
    matmul_flop_per_s: tuple[tuple[str, float], ...]
    memory_bytes_per_s: float
    kernel_launch_s: float = 0.0


@dataclass(frozen=True)
class Link:
    """One level of the network: bytes/s per device and direction, and the latency of one message in seconds."""

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True)
class Cluster:
    """`nodes` × `devices_per_node` equal devices with a fast link inside a node and a slower one across nodes."""

    name: str
    device: Device
    nodes: int
    devices_per_node: int
    in_node: Link
    cross_node: Link

    @property
    def world_size(self) -> int:
        return self.nodes * self.devices_per_node
