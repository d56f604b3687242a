"""What kernels reach on devices that have presets, with sources.

Products of the A100 and the H100 are calibrated on measured ones (`benchmarks/calibrate_kernels.py`), never on step
times; shares of bandwidth and of attention are published figures of torch's own kernels where there are any. Other
devices have their own multiprocessors, and in all else the nearest of the two, or what both have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from galvatron.ir.device import Products
from galvatron.ir.records import Table

VIDUR = "microsoft/vidur (MIT) data/profiling/compute: medians of bf16 products on A100-80G SXM and H100-80G SXM"


@dataclass(frozen=True)
class KernelFigures:
    """What a device says of its kernels (see `galvatron.ir.device.Device`)."""

    products: Products
    moving_share: Table
    attention_share: Table


MULTIPROCESSORS: dict[str, int] = {
    "v100-16g": 80, "v100-32g": 80, "t4": 40, "rtx-titan": 72,
    "a100-40g": 108, "a100-80g": 108, "a100-40g-pcie": 108, "a100-80g-pcie": 108, "rtx-3090": 82,
    "h100-80g": 132, "h100-96g": 132, "h100-94g-nvl": 132, "h100-80g-pcie": 114, "h200-141g": 132, "gh200-96g": 132,
    "rtx-4090": 128, "l4": 58, "l40s": 142,
    "b200-180g": 148, "gb200": 148,
    "mi300x": 304, "mi325x": 304,
}  # fmt: skip
"""Streaming multiprocessors, or compute units, by preset: vendor datasheets and architecture papers, as torch reports
them (`torch.cuda.get_device_properties().multi_processor_count`)."""

_A100 = Products(108, 0.891, 11.2, 40.3, 0.302, 2.85e-6, 0.81)
"""Calibrated on gemm_a100.csv: products of 512 rows and more with weights that were held out are predicted with a
median error of 4.4 %, 90 % of them within 12.4 %."""

_H100 = Products(132, 0.947, 24.9, 13.8, 0.27, 4.02e-6, 0.88, (("2", 0.2), ("4", 0.4), ("8", 0.4)))
"""Calibrated on gemm_h100.csv: as above, 5.7 % and 16.9 %. Odd sizes: bf16 products of 8,192 and one to four more by
this project's own profile of an H100 SXM (torch 2.11), where cuBLAS takes kernels of earlier generations for them."""

_LIKE_H100 = ("h100", "h200", "gh200", "b200", "gb200")
"""Beginnings of the names of devices that are computed on as on an H100: in large tiles, fed asynchronously."""

MOVING_SHARE: Table = (
    ("pointwise", 0.9),
    ("copy", 0.8),
    ("reduction", 0.8),
    ("gather", 0.8),
    ("scatter", 0.4),
    ("norm", 0.6),
    ("softmax", 0.8),
    ("optimizer", 0.89),
)
"""Of the bandwidth, for GPUs.

`pointwise`: large residual adds reach 0.89 on an A100, those of 200 MB 0.95 on an H100 (vidur). `norm`: torch's
own kernels reach 0.58 forward, and 0.61 in the two launches of a backward, on an A100 (NVIDIA/apex pull request 1037,
of which torch's are a port); 0.51 backward on a GB300 (meta-pytorch/KernelAgent pull request 133). `softmax`: 0.86 in
the two launches of a backward on an MI350X (ROCm/FlyDSL pull request 1019). `optimizer`: fused AdamW moves 14 bytes of
each of 0.54e9 parameters in 3.56 ms on an H100 of 2.4 TB/s (pytorch/pytorch pull request 119842). The others are
assumed: a reduction or a copy of rows moves nearly as regularly, and scattering adds atomically.

Not torch's, and not used: vLLM's norm, 0.35 of large ones (A100 and H100, vidur), and its gated activation of one
kernel, 0.51 (A100) and 0.58 (H100), where torch has two pointwise kernels, or a compiled one."""

_MOVING_SHARE_H100: Table = (("pointwise", 0.95), *MOVING_SHARE[1:])

FLASH_2_A100: Table = (
    ("forward.64", 0.74), ("forward.128", 0.84), ("forward.256", 0.74),
    ("backward.64", 0.66), ("backward.128", 0.73),
)  # fmt: skip
"""Dao, "FlashAttention-2", 2023: up to 73 % of 312 TFLOP/s forward and 63 % backward, with heads of 128; other widths
in the relation that they have on an H100."""

FLASH_2_H100: Table = (
    ("forward.64", 0.412), ("forward.128", 0.472), ("forward.256", 0.416),
    ("backward.64", 0.3725), ("backward.128", 0.4116),
)  # fmt: skip
"""Shah et al., "FlashAttention-3", 2024, of FlashAttention-2 on an H100: 324, 370 and 326 TFLOP/s forward, 291 and 322
backward, of 16,384 keys without a mask, relative to 794.5. What torch runs before 2.11."""

CUDNN_H100: Table = (
    ("forward.64", 0.526), ("forward.128", 0.768), ("forward.256", 0.734),
    ("backward.64", 0.555), ("backward.128", 0.662),
)  # fmt: skip
"""The same figures of cuDNN: 413, 595 to 617 and 581 TFLOP/s forward, 433 and 516 backward. From torch 2.11 on,
attention is cuDNN's on devices of capability 9.0 and 10.0 (`check_prefer_cudnn_attention`). FlashAttention-3, which
torch has not, reaches 497, 648 and 756 forward, 474 and 561 backward."""

_OLDER: Table = tuple((name, share / 2) for name, share in FLASH_2_A100)
"""Before capability 8.0 torch has memory-efficient attention alone. Assumed."""

_WITHOUT_FLASH = ("v100", "t4", "rtx-titan")


def products_of(capability: float, multiprocessors: int) -> Products:
    """How a GPU of a compute capability computes products, as far as the two that were calibrated tell."""
    return replace(_H100 if capability >= 9 else _A100, multiprocessors=multiprocessors)


def of_preset(name: str) -> KernelFigures:
    """The figures of a device preset."""
    newer = name.startswith(_LIKE_H100)
    attention = CUDNN_H100 if newer else _OLDER if name.startswith(_WITHOUT_FLASH) else FLASH_2_A100
    products = replace(_H100 if newer else _A100, multiprocessors=MULTIPROCESSORS[name])
    return KernelFigures(products, _MOVING_SHARE_H100 if newer else MOVING_SHARE, attention)
