"""What an op calls: `<namespace>.<name>.<overload>`, or `<namespace>.<name>` where there are no overloads.

`aten.X` is an operator of torch, `random.X` and `spmd.X` its counterparts in a sharded graph, `comm.X` a collective,
`function.X` a function of the program, `step.either` a choice between training and evaluation (`ir.either`),
`galvatron.X` an operator of this package that torch does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Target:
    """A target by its parts; `overload` is empty where there is none."""

    namespace: str
    name: str
    overload: str = ""

    @property
    def short(self) -> str:
        """The target within its namespace."""
        return f"{self.name}.{self.overload}" if self.overload else self.name

    @property
    def brief(self) -> str:
        """The target as people write it, without `aten.` and `.default`: `linear`, `add.Tensor`, `random.dropout`."""
        within = self.name if self.overload == "default" else self.short
        return within if self.namespace == "aten" else f"{self.namespace}.{within}"

    def __str__(self) -> str:
        return f"{self.namespace}.{self.short}"


@cache
def parsed(target: str) -> Target:
    """The parts of a target."""
    namespace, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    return Target(namespace, name, overload)


def of_aten(brief: str) -> str:
    """The target of an operator that is written `linear` or `add.Tensor`."""
    return f"aten.{brief}" if "." in brief else f"aten.{brief}.default"
