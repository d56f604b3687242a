"""Networks of device presets: what joins devices of one kind where they are sold or rented, with sources.

Rates are those that long messages reach; where nobody published one, the link's own times the median of what others
reach of theirs. Times of short messages are calibrated on measured collectives of A100s and H100s
(`benchmarks/calibrate_links.py`; the tables are of microsoft/vidur, MIT), and stand for other links of the same make.
Nothing is fitted to times of training steps.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

from galvatron.errors import ClusterError, did_you_mean
from galvatron.ir import limits, presets
from galvatron.ir.contention import Contention
from galvatron.ir.device import Device
from galvatron.ir.kernel_figures import MULTIPROCESSORS
from galvatron.ir.network import Level
from galvatron.ir.presets import PRESETS

_BUSBW = "stas00/ml-engineering (744d01e1) network/README.md"
_VIDUR = "; times of short messages: fit to microsoft/vidur's tables (MIT)"
_SHEET = "vendor datasheet, not verified"

ACHIEVED_LINK = statistics.median((235 / 300, 367.2 / 450, 740 / 900, 312.912 / 448))
"""Of a link in a node, what rings reach: A100, H200, B200, MI300X."""

ACHIEVED_CARD = 0.95
"""Of a network card: 192 of 200 (NVIDIA/nccl issue 812), 46-48 of 50 (NVIDIA/nccl-tests issue 290), 381.8 of 400."""

ACHIEVED_PCIE = 20 / 31.5
"""Of a PCIe slot, what rings through the root complex reach: 20 GB/s of PCIe 4 (NVIDIA/nccl-tests issue 178)."""

START_S = 36e-6
"""What a collective takes beside its steps: 39.7 us (A100) and 34.2 us (H100) in the fit."""

MESSAGE_S = {"nvlink 3": 14e-6, "nvlink 4": 8e-6, "card": 20e-6}
"""Of a shortest message: fits to send-receive of A100s and H100s, in a node and across (24 and 19 us)."""


NVLINK_CHANNELS, CHANNELS, PCIE_CHANNELS = 24, 16, 2
"""Multiprocessors that NCCL's kernels have to themselves while a collective runs, one for each channel: in a node with
NVLink (the log in NVIDIA/nccl-tests issue 100), through eight cards that send 190 GB/s, and on machines of PCIe with a
single card (both NVIDIA/nccl issue 689, by its author)."""

_PCIE = ("t4", "rtx-titan", "rtx-3090", "rtx-4090", "l4", "l40s")
"""Presets without NVLink."""

GLOO_THREADS, CPU_CORES = 2, 32
"""Threads of a process group (torch's default), of the cores of the socket that the preset assumes."""


@dataclass(frozen=True)
class Network:
    """The levels that join devices of one kind, from the innermost on, with the parts that each has at most: 0 for a
    level that joins any number.

    Attributes:
        bridge: what joins pairs of devices in a node besides, where such cards are sold in pairs.
    """

    node: Level
    outer: tuple[Level, ...]
    source: str
    bridge: Level | None = None

    @property
    def levels(self) -> tuple[Level, ...]:
        return self.node, *self.outer


def _card(gb_s: float, step_s: float, cards: int = 0) -> Level:
    """What joins nodes: network cards of some nominal rate."""
    return Level("network", 0, gb_s * ACHIEVED_CARD * 1e9, MESSAGE_S["card"], cards, START_S, step_s)


def _pcie(gb_s: float) -> Level:
    """What joins cards in a node by its root complex."""
    return Level("node", 0, gb_s * ACHIEVED_PCIE * 1e9, MESSAGE_S["nvlink 3"], 0, START_S, 1e-6)


HDR_STEP_S, NDR_STEP_S = 14e-6, 4e-6
"""A hop between nodes: fit to all-reduces of A100s; two nodes over NDR InfiniBand take 46.5 us for a shortest one
(NVIDIA/nccl issue 1244)."""

_A100 = Level("node", 0, 235e9, MESSAGE_S["nvlink 3"], 0, START_S, 14.6e-6, 146e9, 0.2e-6)
_H100 = Level("node", 0, 367.2e9, MESSAGE_S["nvlink 4"], 0, START_S, 0.2e-6)
_B200 = Level("node", 0, 740e9, MESSAGE_S["nvlink 4"], 0, START_S, 4e-6, 500e9, 1.4e-6)
_MI300X = Level("node", 0, 312.912e9, MESSAGE_S["nvlink 3"], 0, START_S, 1e-6, pair_bytes_per_s=47.671e9)
_V100 = replace(_A100, bytes_per_s=150e9 * ACHIEVED_LINK, quick_bytes_per_s=150e9 * ACHIEVED_LINK * 146 / 235)
_BRIDGE = replace(_A100, name="pair", parts=2, bytes_per_s=208e9, quick_bytes_per_s=208e9 * 146 / 235)
_GH200 = replace(_H100, bytes_per_s=450e9 * ACHIEVED_LINK, pair_bytes_per_s=150e9 * ACHIEVED_LINK)

_HDR, _NDR = (_card(25, HDR_STEP_S),), (_card(50, NDR_STEP_S),)
_SHARED_100G = (_card(12.5, HDR_STEP_S, cards=1),)
_SHARED_400G = (_card(12.5, HDR_STEP_S, cards=4),)

_IN_DGX_A100 = Network(
    _A100, _HDR, f"DGX A100, 8 cards of 200 Gb/s; in a node {_BUSBW}; across NVIDIA/nccl issue 812{_VIDUR}"
)
_IN_DGX_1 = Network(_V100, _SHARED_400G, f"DGX-1, 150 GB/s of NVLink, 4 cards of 100 Gb/s; {_SHEET}")
_IN_HGX_H100 = Network(
    _H100,
    _NDR,
    f"HGX, 8 cards of 400 Gb/s; in a node ring of 8 H200, {_BUSBW}; across NVIDIA/nccl-tests issue 290{_VIDUR}",
)
_IN_HGX_B200 = Network(
    _B200,
    _NDR,
    f"HGX, 8 cards of 400 Gb/s; in a node all-reduce of 1 MiB to 4 GiB (846 GB/s beyond), across 382 GB/s for 8 cards, "
    f"both {_BUSBW}",
)
_PAIRS_ON_PCIE_4, _PAIRS_ON_PCIE_5 = replace(_pcie(31.5), cards=1), replace(_pcie(63), cards=1)
_IN_BRIDGED_PAIRS = f"in pairs 208 GB/s, between them 20 GB/s of PCIe 4: NVIDIA/nccl-tests issue 178{_VIDUR}"

NETWORKS: dict[str, Network] = {
    "v100-16g": _IN_DGX_1,
    "v100-32g": _IN_DGX_1,
    "t4": Network(_pcie(15.75), _SHARED_100G, f"PCIe 3, assumed one card of 100 Gb/s in a node; {_SHEET}"),
    "rtx-titan": Network(_pcie(15.75), _SHARED_100G, f"PCIe 3, assumed one card of 100 Gb/s in a node; {_SHEET}"),
    "a100-40g": _IN_DGX_A100,
    "a100-80g": _IN_DGX_A100,
    "a100-40g-pcie": Network(
        _PAIRS_ON_PCIE_4, _SHARED_100G, _IN_BRIDGED_PAIRS + "; assumed one card of 100 Gb/s", _BRIDGE
    ),
    "a100-80g-pcie": Network(
        _PAIRS_ON_PCIE_4, _SHARED_100G, _IN_BRIDGED_PAIRS + "; assumed one card of 100 Gb/s", _BRIDGE
    ),
    "rtx-3090": Network(_pcie(31.5), _SHARED_100G, f"PCIe 4, assumed one card of 100 Gb/s in a node; {_SHEET}"),
    "rtx-4090": Network(_pcie(31.5), _SHARED_100G, f"PCIe 4, assumed one card of 100 Gb/s in a node; {_SHEET}"),
    "l4": Network(
        replace(_pcie(31.5), bytes_per_s=3.85e9),
        _SHARED_100G,
        "in a node the Mist paper's fit of PCIe, 3 to 4.7 GB/s; across assumed one card of 100 Gb/s in a node",
    ),
    "l40s": Network(_pcie(31.5), _SHARED_400G, f"PCIe 4, 4 cards of 100 Gb/s in a node; {_SHEET}"),
    "h100-80g": _IN_HGX_H100,
    "h100-96g": _IN_HGX_H100,
    "h100-80g-pcie": Network(
        _PAIRS_ON_PCIE_5,
        _SHARED_400G,
        _IN_BRIDGED_PAIRS + ", twice that on PCIe 5; assumed 4 cards of 100 Gb/s",
        _BRIDGE,
    ),
    "h100-94g-nvl": Network(
        _PAIRS_ON_PCIE_5,
        _SHARED_400G,
        _IN_BRIDGED_PAIRS + ", twice that on PCIe 5; assumed 4 cards of 100 Gb/s",
        _BRIDGE,
    ),
    "gh200-96g": Network(
        _GH200, _HDR, f"nodes of four as in Alps, 150 GB/s between each two, 200 Gb/s of Slingshot each; {_SHEET}"
    ),
    "h200-141g": _IN_HGX_H100,
    "b200-180g": _IN_HGX_B200,
    "gb200": Network(
        replace(_B200, parts=4),
        (replace(_B200, name="rack", parts=18), *_NDR),
        "NVL72, as B200 in a node: 724 GB/s for 1 GiB on 72 devices in coreweave/nccl-tests pull request 43; 400 Gb/s "
        f"for each device between racks; {_SHEET}",
    ),
    "mi300x": Network(
        _MI300X,
        _NDR,
        f"8 cards of 400 Gb/s; in a node all-reduce of 4 GiB, 47.7 GB/s for two and 313 for eight, {_BUSBW}",
    ),
    "mi325x": Network(_MI300X, _NDR, "as MI300X"),
    "cpu": Network(
        Level("node", 0, 5e9, 20e-6), (Level("network", 0, 1.2e9, 50e-6, 1),), "assumed: gloo, 10 Gb/s between machines"
    ),
}
"""By device preset."""


_NAME = re.compile(r"([^:]+):([0-9]{1,9}(?:x[0-9]{1,9})+)")


class Described(NamedTuple):
    """What a cluster is made of: its name, its devices, and its levels."""

    name: str
    device: Device
    levels: tuple[Level, ...]


def described(text: str) -> Described:
    """What `"a100-80g:2x8"` means: so many nodes of so many devices of a preset.

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
    name, sizes = match[1].strip().lower(), [int(size) for size in match[2].split("x")]
    if name not in PRESETS:
        raise ClusterError(f"cluster {text!r}: unknown device preset {name!r}; {did_you_mean(name, PRESETS)}")
    if min(sizes) < 1:
        raise ClusterError(f"cluster {text!r}: needs at least one node and one device per node")
    if prod(sizes) > limits.DEVICES:
        raise ClusterError(f"cluster {text!r}: {prod(sizes)} devices, at most {limits.DEVICES} are possible")
    return Described(f"{name}:{match[2]}", presets.device(name), levels(name, sizes))


def levels(preset: str, sizes: list[int]) -> tuple[Level, ...]:
    """The levels of a cluster of so many parts each, the outermost first, the devices of a node last.

    Raises:
        ClusterError: more levels than the preset has, or more parts of one than it joins.
    """
    network = NETWORKS[preset]
    form = "x".join([*(f"{level.name}s".upper() for level in reversed(network.levels[:-1])), "DEVICES"])
    if len(sizes) > len(network.levels):
        raise ClusterError(
            f"cluster preset {preset!r} has {len(network.levels)} levels: {form}; describe others in a file"
        )
    found: list[Level] = []
    for level, size in zip(network.levels, reversed(sizes), strict=False):
        most = level.parts
        if most and size > most and level is not network.node:
            raise ClusterError(
                f"cluster preset {preset!r}: a {level.name} joins at most {most} parts, not {size}; write {form}"
            )
        found.append(replace(level, parts=size))
    found = [replace(level, contention=_contention(preset, in_node=not i)) for i, level in enumerate(found)]
    node, *outer = found
    if network.bridge is not None and node.parts % network.bridge.parts == 0:
        outer.insert(0, replace(node, parts=node.parts // network.bridge.parts))
        node = replace(network.bridge, contention=_contention(preset, in_node=True))
    return node, *(level for level in outer if level.parts > 1)


def _contention(preset: str, *, in_node: bool) -> Contention:
    """What collectives leave to kernels: the multiprocessors that they do not take. They themselves are as fast as
    alone, since links bound them."""
    if preset not in MULTIPROCESSORS:
        return Contention(1 - GLOO_THREADS / CPU_CORES)
    channels = PCIE_CHANNELS if preset in _PCIE else NVLINK_CHANNELS if in_node else CHANNELS
    return Contention(1 - channels / MULTIPROCESSORS[preset])
