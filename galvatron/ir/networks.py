"""Networks of device presets: what joins devices of one kind where they are sold or rented, with sources.

Figures are copied, or calibrated on measured collectives (`benchmarks/calibrate_links.py`); none on step times.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from galvatron.errors import ClusterError
from galvatron.ir.network import Level
from galvatron.ir.presets import PRESETS, Preset
