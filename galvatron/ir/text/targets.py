"""Which op names a text file may contain."""

from __future__ import annotations

import re

from galvatron.ir.collectives import COLLECTIVES
from galvatron.ir.random import is_random_target
from galvatron.ir.spmd import is_spmd

_ATEN = re.compile(r"aten\.(?!__)[A-Za-z_]\w*\.[A-Za-z]\w*", re.ASCII)

_ATEN_OPERATORS = frozenset(("__and__", "__or__", "__xor__", "__lshift__", "__rshift__"))
"""The ops of `aten` that PyTorch itself spells with two underscores."""


def is_known_target(target: str) -> bool:
    """Whether an op may be called this: an overload name of `aten` (that the op exists is checked by whoever runs it),
    one of the collectives of `comm`, or one of the sharded ops of `spmd` and `random`."""
    if target in COLLECTIVES or is_spmd(target) or is_random_target(target):
        return True
    parts = target.split(".")
    if len(parts) == 3 and parts[0] == "aten" and parts[1] in _ATEN_OPERATORS:
        return parts[2].isidentifier() and not parts[2].startswith("_")
    return _ATEN.fullmatch(target) is not None
