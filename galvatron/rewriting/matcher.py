"""Finds a pattern at an op of a graph."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from galvatron.ir.graph import Arg, Op, Ref
from galvatron.ir.ops.schemas import schema_of
from galvatron.ir.types import TensorType
from galvatron.rewriting.arguments import is_default
from galvatron.rewriting.builder import Builder
from galvatron.rewriting.notation import ANYTHING, Listed, Name, Number, OpPattern, Term

_PRECISION = 1e-9
"""Relative: models write √(2/π) with ten digits or with sixteen."""


@dataclass(frozen=True)
class Match:
    """A place where a pattern fits: what its names stand for, and the ops it covers, the last one first."""

    build: Builder
    ops: tuple[Op, ...]
    names: Mapping[str, Arg]

    @property
    def op(self) -> Op:
        """The last op, whose result is replaced."""
        return self.ops[0]

    @property
    def type(self) -> TensorType:
        """The type of the result."""
        return self.op.result.type

    def __getitem__(self, name: str) -> Arg:
        return self.names[name]

    def ref(self, name: str) -> Ref:
        """The tensor that a name stands for."""
        ref = self.names[name]
        assert isinstance(ref, Ref), f"{name} stands for {ref}"
        return ref

    def type_of(self, name: str) -> TensorType:
        """Its type."""
        return self.build.type_of(self.ref(name))

    def is_tensor(self, name: str) -> bool:
        return isinstance(self.names[name], Ref)

    def is_state(self, name: str) -> bool:
        """Whether a name stands for a parameter, buffer or constant of the model."""
        return self.is_tensor(name) and self.ref(name).name in self.build.state

    @property
    def closed(self) -> bool:
        """Whether nothing else reads what the covered ops compute on the way."""
        inside = Counter(name for op in self.ops for name in op.operands)
        return all(self.build.reads[v.name] == inside[v.name] for op in self.ops[1:] for v in op.results)


@dataclass(frozen=True)
class _Found:
    names: Mapping[str, Arg]
    ops: tuple[Op, ...]


def matches(pattern: OpPattern, op: Op, build: Builder) -> Iterator[Match]:
    """Every way in which the pattern fits with `op` as its last op."""
    if pattern.target == op.target:
        for found in _call(pattern, op, build, _Found({}, ())):
            yield Match(build, found.ops, found.names)


def _call(pattern: OpPattern, op: Op, build: Builder, found: _Found) -> Iterator[_Found]:
    arguments = op.arguments
    written = dict(pattern.arguments)
    if not pattern.open:
        for parameter in schema_of(op.target).parameters:
            if parameter.name not in written and not is_default(parameter, arguments[parameter.name]):
                return
    found = _Found(found.names, (*found.ops, op) if op not in found.ops else found.ops)
    terms, values = list(written.values()), [arguments[name] for name in written]
    yield from _all(terms, values, build, found)
    if pattern.commutative:
        yield from _all(terms, values[::-1], build, found)


def _all(terms: list[Term], values: list[Arg], build: Builder, found: _Found) -> Iterator[_Found]:
    if not terms:
        yield found
        return
    for first in _term(terms[0], values[0], build, found):
        yield from _all(terms[1:], values[1:], build, first)


def _term(term: Term, value: Arg, build: Builder, found: _Found) -> Iterator[_Found]:
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
                yield from _all(list(items), list(value), build, found)
        case OpPattern():
            producer = build.producer(value)
            if producer is not None and producer.target == term.target and len(producer.results) == 1:
                yield from _call(term, producer, build, found)


def _equal(left: object, right: object) -> bool:
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        exact = isinstance(left, int) or isinstance(right, int)
        return left == right if exact else math.isclose(left, right, rel_tol=_PRECISION)
    return left is right or (type(left) is type(right) and left == right)
