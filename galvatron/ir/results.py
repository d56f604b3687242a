"""What a step makes besides its loss: new values of state, what the model returns, and what must hold of its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Update:
    """What forward writes into the model's own state: after a step `state` holds `value`, or, where it `adds`, that
    much more than before. In the step itself everything reads what `state` held before.

    A value that differs between micro-batches is a term of a sum over them (`galvatron.ir.micro_batches`).
    """

    state: str
    value: str
    adds: bool = False


@dataclass(frozen=True)
class Result:
    """What the model returns besides its loss, under the name by which it was asked for: one value of the program.

    Over micro-batches it is along their samples, a term of a sum, or the same in each
    (`galvatron.ir.micro_batches`); over mesh axes it is laid out as its layer makes it.
    """

    name: str
    value: str

    remedy: ClassVar[str] = "which is at hand without the model: leave it out"

    def __str__(self) -> str:
        return f"the output {self.name!r}"


@dataclass(frozen=True)
class Check:
    """What the model itself asks of its values, and raises an error where it does not hold: that `value`, of truth
    values, is true nowhere.

    So a step can tell part by part: a micro-batch has the value of its own samples, or all of it, and so has a rank.
    `says` is the model's line and what it would raise.
    """

    says: str
    value: str

    remedy: ClassVar[str] = "which no layer computes: leave it out, or compile with checks=False"

    def __str__(self) -> str:
        return f"the check {self.says!r}"
