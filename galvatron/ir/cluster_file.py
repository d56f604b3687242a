"""Clusters in TOML files that people write: a preset with figures of their own, or all figures.

    preset = "a100-80g:4x8"

    [device]
    memory_bytes = "79.1GiB"

    [level.network]
    cards = 4
    bytes_per_s = "100Gbit/s"

Fields are those of `Device` and `Level`: numbers of bytes, seconds and FLOP, or text with a unit. Levels stand from the
innermost on; those with the name of one of the preset change it, others lie outside of it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from galvatron.errors import ClusterError, GalvatronError, ParseError, did_you_mean
from galvatron.ir import limits, networks, presets
from galvatron.ir.device import Device
from galvatron.ir.documents import shown
from galvatron.ir.files import read_text
from galvatron.ir.network import Level
from galvatron.ir.networks import Described
from galvatron.ir.presets import PRESETS, Preset
from galvatron.ir.records import fields_of, read_members
from galvatron.units import parse_quantity

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]  # only there where Python has no reader

_PARTS = ("name", "preset", "device", "level")

ABOVE_PUBLISHED = 1.1
"""How much of a datasheet's figure a card of its own may have: some are clocked higher."""


@dataclass(frozen=True)
class _Range:
    """From where to where figures lie that a machine may have, and one as people write it."""

    least: float
    most: float
    example: str


_RATE, _TIME = _Range(1e5, 4e12, "25GB/s"), _Range(0, 0.1, "5us")
_RANGES = {
    "memory_bytes": _Range(2**26, 2**44, "80GiB"),
    "reserved_bytes": _Range(0, 2**40, "1GiB"),
    "workspace_bytes": _Range(0, 2**40, "64MiB"),
    "memory_bytes_per_s": _Range(1e8, 1e14, "2TB/s"),
    "matmul_flop_per_s": _Range(1e8, 1e17, "250TFLOP/s"),
    "bytes_per_s": _RATE,
    "quick_bytes_per_s": _RATE,
    "pair_bytes_per_s": _RATE,
    "kernel_launch_s": _TIME,
    "host_op_s": _TIME,
    "host_backward_s": _TIME,
    "host_view_s": _TIME,
    "latency_s": _TIME,
    "start_s": _TIME,
    "step_s": _TIME,
    "quick_step_s": _TIME,
}
_QUANTITIES = {"bytes_per_s": "bytes/s", "flop_per_s": "FLOP/s", "bytes": "bytes", "s": "s"}
"""How names of fields end → what they are in; the first that fits counts."""


def read(path: str | os.PathLike[str]) -> Described:
    """What the cluster in a file is made of; `Cluster.check` is still to be asked.

    Raises:
        ClusterError: the file cannot be read, or has what no cluster has; says what.
        ParseError: it is no TOML.
    """
    name, document = os.fspath(path), _document(path)
    try:
        return _described(document, Path(path).stem)
    except ClusterError as error:
        error.args = (f"{name}: {error}",)
        raise


