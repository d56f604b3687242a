"""Published figures of devices, one record each, with their sources.

All figures are copied, none is tuned on step times. Where a row has no measured figure, the median of the rows that do
stands for it. What joins such devices is in `galvatron.ir.networks`.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

from galvatron.ir import kernel_figures
from galvatron.ir.device import Device
from galvatron.ir.measurements import CURVES

_STAS = "stas00/ml-engineering (744d01e1) compute/accelerator/README.md"
_F32 = "; f32/f64 peaks: vendor datasheet, not verified"
_SHEET = "vendor datasheet, not verified"


def _seen(where: str) -> str:
    return f"; memory: as torch or rocm-smi told it in {where}"


RESERVED_GIB = 1.0
"""A CUDA context takes 0.3 GiB and more (pytorch/pytorch issue 107667), the first NCCL communicators of a process 0.53
to 0.67 GiB (NVIDIA/nccl issue 964); on ROCm these take 1 GiB (Lumi-supercomputer/LUMI-AI-Guide issue 111)."""


WORKSPACE_MIB, HOPPER = 8.125, 32.0
"""What PyTorch gives a cuBLAS handle to work with: `CUBLAS_WORKSPACE_CONFIG` in its documentation, and for Hopper what
that of cuBLAS (`cublasSetWorkspace`) recommends."""

HANDLES = 2
"""Of a process that trains, one of each thread that launches products: forward and backward."""


def held_clock(allowed_w: float, rated_w: float, standing_w: float) -> float:
    """The share of its clock that a device holds under load, where it is allowed less power than it is rated for.

    Power beyond what it draws at rest is proportional to clock times voltage squared, and ten percent more clock take
    about five percent more voltage (diomgis.com/learn/power-thermals-and-clock-throttling): so to the clock squared. At
    600 of 700 W that is 0.91 for an H100, whose training is 10 to 15 % slower then (factryze.ai on power capping).
    """
    return math.sqrt((allowed_w - standing_w) / (rated_w - standing_w))


@dataclass(frozen=True)
class Preset:
    """One device: rates in TFLOP/s, memory in GiB (2³⁰ bytes), its bandwidth in GB/s (1e9 bytes).

    Attributes:
        peak_tflops: of dense f16 matrix products accumulated in f32, by the datasheet.
        matmul_tflops: the most that was measured of it; None where nobody published one.
        f32_tflops: without TF32, torch's default.
        memory_gib: what the driver gives to a process, which is less than what the card is sold with.
        bf16: whether products of bf16 are as fast as those of f16; if not, they are as fast as those of f32.
        reserved_gib: of memory, what is taken before a program's first tensor.
        hopper: whether the library of products takes as much as it does on a GPU of that generation.
        clock: the share of its rates that it holds where it is allowed less power than other devices of its kind.
    """

    name: str
    peak_tflops: float
    matmul_tflops: float | None
    f32_tflops: float
    f64_tflops: float
    memory_gib: float
    memory_gb_s: float
    source: str
    bf16: bool = True
    reserved_gib: float = RESERVED_GIB
    kind: str = "cuda"
    hopper: bool = False
    clock: float = 1.0


# name, peak, measured, f32 and f64 TFLOP/s; memory in GiB, GB/s; source
_ROWS = (
    Preset("v100-16g", 125, 97.4, 15.7, 7.8, 15.77, 900,
           _SHEET + ", of the SXM2; f16 rate: zzc0721/torch-performance-test-data issue 140" + _seen("forum posts"),
           bf16=False),
    Preset("v100-32g", 125, 97.4, 15.7, 7.8, 31.75, 900,
           _SHEET + ", of the SXM2; f16 rate: as the one with 16 GB" + _seen("hiyouga/LlamaFactory issue 182"),
           bf16=False),
    Preset("t4", 65, None, 8.1, 0.25, 14.75, 320, _SHEET + _seen("hpcaitech/Open-Sora issue 697"), bf16=False),
    Preset("rtx-titan", 65.2, None, 16.3, 0.5, 23.65, 672,
           _SHEET + _seen("lambdal/lambda-tensorflow-benchmark pull request 11"), bf16=False),
    Preset("a100-40g", 312, 271.2, 19.5, 19.5, 39.50, 1555, _STAS + _F32 + _seen("TianheWu/CoSeR issue 10")),
    Preset("a100-80g", 312, 271.2, 19.5, 19.5, 79.25, 2000, _STAS + _F32 + _seen("levihsu/OOTDiffusion issue 235")),
    Preset("a100-40g-pcie", 312, None, 19.5, 19.5, 39.50, 1555, _SHEET + "; memory: as of the SXM card"),
    Preset("a100-80g-pcie", 312, None, 19.5, 19.5, 79.25, 1935, _SHEET + "; memory: as of the SXM card"),
    Preset("rtx-3090", 71, None, 35.6, 0.56, 23.69, 936,
           "vendor white paper of the GA102, not verified; memory: 24,576 MiB in nvidia-smi, less what torch does not "
           "get on a card of that size"),
    Preset("rtx-4090", 165.2, None, 82.6, 1.3, 23.64, 1008, _SHEET + _seen("3DTopia/Phidias-Diffusion issue 8")),
    Preset("l4", 121, None, 30.3, 0.5, 22.05, 300, _SHEET + _seen("several logs, 22.03 to 22.07")),
    Preset("l40s", 362, None, 91.6, 1.4, 44.40, 860, _STAS + _F32 + _seen("QwenLM/Qwen3-VL issue 2097 (an L40)")),
    Preset("h100-80g", 989, 794.5, 67, 67, 79.11, 3350, _STAS + _F32 + _seen("vllm-project/vllm issue 27508"),
           hopper=True),
    Preset("h100-96g", 989, 794.5, 67, 67, 95.0, 2400,
           "as the one with 80 GB, with HBM2e: pytorch/torchtitan benchmarks/llama3_h100_202412_torchtitan.md; memory: "
           "what a 96 GB card of that generation gives, not verified; 500 W of 700, as there; at rest 140 W, "
           "wilicc/gpu-burn issue 114",
           hopper=True, clock=held_clock(500, 700, 140)),
    Preset("h100-80g-pcie", 756, None, 51, 51, 79.11, 2000, _SHEET + "; memory: as of the SXM card",
           hopper=True),
    Preset("h100-94g-nvl", 835, None, 60, 60, 93.00, 3900, _SHEET + _seen("ali-vilab/VACE issue 56"),
           hopper=True),
    Preset("gh200-96g", 989, None, 67, 67, 94.50, 4000, _SHEET + _seen("logs of vLLM on one"),
           hopper=True),
    Preset("h200-141g", 989, 794.5, 67, 67, 139.80, 4800, _STAS + _F32 + _seen("several logs, 139.72 to 139.81"),
           hopper=True),
    Preset("b200-180g", 2250, 1745.0, 75, 37, 178.35, 7672,
           _STAS + _F32 + "; bandwidth: 7,680 bits at 3,996 MHz, pytorch/ao pull request 4002" + _seen("several logs")),
    Preset("gb200", 2500, 1822.0, 80, 40, 184.31, 8000, _STAS + _F32 + _seen("several logs")),
    Preset("mi300x", 1307, 668.4, 163.4, 163.4, 191.98, 5300, _STAS + _F32 + _seen("AMD's documentation of ROCm")),
    Preset("mi325x", 1300, 784.9, 163.4, 163.4, 255.98, 6000, _STAS + _F32 + _seen("logs of vLLM")),
    Preset("cpu", 2.6, None, 2.6, 1.3, 128, 205,
           "assumed: a socket of 32 cores with 512-bit vectors at 2.5 GHz, half of it reached, and eight channels of "
           "DDR4-3200; profile your own", bf16=False, reserved_gib=0.5, kind="cpu"),
)  # fmt: skip

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ROWS}
"""Device presets by name."""

ACHIEVED_MATMUL = statistics.median(p.matmul_tflops / p.peak_tflops for p in _ROWS if p.matmul_tflops)
"""Achievable over peak bf16 matmul rate, median of the devices somebody measured."""

KERNEL_LAUNCH_S = 2.5e-6
"""What a kernel takes on a GPU beside its work: about 1.5 us to begin and end, to which the smallest kernels of
microsoft/vidur's tables fit (2 to 4 us in all), and 1 us until the next begins. Typical, not measured per device."""

