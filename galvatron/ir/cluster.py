"""Clusters: equal devices, and the links between them."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass

from galvatron.errors import ClusterError, did_you_mean
from galvatron.ir import limits, presets
from galvatron.ir.device import Device
from galvatron.ir.documents import read_json
from galvatron.ir.presets import PRESETS, Preset
from galvatron.ir.records import read_members
from galvatron.ir.types import DTYPE_BYTES

RESERVE_SHARE = 1 / 16
RESERVE_BYTES = 512 * 2**20

_NAME = re.compile(r"([^:]+):([0-9]{1,9})x([0-9]{1,9})")


@dataclass(frozen=True)
class Link:
    """One level of the network: bytes/s per device and direction, and the latency of one message in seconds."""

    bytes_per_s: float
    latency_s: float


@dataclass(frozen=True)
class Cluster:
    """`nodes` × `devices_per_node` equal devices with a fast link inside a node and a slower one across nodes.

    Ranks are numbered node by node. `in_node` is the link of one device to its neighbours, `cross_node` that of one
    device to the network (its own card, or its share of the node's).
    """

    name: str
    device: Device
    nodes: int
    devices_per_node: int
    in_node: Link
    cross_node: Link

    @property
    def world_size(self) -> int:
        return self.nodes * self.devices_per_node

    def __str__(self) -> str:
        return self.name

    @property
    def default_budget_bytes(self) -> int:
        """Memory that a plan may fill on each device when the user names no budget.

        A sixteenth is kept back for allocator fragmentation and short-lived workspaces, and 512 MiB for the device
        context and communication buffers.
        """
        return max(0, int(self.device.memory_bytes * (1 - RESERVE_SHARE)) - RESERVE_BYTES)

    @staticmethod
    def parse(text: str) -> Cluster:
        """Reads `"a100-80g:2x8"`: device preset, nodes × devices per node.

        Raises:
            ClusterError: malformed text, unknown preset (with the nearest known ones), or no devices.
        """
        match = _NAME.fullmatch(text.strip())
        if not match:
            preset = text.strip().partition(":")[0]
            raise ClusterError(
                f"cluster {text!r} is not of the form 'preset:NODESxDEVICES', such as 'a100-80g:2x8'"
                + ("" if preset in PRESETS else f"; {did_you_mean(preset, PRESETS)}")
            )
        name, nodes, devices = match[1].strip().lower(), int(match[2]), int(match[3])
        if name not in PRESETS:
            raise ClusterError(f"cluster {text!r}: unknown device preset {name!r}; {did_you_mean(name, PRESETS)}")
        if nodes < 1 or devices < 1:
            raise ClusterError(f"cluster {text!r}: needs at least one node and one device per node")
        if nodes * devices > limits.DEVICES:
            raise ClusterError(f"cluster {text!r}: {nodes * devices} devices, at most {limits.DEVICES} are possible")
        return _from_preset(PRESETS[name], nodes, devices)

    def to_json(self) -> str:
        """The whole description as one line of JSON; `from_json` gives back an equal cluster."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Cluster:
        """Reads what `to_json` wrote.

        Raises:
            ParseError: malformed JSON.
            ClusterError: a field is missing, unknown or of the wrong type.
        """
        cluster = read_members(Cluster, read_json(text, "cluster"), "cluster", ClusterError)
        cluster.check()
        return cluster

    def check(self) -> None:
        """Checks what a cluster must be: of positive sizes and rates, and not larger than `limits.DEVICES`.

        Raises:
            ClusterError: names the field.
        """
        rates = [(f"matmul_flop_per_s.{dtype}", rate) for dtype, rate in self.device.matmul_flop_per_s]
        if not rates:
            raise ClusterError("cluster field 'matmul_flop_per_s' must have at least one rate")
        for dtype, _ in self.device.matmul_flop_per_s:
            if dtype not in DTYPE_BYTES:
                told = did_you_mean(dtype, DTYPE_BYTES)
                raise ClusterError(f"cluster field 'matmul_flop_per_s': unknown element type {dtype!r}; {told}")
        records = (self, self.device, self.in_node, self.cross_node)
        numbers = [(f.name, getattr(r, f.name)) for r in records for f in dataclasses.fields(r)]
        for name, number in (*numbers, *rates):
            if type(number) in (int, float) and (number < 0 or (number == 0 and not _may_be_zero(name))):
                raise ClusterError(f"cluster field {name!r} must be positive, not {number}")
            if type(number) is float and not _is_sensible(name, number):
                raise ClusterError(f"cluster field {name!r} is {number}: no device or link is like that")
        self.device.check()
        if self.device.memory_bytes > limits.SIZE:
            raise ClusterError(f"cluster field 'memory_bytes' must be at most {limits.SIZE}")
        if self.world_size > limits.DEVICES:
            raise ClusterError(f"a cluster of more than {limits.DEVICES} devices")

    def crosses_nodes(self, size: int, stride: int) -> bool:
        """Whether some group of `size` ranks, `stride` apart, has members on several nodes.

        Groups are the axes of a stage mesh: blocks of `size · stride` ranks, aligned to a multiple of that.
        """
        return self.nodes > 1 and self.devices_per_node % (size * stride) != 0


def _is_sensible(name: str, number: float) -> bool:
    """Whether a time or rate is one that can be counted with."""
    return number <= 1e6 if _may_be_zero(name) else 1 <= number <= 1e30


def _may_be_zero(name: str) -> bool:
    """Latencies may, but neither sizes nor rates."""
    return name.endswith("_s") and not name.endswith("_per_s")


def _from_preset(preset: Preset, nodes: int, devices_per_node: int) -> Cluster:
    """A cluster of published figures, with median efficiencies where a figure was never measured."""
    tera, giga = 1e12, 1e9
    half_rate = (preset.matmul_tflops or preset.peak_tflops * presets.ACHIEVED_MATMUL) * tera
    share = half_rate / (preset.peak_tflops * tera)
    rates = (
        ("bf16", half_rate),
        ("f16", half_rate),
        ("f32", preset.f32_tflops * tera * share),
        ("f64", preset.f64_tflops * tera * share),
    )
    bus = preset.in_node_bus_gb_s or preset.in_node_gb_s * presets.ACHIEVED_IN_NODE
    nic = preset.nic_gb_s or presets.ASSUMED_NIC_GB_S
    return Cluster(
        name=f"{preset.name}:{nodes}x{devices_per_node}",
        device=Device(
            preset.name, round(preset.memory_gb * giga), rates, preset.memory_gb_s * giga, presets.KERNEL_LAUNCH_S
        ),
        nodes=nodes,
        devices_per_node=devices_per_node,
        in_node=Link(bus * giga, presets.IN_NODE_LATENCY_S),
        cross_node=Link(
            nic * (1 if preset.nic_measured else presets.ACHIEVED_NIC) * giga, presets.CROSS_NODE_LATENCY_S
        ),
    )