def _document(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise ClusterError(f"cannot read {os.fspath(path)!r}: {error}") from None
    if len(text) > limits.FILE_CHARACTERS:
        raise ParseError(f"{os.fspath(path)} has more than {limits.FILE_CHARACTERS} characters")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ParseError(f"{os.fspath(path)} is not valid TOML: {error}") from None


def _described(document: Mapping[str, Any], stem: str) -> Described:
    for key in document:
        if key not in _PARTS:
            raise ClusterError(f"unknown key {shown(key)}; {did_you_mean(key, _PARTS)}")
    preset, device, levels = _of_preset(document.get("preset"))
    device = _device(_table(document, "device"), device)
    if preset is not None:
        _check_published(device, preset)
    tables = _table(document, "level")
    found = {level.name: _level(level.name, tables.get(level.name, {}), level) for level in levels}
    found |= {name: _level(name, table, None) for name, table in tables.items() if name not in found}
    if not found:
        raise ClusterError("needs a table such as [level.node], or a preset like 'a100-80g:2x8'")
    name = document.get("name", stem)
    if not isinstance(name, str):
        raise ClusterError(f"'name' must be text, not {shown(name)}")
    return Described(name, device, tuple(found.values()))


def _of_preset(text: Any) -> tuple[Preset | None, Device | None, tuple[Level, ...]]:
    """What a file takes from a preset: all, or with the name of a device alone only that."""
    if text is None:
        return None, None, ()
    if not isinstance(text, str):
        raise ClusterError(f"'preset' must be text like 'a100-80g:2x8', not {shown(text)}")
    if text in PRESETS:
        return PRESETS[text], presets.device(text), ()
    _, device, levels = networks.described(text)
    return PRESETS[device.name], device, levels


def _table(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = document.get(key, {})
    if not isinstance(table, dict):
        raise ClusterError(f"{key!r} must be a table, not {shown(table)}")
    return table


_PRICES = {
    "matmul_flop_per_s", "memory_bytes_per_s", "kernel_launch_s", "moving_share", "attention_share", "products",
}  # fmt: skip
"""Figures of a device that say how long kernels take."""


def _device(table: Mapping[str, Any], base: Device | None) -> Device:
    members = dict(asdict(base)) if base is not None else {}
    if base is None and "name" not in table:
        members["name"] = "device"
    for key, value in _figures(Device, table, "device"):
        if isinstance(value, dict):
            value = [list(entry) for entry in (dict(members.get(key, ())) | value).items()]
        members[key] = value
    if "curves" not in table and table.keys() & _PRICES:
        members["curves"] = ""  # what was measured on such a device says nothing of one with other figures
    return read_members(Device, members, "device", ClusterError)


def _level(name: str, table: Any, base: Level | None) -> Level:
    what = f"level {name}"
    if not isinstance(table, dict):
        raise ClusterError(f"{what} must be a table, not {shown(table)}")
    if "name" in table:
        raise ClusterError(f"{what} has its name from its table, [level.{name}]")
    members = asdict(base) if base is not None else {"name": name}
    return read_members(Level, members | dict(_figures(Level, table, what)), what, ClusterError)


def _figures(cls: type, table: Mapping[str, Any], what: str) -> Iterator[tuple[str, Any]]:
    """The fields that a table gives, in numbers."""
    known = [field.name for field in fields_of(cls) if field.kind is not None]
    for key, value in table.items():
        if key not in known:
            raise ClusterError(f"unknown key {shown(key)} of {what}; {did_you_mean(key, known)}")
        if isinstance(value, dict):
            yield key, {name: _figure(key, item, f"{what} {key}.{name}") for name, item in value.items()}
        else:
            yield key, _figure(key, value, f"{what} {key}")


def _figure(key: str, value: Any, what: str) -> Any:
    """A number, which may be text with a unit, of a size that a machine may have."""
    quantity = next((unit for end, unit in _QUANTITIES.items() if key == end or key.endswith(f"_{end}")), None)
    if quantity is not None and isinstance(value, str):
        try:
            value = parse_quantity(value, quantity)
        except GalvatronError as error:
            raise ClusterError(f"{what}: {error}") from None
    if quantity == "bytes" and isinstance(value, float):
        value = round(value)
    allowed = _RANGES.get(key)
    if allowed is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if not allowed.least <= value <= allowed.most:
        raise ClusterError(
            f"{what} is {value:g} {quantity}, which no machine has; write it in {quantity}, or with a unit like "
            f"'{allowed.example}'"
        )
    return value


def _check_published(device: Device, preset: Preset) -> None:
    """Checks that nothing is better than what is published of the preset that it is taken from.

    Raises:
        ClusterError: names the figure.
    """
    rates = dict(device.matmul_flop_per_s)
    figures = [
        ("memory_bytes", device.memory_bytes, preset.memory_gib * 2**30, "bytes"),
        ("memory_bytes_per_s", device.memory_bytes_per_s, preset.memory_gb_s * 1e9, "bytes/s"),
        *(
            (f"matmul_flop_per_s.{dtype}", rates[dtype], preset.peak_tflops * 1e12, "FLOP/s")
            for dtype in ("bf16", "f16")
            if dtype in rates
        ),
    ]
    for name, own, published, unit in figures:
        if own > published * ABOVE_PUBLISHED:
            raise ClusterError(
                f"device {name} is {own:g} {unit}, but that of {preset.name} is {published:g}, by what is published; a "
                "card of another kind needs figures of its own, without that preset"
            )
