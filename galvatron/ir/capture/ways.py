"""One program of two traces of a model, in training and in evaluation mode (`ir.either`)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

import torch

from galvatron.ir.either import EITHER
from galvatron.ir.graph import Const, Graph, Op, Ref, Value
from galvatron.ir.names import Names
from galvatron.ir.ops.arguments import typed
from galvatron.ir.ops.table import operator_of
from galvatron.ir.program import Program
from galvatron.ir.results import Check
from galvatron.ir.types import TensorType

_MOST_UNLIKE = 2000
"""Ops that one trace may have and the other has not: the time to find them grows with their number."""


class UnlikeError(Exception):
    """Why two traces do not become one program."""


Trace = tuple[Program, dict[str, torch.Tensor]]
"""A captured program and the data of its constants."""


def both_ways(trained: Trace, evaluated: Trace) -> Trace:
    """The program that does in training what one trace does, and in evaluation what the other does.

    Ops that are alike in both are there once, in the order that both have them in. Where their operands are unlike, or
    results of the program, `step.either` chooses. So whatever ops are taken for the same, each step computes what its
    own trace does.

    Raises:
        UnlikeError: there is no such program.
    """
    one, constants = trained
    other, others = _with_constants_of(trained, evaluated)
    sizes = one.batch_sizes & other.batch_sizes
    if (one.inputs, one.numbers) != (other.inputs, other.numbers) or one.batch_size not in sizes:
        raise UnlikeError("it holds for other batches")
    merging = _Merging(one.required_graph, other.required_graph)
    merging.merge()
    given = [*zip(_given(one), _given(other), strict=True)]
    if any(one.required_graph.types[a] != other.required_graph.types[b] for a, b in given):
        raise UnlikeError("what it gives is of another type or shape")
    loss, *outputs = [merging.chosen(a, b) for a, b in given]
    known = {state.name for state in one.state}
    read_only = {v.name for v in other.required_graph.state} - {v.name for v in one.required_graph.state}
    program = replace(
        one,
        state=(
            *(replace(s, trainable=s.trainable and s.name not in read_only) for s in one.state),
            *(s for s in other.state if s.name not in known),
        ),
        batch_sizes=sizes,
        output=loss,
        outputs=tuple(replace(output, value=value) for output, value in zip(one.outputs, outputs, strict=True)),
        checks=tuple(merging.checks(one.checks, other.checks)),
    )
    state = {v.name: v for v in (*one.required_graph.state, *other.required_graph.state)}
    order = {s.name: place for place, s in enumerate(program.state)}
    graph = Graph(one.inputs, tuple(sorted(state.values(), key=lambda v: order[v.name])), tuple(merging.ops), ())
    graph = replace(graph, outputs=program.results).without_dead_ops()
    read = {name for op in graph.ops for name in op.operands}
    graph = replace(graph, state=tuple(v for v in graph.state if v.name in read))
    return replace(program, graph=graph), {**constants, **others}


def _given(program: Program) -> list[str]:
    """The values that a step which only evaluates is for."""
    return [program.output, *(output.value for output in program.outputs)]


def _with_constants_of(one: Trace, other: Trace) -> Trace:
    """The other trace with the names that constants have in the first, if they are the same, and else with new ones."""
    (_, known), (program, constants) = one, other
    renamed: dict[str, str] = {}
    for place, (name, data) in enumerate(constants.items(), len(known)):
        same = (own for own, its_data in known.items() if _is_same(data, its_data))
        renamed[name] = next(same, f"constant.{place}")

    def now(name: str) -> str:
        return renamed.get(name, name)

    graph = program.required_graph
    graph = replace(
        graph,
        state=tuple(replace(v, name=now(v.name)) for v in graph.state),
        ops=tuple(op.map_refs(now) for op in graph.ops),
    )
    state = tuple(replace(s, name=now(s.name)) for s in program.state)
    return replace(program, state=state, graph=graph), {renamed[name]: data for name, data in constants.items()}


def _is_same(data: torch.Tensor, known: torch.Tensor) -> bool:
    """Whether two tensors have the same bits: a zero may be negative."""
    is_alike = (data.dtype, data.shape, data.device) == (known.dtype, known.shape, known.device)
    return is_alike and torch.equal(*(t.contiguous().view(-1).view(torch.uint8) for t in (data, known)))


class _Merging:
    """The ops of two graphs on their way into one; the first keeps its names."""

    def __init__(self, trained: Graph, evaluated: Graph) -> None:
        self.ops: list[Op] = []
        self._trained, self._evaluated = trained, evaluated
        self._names = Names(trained.values)
        self._now = {v.name: v.name for v in (*evaluated.inputs, *evaluated.state)}
        self._chosen: dict[tuple[str, str], str] = {}

    def merge(self) -> None:
        """Takes all ops.

        Raises:
            UnlikeError: the graphs have too little in common, or an op of the second cannot be in one that also trains.
        """
        ones, others = self._trained.ops, self._evaluated.ops
        for i, j in _aligned([_key(op, evaluated=True) for op in ones], [_key(op) for op in others]):
            one, other = (None if i is None else ones[i]), (None if j is None else others[j])
            if one is not None and other is not None and self._fit(one, other):
                self._take_both(one, other)
                continue
            if one is not None:
                self.ops.append(one)
            if other is not None:
                self._take_evaluated(other)

    def chosen(self, trained: str, evaluated: str) -> str:
        """The value that is one of the first graph in training, and one of the second in evaluation."""
        evaluated = self._now[evaluated]
        if evaluated in self._given_back(trained):
            return trained
        if (trained, evaluated) not in self._chosen:
            self._chosen[trained, evaluated] = self._either(trained, evaluated, self._trained.types[trained])
        return self._chosen[trained, evaluated]

    def _either(self, trained: str, evaluated: str, type_: TensorType) -> str:
        value = Value(self._names.fresh("either"), type_)
        self.ops.append(Op(EITHER, (Ref(trained), Ref(evaluated)), (), (value,)))
        return value.name

    def checks(self, trained: Sequence[Check], evaluated: Sequence[Check]) -> Iterator[Check]:
        """The checks of both graphs; what is checked in one way alone is true nowhere in the other."""
        ones, others = self._trained.types, self._evaluated.types
        keys = [[(c.says, types[c.value]) for c in checks] for checks, types in ((trained, ones), (evaluated, others))]
        for i, j in _aligned(*keys):
            if i is not None and j is not None:
                yield replace(trained[i], value=self.chosen(trained[i].value, evaluated[j].value))
            elif i is not None:
                value = trained[i].value
                yield replace(trained[i], value=self._either(value, self._nowhere(ones[value]), ones[value]))
            elif j is not None:
                value = evaluated[j].value
                nowhere = self._nowhere(others[value])
                yield replace(evaluated[j], value=self._either(nowhere, self._now[value], others[value]))

    def _nowhere(self, type_: TensorType) -> str:
        """Truth values that are all false."""
        value = Value(self._names.fresh("nowhere"), type_)
        kwargs = (("dtype", Const("dtype", type_.dtype)),)
        self.ops.append(Op("aten.full.default", (type_.shape, False), kwargs, (value,)))
        return value.name

    def _given_back(self, name: str) -> Iterator[str]:
        """The values that a value of the first graph is in evaluation, by what dropout does there."""
        yield name
        while (op := self._trained.producers.get(name)) and _drops(op):
            (name,) = op.operands
            yield name

    def _fit(self, one: Op, other: Op) -> bool:
        """Whether a choice can be made between the operands of two ops."""
        pairs = zip(one.operands, other.operands, strict=True)
        return all(self._trained.types[a] == self._evaluated.types[b] for a, b in pairs)

    def _take_both(self, one: Op, other: Op) -> None:
        operands = iter([self.chosen(a, b) for a, b in zip(one.operands, other.operands, strict=True)])
        self.ops.append(one.map_refs(lambda _: next(operands)))
        self._now.update((b.name, a.name) for a, b in zip(one.results, other.results, strict=True))

    def _take_evaluated(self, op: Op) -> None:
        switch = operator_of(op).switch
        if switch and op.get(switch):
            raise UnlikeError(f"{op.target} is called to train there, too")
        self._now.update((v.name, self._names.fresh(v.name)) for v in op.results)
        renamed = op.map_refs(lambda name: self._now[name])
        self.ops.append(replace(renamed, results=tuple(replace(v, name=self._now[v.name]) for v in op.results)))


def _key(op: Op, *, evaluated: bool = False) -> Hashable:
    """What two ops have in common that may be one, but for their operands.

    Args:
        evaluated: as it is in a step that only evaluates.
    """
    switch = operator_of(op).switch
    if evaluated and switch and op.get(switch):
        op = op.changed(**{switch: 0.0 if isinstance(op[switch], float) else False})
    bare = op.map_refs(lambda _: "")
    types = tuple(value.type for value in op.results)
    return op.target, typed(bare.args), tuple((k, typed(v)) for k, v in bare.kwargs), types, op.function, str(op.source)


def _aligned(ones: Sequence[Hashable], others: Sequence[Hashable]) -> Iterator[tuple[int | None, int | None]]:
    """Two sequences side by side, with as many equal items beside each other as possible: Myers, "An O(ND) difference
    algorithm and its variations", 1986.

    Raises:
        UnlikeError: more than `_MOST_UNLIKE` items are in one of them alone.
    """
    furthest, before = {1: 0}, list[dict[int, int]]()
    for unlike in range(_MOST_UNLIKE + 1):
        before.append(dict(furthest))
        for diagonal in range(-unlike, unlike + 1, 2):
            down = _goes_down(furthest, diagonal, unlike)
            i = furthest[diagonal + 1] if down else furthest[diagonal - 1] + 1
            while i < len(ones) and i - diagonal < len(others) and ones[i] == others[i - diagonal]:
                i += 1
            furthest[diagonal] = i
            if i >= len(ones) and i - diagonal >= len(others):
                return _path(before, len(ones), len(others))
    raise UnlikeError("it does too little there of what it does in training")


def _path(before: list[dict[int, int]], i: int, j: int) -> Iterator[tuple[int | None, int | None]]:
    """The steps of the way that was found to the ends `i` and `j`, given how far all ways had come before each unlike
    item."""
    steps: list[tuple[int | None, int | None]] = []
    for unlike in range(len(before) - 1, -1, -1):
        furthest, diagonal = before[unlike], i - j
        down = _goes_down(furthest, diagonal, unlike)
        last_i = furthest[diagonal + 1 if down else diagonal - 1]
        last_j = last_i - (diagonal + 1 if down else diagonal - 1)
        while i > last_i and j > last_j:
            i, j = i - 1, j - 1
            steps.append((i, j))
        if unlike:
            steps.append((None, last_j) if down else (last_i, None))
            i, j = last_i, last_j
    return reversed(steps)


def _goes_down(furthest: dict[int, int], diagonal: int, unlike: int) -> bool:
    """Whether the best way to a diagonal goes by an item of the second sequence alone, and not of the first."""
    return diagonal == -unlike or (diagonal != unlike and furthest[diagonal - 1] < furthest[diagonal + 1])


def _drops(op: Op) -> bool:
    """Whether an op gives back its operand in evaluation alone."""
    draws = operator_of(op).draws
    return draws is not None and draws.drops and draws.switch is not None and bool(op[draws.switch])
