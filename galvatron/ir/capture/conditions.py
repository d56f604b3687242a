"""Checks of a program: what a model asks of values at the end, said of each element.

`if torch.isnan(x).any(): raise ...` asks for one truth value of the whole batch, which no micro-batch and no rank has.
But it fails where `isnan(x)` is true somewhere, and that each of them sees in its own part. So the reductions at the
end of a condition are pushed away: what is left is to be true nowhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

from torch import fx

from galvatron.errors import CaptureError
from galvatron.ir.capture.checks import Noted
from galvatron.ir.capture.functions import ancestors, calls_in, is_mark
from galvatron.ir.capture.sources import located
from galvatron.ir.graph import Graph, Op, Ref, Source, Value
from galvatron.ir.names import Names
from galvatron.ir.ops.table import operator_of
from galvatron.ir.program import Check, Program
from galvatron.ir.results import leave_out
from galvatron.ir.types import TensorType

_EVERY = frozenset({"all"})
_SOME = frozenset({"any"})
_NOT = frozenset({"logical_not", "bitwise_not"})
_BOTH = frozenset({"logical_and", "bitwise_and", "__and__"})
_EITHER = frozenset({"logical_or", "bitwise_or", "__or__"})
_LEAST, _GREATEST = frozenset({"min", "amin"}), frozenset({"max", "amax"})
_BELOW, _ABOVE = frozenset({"lt", "le"}), frozenset({"gt", "ge"})

Asked = tuple[Noted, fx.Node]
"""A check of the model, and the node that is its condition."""


def given_outside(noted: Sequence[Noted], conditions: Sequence[fx.Node]) -> list[Asked]:
    """What was noted of checks, with its conditions, but for those inside of a function with a backward of its own."""
    calls = calls_in(conditions[0].graph)
    found: list[Asked] = []
    for note, node in zip(noted, conditions, strict=True):
        if any(is_mark(one) and one not in calls for one in ancestors(node, calls)):
            leave_out(located(note.source), "it is inside of a function with a backward of its own")
        else:
            found.append((note, node))
    return found


def that_convert(asked: list[Asked], convert: Callable[[list[Asked]], object]) -> list[Asked]:
    """The checks that a program can say."""
    try:
        convert(asked)
        return asked
    except CaptureError:
        found: list[Asked] = []
        for one in asked:
            try:
                convert([one])
                found.append(one)
            except CaptureError:
                leave_out(located(one[0].source), "a program cannot say what it depends on")
        return found


def with_checks(program: Program, noted: Sequence[tuple[Noted, str]]) -> Program:
    """A captured program with checks of what was noted of its values, by their names."""
    graph = program.required_graph
    parts = _Parts(graph, replace(graph, outputs=program.results).without_dead_ops())
    checks = [Check(str(note), value) for note, name in noted for value in parts.of(name, note.wanted)]
    program = replace(program, checks=tuple(dict.fromkeys(checks)))
    return replace(program, graph=replace(parts.graph(), outputs=program.results).without_dead_ops())


class _Parts:
    """What conditions ask of each element of some values, as values that are to be true nowhere.

    Args:
        graph: with the conditions.
        unchecked: without them.
    """

    def __init__(self, graph: Graph, unchecked: Graph) -> None:
        self._graph = graph
        self._of_model = unchecked.values.keys()
        self._names = Names(graph.values)
        self._places = {value.name: place for place, op in enumerate(graph.ops) for value in op.results}
        self._after: dict[int, list[Op]] = defaultdict(list)

    def graph(self) -> Graph:
        """The graph with what `of` has made, each op where its operand is there."""
        ops = ((op, *self._after[place]) for place, op in enumerate(self._graph.ops))
        return replace(self._graph, ops=tuple(chain.from_iterable(ops)))

    def of(self, name: str, wanted: bool, place: int = 0) -> list[str]:
        """The values that are to be true nowhere, where all of `name`, which an op at a place reads or which is an
        input, is to be `wanted`."""
        place = self._places.get(name, place)
        op, type_ = self._graph.producers.get(name), self._graph.types[name]
        if (
            op is not None
            and op.operands
            and all(self._graph.types[operand].dtype == "bool" for operand in op.operands)
        ):
            if op.name in (_EVERY if wanted else _SOME):
                return self.of(op.operands[0], wanted, place)
            if op.name in _NOT:
                return self.of(op.operands[0], not wanted, place)
            if operator_of(op).casts:
                return self.of(op.operands[0], wanted, place)
            if op.name in (_BOTH if wanted else _EITHER) and len(op.operands) == 2:
                return [value for operand in op.operands for value in self.of(operand, wanted, place)]
        elements = None if op is None else self._elements(op, wanted)
        if op is not None and elements is not None:
            type_ = TensorType("bool", elements.type.shape)
            name = self._made(replace(op.map_refs(lambda _: elements.name), results=()), type_, place)
        if not wanted and type_.dtype == "bool" and name not in self._of_model:
            return [name]
        # Also where the value is as wanted: what the model reads as well may be anywhere, or be no result of an op.
        compare = Op("aten.eq.Scalar" if wanted else "aten.ne.Scalar", (Ref(name), 0), (), (), self._source(place))
        return [self._made(compare, TensorType("bool", type_.shape), place)]

    def _elements(self, op: Op, wanted: bool) -> Value | None:
        """The value of which each element may be compared in place of the greatest or the least of them."""
        extreme = self._graph.producers.get(op.operands[0]) if len(op.operands) == 1 else None
        if op.name not in _BELOW | _ABOVE or extreme is None or extreme.name not in _LEAST | _GREATEST:
            return None
        if len(extreme.operands) != 1 or len(extreme.results) != 1:
            return None
        elements = self._graph.values[extreme.operands[0]]
        is_every = (extreme.name in _GREATEST) == (op.name in _BELOW)  # max(x) < c: every x < c; max(x) > c: some x > c
        # Among numbers some of which are none, so is the extreme: it is neither below nor above anything.
        return elements if is_every == wanted and (is_every or not elements.type.is_floating) else None

    def _made(self, op: Op, type_: TensorType, place: int) -> str:
        made = Value(self._names.fresh("fails"), type_)
        self._after[place].append(replace(op, results=(made,)))
        return made.name

    def _source(self, place: int) -> Source | None:
        return self._graph.ops[place].source
