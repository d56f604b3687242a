"""Which op names a program may contain."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches

from galvatron.errors import did_you_mean
from galvatron.ir.collectives import COLLECTIVES
from galvatron.ir.ops.foreign import is_foreign, qualified
from galvatron.ir.ops.schemas import is_operator, operators
from galvatron.ir.ops.table import named
from galvatron.ir.ops.targets import parsed
from galvatron.ir.random import is_random_target
from galvatron.ir.spmd import is_spmd


def is_known_target(target: str) -> bool:
    """Whether an op may be called this: an operator of `ir.ops.schemas`, one of the collectives of `comm`, or one of
    the sharded ops of `spmd` and `random`."""
    if target in COLLECTIVES or is_spmd(target):
        return True
    return is_operator(str(replace(parsed(target), namespace="aten")) if is_random_target(target) else target)


def unknown_target(target: str) -> str:
    """Why a program may not contain an op of this name."""
    called = parsed(target)
    if called.name.startswith("as_strided"):
        return (
            f"unknown op {target!r}: it depends on where in memory elements are, which a program does not say: "
            "use indices, unfold, or, instead of fill_diagonal_, a masked_fill with torch.eye"
        )
    if called.namespace == "aten":
        overloads = sorted(name for name in operators() if name.partition(".")[0] == called.name)
        near = get_close_matches(called.short, overloads or operators(), n=1, cutoff=0.0 if overloads else 0.6)
        told = f"; did you mean 'aten.{near[0]}'?" if near else ""
        return f"unknown op {target!r}: it is none of those without side effects that a program may contain{told}"
    if is_foreign(target) and called.overload:
        name = qualified(target)
        return (
            f"unknown op {target!r}: an operator of another library is part of a program where that library is "
            f"imported and galvatron.register_rule({name!r}, ...) was called, or a model that calls it captured "
            "(on the command line: galvatron --import FILE.py ..., with a file that does so)"
        )
    near = did_you_mean(
        target, [*COLLECTIVES, *(f"spmd.{name}" for name in named(lambda operator: operator.on_slices))]
    )
    return f"unknown op {target!r}: an op is aten.<name>.<overload> or one of the collectives; {near}"
