"""What a step makes besides its loss: new values of state, what the model returns, and what must hold of its values."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from galvatron.ir.graph import Graph, Op, Ref, Value
from galvatron.ir.names import Names
from galvatron.ir.types import TensorType


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


@dataclass(frozen=True)
class Check:
    """What the model itself asks of its values, and raises an error where it does not hold: that `value`, of truth
    values, is true nowhere.

    So a step can tell part by part: a micro-batch has the value of its own samples, or all of it, and so has a rank.
    `says` is the model's line and what it would raise.
    """

    says: str
    value: str

    def __str__(self) -> str:
        return f"the check {self.says!r}"


@dataclass(frozen=True)
class Reached:
    """Trained parameters that have a gradient only in steps where `value`, a vector of truth values, is true.

    The model reads them in single turns of a loop, as of experts in a list, and a step that does not take the turn
    leaves their gradient None in PyTorch, so that an optimizer leaves them alone. Each element of the vector stands for
    as many of `states` as any other, in order.
    """

    value: str
    states: tuple[str, ...]

    def by_place(self, count: int) -> list[tuple[str, ...]]:
        """The parameters of each of so many elements of the vector."""
        each = len(self.states) // count
        return [self.states[place * each : (place + 1) * each] for place in range(count)]


def warn_of_zeros(names: Sequence[str]) -> None:
    """Says so where parameters may have a gradient of zeros that have none in PyTorch."""
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        warnings.warn(
            f"only some turns of a loop read {names[0]!r}{more}: in a step in which no row takes these turns, the "
            "model leaves the gradient None and an optimizer skips the parameter, while here the gradient is zero, so "
            "that weight decay and momentum still move it; keep the parameters of all turns in one tensor if that "
            "matters",
            stacklevel=2,
        )


def leave_out(head: str, why: str = "") -> None:
    """Warns that a check is left out; `head` says which, and ends in ": "."""
    left_out = f"{head}this check of values is no part of the program and is left out"
    warnings.warn(f"{left_out}{why and ', since '}{why}", stacklevel=2)


def with_values_of_ops(graph: Graph, checks: Iterable[Check]) -> tuple[Graph, tuple[Check, ...]]:
    """A graph in which all that is checked is made by an op, and the checks of that: of an input or of state, a value
    that is equal."""
    names, found = Names(graph.values), tuple(checks)
    bare = {check.value: graph.types[check.value] for check in found if check.value not in graph.producers}
    made = {name: Value(names.fresh("fails"), TensorType("bool", type_.shape)) for name, type_ in bare.items()}
    ops = (Op("aten.ne.Scalar", (Ref(name), 0), (), (value,)) for name, value in made.items())
    renamed = (replace(check, value=made[check.value].name) if check.value in made else check for check in found)
    return replace(graph, ops=(*graph.ops, *ops)), tuple(renamed)
