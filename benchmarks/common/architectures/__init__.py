"""The registry of `benchmarks/coverage.py`: real architectures with small random configurations, a file per family."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from common.architectures.base import Architecture

FAMILIES = (
    "decoders",
    "experts",
    "encoders",
    "encoder_decoders",
    "recurrent",
    "vision",
    "convolutional",
    "audio",
    "multimodal",
    "detection",
    "segmentation",
    "diffusion",
    "time_series",
    "graphs",
    "recommendation",
    "differential",
    "adapters",
)
"""The files, in the order of the table."""


@cache
def architectures() -> tuple[Architecture, ...]:
    """All rows, family by family."""
    return tuple(row for family in FAMILIES for row in import_module(f"common.architectures.{family}").ROWS)


def named(name: str) -> Architecture:
    """The row of this name.

    Raises:
        KeyError: there is none.
    """
    return {row.name: row for row in architectures()}[name]
