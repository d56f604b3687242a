"""Seconds of kernels on a device: what was measured where something was, what its figures say elsewhere."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache

from galvatron.ir.curves import Curve
from galvatron.ir.device import Device
from galvatron.ir.measurements import measured_of
from galvatron.ir.ops.operator import Moves
from galvatron.ir.ops.work import Work
from galvatron.ir.types import DTYPE_BYTES
from galvatron.machine.attention import DIRECTION, Attention
from galvatron.machine.kernel import Kernel
from galvatron.machine.measured import Corrections, Grid
from galvatron.machine.products import TiledProducts

REMEMBERED = 2**16
"""Products and attention whose seconds are kept."""


class Kernels:
    """What kernels take on a device, each launched by itself."""

    def __init__(self, device: Device) -> None:
        self._device, self._measured = device, measured_of(device)
        self._shares = dict(device.moving_share)
        self._curves: dict[Hashable, Curve | None] = {}
        self._grids: dict[tuple[str, ...], Grid | None] = {}
        self._corrections: dict[str, Corrections | None] = {}
        self._tiled = TiledProducts(device) if device.products.multiprocessors else None
        self._attention = Attention(device)
        self._work_s = lru_cache(REMEMBERED)(self._computed_s)

    def seconds(self, kernel: Kernel) -> float:
        """Seconds of one kernel, its launch included."""
        if kernel.flop > 0:
            assert kernel.work is not None
            return self._work_s(kernel.dtype, kernel.work, kernel.traffic_bytes, kernel.transposed)
        launch_s, moves = self._device.kernel_launch_s, kernel.moves
        if (curve := self._curve(moves, kernel.dtype, backward=kernel.backward)) is not None:
            return max(launch_s, curve(kernel.traffic_bytes))
        share = self._shares.get(moves, 1.0)
        if kernel.backward:
            share = self._shares.get(f"{moves}.backward", share)
        return launch_s + kernel.traffic_bytes / (self._device.memory_bytes_per_s * share)

    def updating_s(self, traffic_bytes: float) -> float:
        """Seconds of reading and writing so many bytes of many tensors at once; launches are not told apart."""
        if (curve := self._curve("optimizer", "")) is not None:
            size, seconds = curve.points[-1]
            return traffic_bytes * seconds / size
        return traffic_bytes / (self._device.memory_bytes_per_s * self._shares.get("optimizer", 1.0))

    def layer_s(self, fingerprint: str, samples: float) -> tuple[float, float] | None:
        """Seconds of all kernels of what has the fingerprint, forward and backward, if they were measured."""
        forward, backward = (self._layer(f"{fingerprint}.{direction}") for direction in ("forward", "backward"))
        if forward is None:
            return None
        return forward.straight(samples), backward.straight(samples) if backward is not None else 0.0

    def _computed_s(self, dtype: str, work: Work, traffic_bytes: float, transposed: bool) -> float:
        launch_s = self._device.kernel_launch_s
        if (measured_s := self._measured_s(dtype, work, traffic_bytes, transposed)) is not None:
            return max(launch_s, measured_s)
        if work.kind == "product" and self._tiled is not None:
            return self._tiled_s(dtype, work.sizes, traffic_bytes, transposed)
        if work.kind in DIRECTION and self._attention.knows(work.kind):
            return launch_s + self._attention.seconds(dtype, work, traffic_bytes)
        # The roofline model (Williams, Waterman, Patterson 2009).
        device = self._device
        return launch_s + max(work.flop / device.flop_per_s(dtype), traffic_bytes / device.memory_bytes_per_s)

    def _measured_s(self, dtype: str, work: Work, traffic_bytes: float, transposed: bool) -> float | None:
        """What was measured for such work, if anything."""
        if work.kind == "product" and self._tiled is not None:
            correction = self._correction(dtype)
            if correction is None:
                return None
            return self._tiled_s(dtype, work.sizes, traffic_bytes, transposed) * correction(work.sizes)
        if work.kind == "product":
            grid = self._grid("products", dtype)
            return grid(work.sizes) if grid is not None else None
        count, queries, keys, width, value_width, seen = work.sizes
        direction = DIRECTION[work.kind]
        masked = (f"{dtype}.causal.{direction}",) if seen < 1 else ()
        grid = self._grid("attention", *masked, f"{dtype}.{direction}")
        if grid is None:
            return None
        # As long as a square of as many pairs.
        return grid((count, (queries * keys) ** 0.5, (width + value_width) / 2))

    def _tiled_s(self, dtype: str, sizes: Sequence[float], traffic_bytes: float, transposed: bool = False) -> float:
        """What a product takes by the device's figures, its launch included."""
        assert self._tiled is not None
        return self._device.kernel_launch_s + self._tiled.seconds(dtype, sizes, traffic_bytes, transposed)

    def _correction(self, dtype: str) -> Corrections | None:
        if dtype not in self._corrections:

            def expected_s(*sizes: float) -> float:
                count, rows, columns, inner = sizes
                elements = count * (rows * inner + inner * columns + rows * columns)
                return self._tiled_s(dtype, sizes, elements * DTYPE_BYTES[dtype])

            found = self._measured.find("products", dtype)
            self._corrections[dtype] = Corrections(found, expected_s) if found else None
        return self._corrections[dtype]

    def _grid(self, table: str, *names: str) -> Grid | None:
        key = (table, *names)
        if key not in self._grids:
            rows = self._measured.find(table, *names)
            self._grids[key] = Grid(rows) if rows else None
        return self._grids[key]

    def _layer(self, name: str) -> Curve | None:
        key = ("layers", name)
        if key not in self._curves:
            rows = self._measured.find("layers", name)
            self._curves[key] = Curve.through([(samples, seconds) for samples, seconds in rows]) if rows else None
        return self._curves[key]

    def _curve(self, moves: Moves, dtype: str, *, backward: bool = False) -> Curve | None:
        key = (moves, dtype, backward)
        if key not in self._curves:
            classes = (f"{moves}.backward", moves) if backward else (moves,)
            rows = self._measured.find("moving", *(name for own in classes for name in (f"{own}.{dtype}", own)))
            self._curves[key] = Curve.through([(size, seconds) for size, seconds in rows]) if rows else None
        return self._curves[key]
