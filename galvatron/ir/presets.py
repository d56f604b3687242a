"""Published figures of accelerators, one row each, with their sources.

All figures are copied, none is tuned. Where a row has no measured figure the cluster model falls back on the median of
the rows that do; `galvatron.ir.cluster` says how.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

_STAS = "stas00/ml-engineering (744d01e1) compute/accelerator/README.md, network/README.md"
_BUSBW = "; bus bandwidth: stas00/ml-engineering (744d01e1) network/README.md"
_ISSUE_812 = "; NIC rate: NVIDIA staff in github NVIDIA/nccl issue 812 (2 nodes, 192 of 200 GB/s)"
_ISSUE_290 = "; NIC rate: NVIDIA staff in github NVIDIA/nccl-tests issue 290 (46-48 of 50 GB/s)"
_F32 = "; f32/f64 peaks: vendor datasheet, not verified"


@dataclass(frozen=True)
class Preset:
    """One accelerator, figures per device: rates in TFLOP/s, memory in GB (1e9 bytes), bandwidths in GB/s one way.

    `matmul_tflops` is the maximum achievable bf16/fp16 matmul rate and `in_node_bus_gb_s` the measured large-message
    ring bus bandwidth of a full node; None where nobody published one. `nic_gb_s` is the achieved (`nic_measured`) or
    nominal rate of the network card, None for devices sold without a typical one. f32 is the rate without TF32,
    torch's default.
    """

    name: str
    peak_tflops: float
    matmul_tflops: float | None
    f32_tflops: float
    f64_tflops: float
    memory_gb: float
    memory_gb_s: float
    in_node_gb_s: float
    in_node_bus_gb_s: float | None
    nic_gb_s: float | None
    nic_measured: bool
    source: str


PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset("a100-40g", 312, 271.2, 19.5, 19.5, 40, 1555, 300, 235, 24, True,
               _STAS + " (memory and its bandwidth unverified)" + _BUSBW + _ISSUE_812 + _F32),
        Preset("a100-80g", 312, 271.2, 19.5, 19.5, 80, 2000, 300, 235, 24, True, _STAS + _BUSBW + _ISSUE_812 + _F32),
        Preset("h100-80g", 989, 794.5, 67, 67, 80, 3350, 450, 367.2, 47, True,
               _STAS + _BUSBW + " (ring all-reduce of the H200, same links)" + _ISSUE_290 + _F32),
        Preset("h200-141g", 989, 794.5, 67, 67, 141, 4800, 450, 367.2, 47, True, _STAS + _BUSBW + _ISSUE_290 + _F32),
        Preset("b200-180g", 2250, 1745.0, 75, 37, 180, 8000, 900, 845.67, 47.7, True,
               _STAS + _BUSBW + " (8 and 4x8 devices, 16 GiB)" + _F32),
        Preset("gb200", 2500, 1822.0, 80, 40, 186, 8000, 900, None, 50, False, _STAS + _F32),
        Preset("mi300x", 1307, 668.4, 163.4, 163.4, 192, 5300, 448, 312.912, 50, False,
               _STAS + " (448 = 7 links x 64 GB/s)" + _BUSBW + _F32),
        Preset("mi325x", 1300, 784.9, 163.4, 163.4, 256, 6000, 448, None, 50, False, _STAS + _F32),
        Preset("l40s", 362, None, 91.6, 1.4, 48, 860, 31, None, None, False, _STAS + " (PCIe 4)" + _F32),
        Preset("rtx-4090", 165.2, None, 82.6, 1.3, 24, 1008, 31, None, None, False,
               "vendor datasheet, not verified: bf16 with f32 accumulation; PCIe 4, no NVLink"),
        Preset("rtx-titan", 65.2, None, 16.3, 0.5, 24, 672, 15.75, None, None, False,
               "vendor datasheet, not verified: Turing, fp16 only (no bf16); PCIe 3 x16"),
        Preset("l4", 121, None, 30.3, 0.5, 24, 300, 31, 3.85, None, False,
               "vendor datasheet, not verified; bus bandwidth: fit of the Mist paper, PCIe, 3-4.7 GB/s"),
    )
}  # fmt: skip
"""Device presets by name."""

ACHIEVED_MATMUL = statistics.median(p.matmul_tflops / p.peak_tflops for p in PRESETS.values() if p.matmul_tflops)
"""Achievable over peak bf16 matmul rate, median of the devices somebody measured."""

ACHIEVED_IN_NODE = statistics.median(
    p.in_node_bus_gb_s / p.in_node_gb_s for p in PRESETS.values() if p.in_node_bus_gb_s and p.name != "l4"
)
"""Ring bus bandwidth over nominal link rate, median of the measured devices (the L4 figure is a fit, not a
measurement)."""

ACHIEVED_NIC = 0.95
"""Achieved over nominal network rate: 192/200, 46-48/50 and 381.8/400 in the sources of the measured rows."""

ASSUMED_NIC_GB_S = 12.5
"""For devices sold without a typical network card: one 100 Gb/s card per device. An assumption."""

IN_NODE_LATENCY_S = 5e-6
"""One ring step in a node: 8-GPU all-reduce of 1 MB takes 79 us (Galvatron-2 profile) and of 32 KiB 48 us (B200), 14
steps."""

CROSS_NODE_LATENCY_S = 6e-6
"""One ring step across nodes: 32-GPU all-reduce of 256 KiB to 1 MiB takes 360-380 us (B200 over EFA), 62 steps."""

KERNEL_LAUNCH_S = 2.5e-6
"""What a kernel takes on a GPU beside its work: about 1.5 us to begin and end, to which the smallest kernels of
microsoft/vidur's tables fit (2 to 4 us in all), and 1 us until the next begins. Typical, not measured per device."""

HOST_OP_S = 6e-6
"""Time between two kernels that eager PyTorch launches, with autograd: typical, not measured per machine."""
