"""Numbers that values are cut off at or compared with, and whether random ones are on both sides of them: where all are
on one, another number in its place would change nothing. Where that holds of all that a program can be given, there is
nothing to be tried.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Graph, Op
from galvatron.ir.index_bounds import decided
from galvatron.ir.ops.table import operator_of

Number = tuple[str, float]
"""Whether values are to be `equal` to it or are in `order` with it, and the number."""


class Sides:
    """What the values of a graph were of the numbers that its ops compare them with, in some runs."""

    def __init__(self, graph: Graph) -> None:
        known = decided(graph)
        open_ = (op for op in graph.ops if known.isdisjoint(value.name for value in op.results))
        self._numbers = [(op, number) for op in open_ for number in _numbers(op)]
        self._random = {value.name for value in (*graph.inputs, *graph.state)}
        for op in graph.ops:
            if not self._random.isdisjoint(op.operands):
                self._random.update(value.name for value in op.results)
        self._seen: list[set[bool]] = [set() for _ in self._numbers]

    def see(self, values: Mapping[str, Tensor]) -> None:
        """The values of a run."""
        for (op, (kind, number)), seen in zip(self._numbers, self._seen, strict=True):
            operand = values.get(op.operands[0]) if len(seen) < 2 else None
            if operand is None or operand.is_complex():
                continue
            own = operand == number if kind == "equal" else operand > number
            other = operand != number if kind == "equal" else operand < number
            seen |= {side for side, found in ((True, own), (False, other)) if bool(found.any())}

    def unpassed(self) -> dict[Number, Op]:
        """The numbers on one side of which no value was, each with an op."""
        pairs = zip(self._numbers, self._seen, strict=True)
        return {number: op for (op, number), seen in pairs if len(seen) < 2}

    def is_random(self, op: Op) -> bool:
        """Whether what an op compares follows from what is given, and is not the same in every run, as positions are:
        that a comparison of these has one outcome is known, and a pass may leave it out."""
        return op.operands[0] in self._random


def check_sides(first: Sides, second: Sides) -> None:
    """
    Raises:
        GalvatronError: there is a number that only one of the graphs has, and which no value passes.
    """
    before, after = first.unpassed(), second.unpassed()
    left_out = {number: op for number, op in before.items() if number not in after and first.is_random(op)}
    added = {number: op for number, op in after.items() if number not in before}
    for number, op in (left_out | added).items():
        where = f" at {op.source}" if op.source else ""
        raise GalvatronError(
            f"only one of the programs has the number {number[1]:g} in %{op.results[0].name}{where}, which random "
            "numbers do not come to, so that nothing is known of it"
        )


def _numbers(op: Op) -> list[Number]:
    if not op.operands:
        return []
    operator = operator_of(op)
    kind = "equal" if len(operator.beside) == 1 else "order"
    found = [op.get(name) for name in operator.thresholds]
    return [(kind, float(number)) for number in found if isinstance(number, int | float)]
