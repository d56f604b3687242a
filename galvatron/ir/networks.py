"""Networks of device presets: what joins devices of one kind where they are sold or rented, with sources.

Figures are copied, or calibrated on measured collectives (`benchmarks/calibrate_links.py`); none on step times.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from galvatron.errors import ClusterError
from galvatron.ir.network import Level


@dataclass(frozen=True)
class Network:
    """The levels that join devices of one kind, from the innermost on, with the parts that each has at most: 0 for a
    level that joins any number."""

    levels: tuple[Level, ...]
    source: str


def _node(bytes_per_s: float) -> Level:
    return Level("node", 0, bytes_per_s, 15e-6, start_s=36e-6, step_s=0.2e-6)


def _across(bytes_per_s: float, cards: int = 0) -> Level:
    return Level("network", 0, bytes_per_s, 20e-6, cards, start_s=36e-6, step_s=5e-6)


NETWORKS: dict[str, Network] = {
    name: Network((_node(rate), _across(card)), "")
    for name, rate, card in (
        ("a100-40g", 235e9, 24e9),
        ("a100-80g", 235e9, 24e9),
        ("h100-80g", 367.2e9, 47e9),
        ("h200-141g", 367.2e9, 47e9),
        ("b200-180g", 845.67e9, 47.7e9),
        ("mi300x", 312.912e9, 47.5e9),
        ("mi325x", 312.912e9, 47.5e9),
        ("l40s", 25e9, 11.875e9),
        ("rtx-4090", 25e9, 11.875e9),
        ("rtx-titan", 12.8e9, 11.875e9),
        ("l4", 3.85e9, 11.875e9),
    )
} | {"gb200": Network((_node(730e9), replace(_node(730e9), name="rack", parts=18), _across(47.5e9)), "")}


def levels(preset: str, sizes: list[int]) -> tuple[Level, ...]:
    """The levels of a cluster of so many parts each, the outermost first.

    Raises:
        ClusterError: more levels than the preset has, or more devices in one than it joins.
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
        if most and size > most:
            raise ClusterError(
                f"cluster preset {preset!r}: a {level.name} joins at most {most} parts, not {size}; write {form}"
            )
        if size > 1 or not found:
            found.append(replace(level, parts=size))
    return tuple(found)
