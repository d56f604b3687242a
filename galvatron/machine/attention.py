"""Seconds of attention in one kernel (Dao, "FlashAttention-2", 2023) by its lengths, width and direction.

Queries are taken in blocks, and each block meets the keys that it may see: a long row is worked on at a rate that
depends on the width of a head and the direction, and beside it a block begins and ends, and is computed whole where
the mask cuts it.
"""

from __future__ import annotations

import math
from math import ceil

from galvatron.ir.device import Device
from galvatron.ir.ops.work import Work
from galvatron.machine.products import together

BLOCK = 128
"""Queries, and keys, of a block."""

RAMP = {"attention": 100.0, "attention_backward": 190.0}
"""Keys that take as long as beginning and ending a block of queries: from the rates of lengths 512 to 16,384 in the
figures of Shah et al., "FlashAttention-3", 2024 (H100, FlashAttention-2 and cuDNN). Those of a backward include
launches beside it, which take as long as 60 to 90 keys more."""

CAUSAL_SHARE = 0.92
"""Of the rate, what is left under a causal mask, where blocks have unequally much to do: 0.89 to 0.95
in these figures."""

DIRECTION = {"attention": "forward", "attention_backward": "backward"}


class Attention:
    """What attention in one kernel takes on a device whose `attention_share` is known; without launch."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._shares: dict[str, list[tuple[float, float]]] = {}
        for name, share in device.attention_share:
            direction, _, width = name.partition(".")
            self._shares.setdefault(direction, []).append((float(width), share))
        for widths in self._shares.values():
            widths.sort()

    def knows(self, kind: str) -> bool:
        """Whether there is a share for a direction."""
        return DIRECTION[kind] in self._shares

    def seconds(self, dtype: str, work: Work, traffic_bytes: float) -> float:
        """Seconds of `attention` or `attention_backward`, that touches so many bytes."""
        count, queries, keys, width, value_width, seen = work.sizes
        blocks = count * ceil(queries / BLOCK)
        met = keys * seen + RAMP[work.kind] + (BLOCK / 2 if seen < 1 else 0)
        share = self._share(DIRECTION[work.kind], (width + value_width) / 2) * (CAUSAL_SHARE if seen < 1 else 1)
        flop = Work(
            work.kind, (max(blocks, self._device.products.multiprocessors), BLOCK, met, width, value_width, 1)
        ).flop
        return together(
            flop / (self._device.flop_per_s(dtype) * share), traffic_bytes / self._device.memory_bytes_per_s
        )

    def _share(self, direction: str, width: float) -> float:
        """Of heads of a width: in proportion below the first that is known, between two a power of it."""
        widths = self._shares[direction]
        if width <= widths[0][0]:
            return widths[0][1] * width / widths[0][0]
        for (a, a_share), (b, b_share) in zip(widths, widths[1:], strict=False):
            if width <= b:
                return a_share * (b_share / a_share) ** (math.log(width / a) / math.log(b / a))
        return widths[-1][1]
