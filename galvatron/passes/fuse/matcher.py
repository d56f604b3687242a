"""Finds a pattern at an op of a graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from galvatron.ir.graph import Arg, Graph, Op, Ref
from galvatron.ir.ops.schemas import schema_of
from galvatron.ir.types import TensorType
from galvatron.passes.fuse.constants import Constants, Facts
from galvatron.passes.fuse.notation import ANYTHING, Call, Listed, Name, Number, Term

_PRECISION = 1e-9
"""Relative: models write √(2/π) with ten digits or with sixteen."""


@dataclass(frozen=True)
class Match:
    """A place where a pattern fits: what its names stand for, and the ops it covers, the last one first."""

    graph: Graph
    constants: Constants
    ops: tuple[Op, ...]
    names: Mapping[str, Arg]

    @property
    def type(self) -> TensorType:
        """The type of the result."""
        return self.ops[0].result.type

    def __getitem__(self, name: str) -> Arg:
        return self.names[name]

    def type_of(self, name: str) -> TensorType:
        """The type of the tensor that a name stands for."""
        ref = self.names[name]
        assert isinstance(ref, Ref), f"{name} stands for {ref}"
        return self.graph.values[ref.name].type

    def is_tensor(self, name: str) -> bool:
        return isinstance(self.names[name], Ref)

    def facts(self, name: str) -> Facts:
        """What is known of the constant that a name stands for."""
        ref = self.names[name]
        return self.constants.of(self.graph, ref.name) if isinstance(ref, Ref) else Facts()

    def is_state(self, name: str) -> bool:
        """Whether a name stands for a parameter, buffer or constant of the model."""
        ref = self.names[name]
        return isinstance(ref, Ref) and any(v.name == ref.name for v in self.graph.state)

    @property
    def closed(self) -> bool:
        """Whether nothing else reads what the covered ops compute on the way."""
        covered = {id(op) for op in self.ops}
        return all(
            id(reader) in covered
            for op in self.ops[1:]
            for value in op.results
            for reader in self.graph.consumers[value.name]
        ) and not any(v.name in self.graph.outputs for op in self.ops[1:] for v in op.results)


@dataclass(frozen=True)
class _Found:
    names: Mapping[str, Arg]
    ops: tuple[Op, ...]


def matches(pattern: Term, op: Op, graph: Graph, constants: Constants) -> Iterator[Match]:
    """Every way in which the pattern fits with `op` as its last op."""
    if isinstance(pattern, Call) and pattern.target == op.target:
        for found in _call(pattern, op, graph, _Found({}, ())):
            yield Match(graph, constants, found.ops, found.names)


def _call(pattern: Call, op: Op, graph: Graph, found: _Found) -> Iterator[_Found]:
    written = dict(pattern.arguments)
    for parameter in schema_of(op.target).parameters:
        if parameter.name not in written and not _equal(op[parameter.name], parameter.default):
            return
    found = _Found(found.names, (*found.ops, op) if op not in found.ops else found.ops)
    terms, values = list(written.values()), [op[name] for name in written]
    yield from _all(terms, values, graph, found)
    if pattern.commutative:
        yield from _all(terms, values[::-1], graph, found)


def _all(terms: list[Term], values: list[Arg], graph: Graph, found: _Found) -> Iterator[_Found]:
    if not terms:
        yield found
        return
    for first in _term(terms[0], values[0], graph, found):
        yield from _all(terms[1:], values[1:], graph, first)


def _term(term: Term, value: Arg, graph: Graph, found: _Found) -> Iterator[_Found]:
    match term:
        case Name(name) if name == ANYTHING:
            yield found
        case Name(name) if name in found.names:
            if _equal(found.names[name], value):
                yield found
        case Name(name):
            yield _Found({**found.names, name: value}, found.ops)
        case Number(number):
            if _equal(value, number):
                yield found
        case Listed(items):
            if isinstance(value, tuple) and len(value) == len(items):
                yield from _all(list(items), list(value), graph, found)
        case Call():
            producer = graph.producers.get(value.name) if isinstance(value, Ref) else None
            if producer is not None and producer.target == term.target and len(producer.results) == 1:
                yield from _call(term, producer, graph, found)


def _equal(left: object, right: object) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return math.isclose(left, right, rel_tol=_PRECISION)
    return left is right or (type(left) is type(right) and left == right)
