"""What else an op might have done on an axis, each way priced by solving the rest of the class around it."""

from __future__ import annotations

from dataclasses import dataclass

from galvatron.ir.layout import Axis
from galvatron.partition.axes import SolvedAxis
from galvatron.partition.modes import Mode
from galvatron.partition.solver import NoSolutionError, solve


@dataclass(frozen=True)
class Alternative:
    """A way to run an op on an axis.

    Attributes:
        op_s: seconds of the op itself so, forward and backward, on a rank's part.
        class_s: seconds of the whole class where all other ops do what is then cheapest, with conversions and what
            keeping its state costs; None where nothing fits around the op.
    """

    mode: Mode
    op_s: float
    class_s: float | None


def alternatives(solved: SolvedAxis, axis: Axis, index: int) -> tuple[Alternative, ...]:
    """All ways that op `index` had on an axis, the one that it does among them, for the whole batch."""
    costs = solved.costs(axis)

    def priced(mode: Mode) -> Alternative:
        modes = [*solved.offer.modes]
        modes[index] = (mode,)
        try:
            class_s = solve(solved.graph, modes, solved.boundary, costs).objective_s
        except NoSolutionError:
            class_s = None
        return Alternative(mode, costs.op_s(index, mode), class_s)

    return tuple(map(priced, solved.offer.modes[index]))
