"""What the package knows from measuring devices that have presets: for each a file with a `Measured`, as JSON.

`h100-80g`: this project's own hardware profile of an H100 SXM of 80 GB, torch 2.11 with CUDA 13.0
(`benchmarks/results/gpu_h100/profile.json`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from galvatron.errors import ClusterError
from galvatron.ir.device import Device, Measured
from galvatron.ir.documents import read_json
from galvatron.ir.records import read_members

_FOLDER = Path(__file__).parent / "measured"

CURVES = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))
"""Names of devices that were measured."""


def measured_of(device: Device) -> Measured:
    """What was measured on a device, or else what the package knows of one like it."""
    own = device.measured
    if own != Measured(layers=own.layers) or device.curves not in CURVES:
        return own
    return replace(_read(device.curves), layers=own.layers)


@cache
def _read(name: str) -> Measured:
    text = (_FOLDER / f"{name}.json").read_text(encoding="utf-8")
    return read_members(Measured, read_json(text, "measurements"), "measurements", ClusterError)