HOST_OP_S, HOST_BACKWARD_S, HOST_VIEW_S = 13e-6, 19.3e-6, 3.6e-6
"""What the process takes in eager PyTorch for an op that launches a kernel, with autograd, for one of a backward, and
for an op that gives another name to memory: this project's own profile of a machine with an H100
(`benchmarks/results/gpu_h100/profile.json`, torch 2.11), and typical of others. The slowest of the published ones is 21
us: a Llama-2-7B that generates 25.5 tokens a second on an A100, bound by its process (pytorch.org, "Accelerating
Generative AI with PyTorch II"), launches some 58 kernels in each layer. The smallest operation takes 7 us with autograd
on a fast core (pytorch/pytorch issue 41383), a `view` about 1 (gabrieldemarmiesse/torch-mojo-backend pull request
482)."""


def gpu_workspace_bytes(*, hopper: bool) -> int:
    """What the library of products takes on a GPU, of that generation or another."""
    return round(HANDLES * (HOPPER if hopper else WORKSPACE_MIB) * 2**20)


def device(name: str) -> Device:
    """The device of published figures."""
    preset, tera = PRESETS[name], 1e12
    half_rate = (preset.matmul_tflops or preset.peak_tflops * ACHIEVED_MATMUL) * preset.clock * tera
    share = half_rate / (preset.peak_tflops * tera)
    f32_rate = preset.f32_tflops * tera * share
    rates = (
        ("bf16", half_rate if preset.bf16 else f32_rate),
        ("f16", half_rate),
        ("f32", f32_rate),
        ("f64", preset.f64_tflops * tera * share),
    )
    found = Device(
        preset.name,
        round(preset.memory_gib * 2**30),
        rates,
        preset.memory_gb_s * 1e9,
        KERNEL_LAUNCH_S,
        preset.kind,
        HOST_OP_S,
        HOST_BACKWARD_S,
        HOST_VIEW_S,
        reserved_bytes=round(preset.reserved_gib * 2**30),
        workspace_bytes=gpu_workspace_bytes(hopper=preset.hopper) if preset.kind == "cuda" else 0,
    )
    if preset.kind == "cpu":
        return found
    kernels = kernel_figures.of_preset(preset.name)
    return replace(
        found,
        moving_share=kernels.moving_share,
        attention_share=kernels.attention_share,
        products=kernels.products,
        curves=preset.name if preset.name in CURVES else "",
    )
