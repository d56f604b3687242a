"""Replaces what patterns find until none is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Arg, Graph, Op, Ref, Value
from galvatron.ir.names import Names, base_name
from galvatron.ir.types import TensorType
from galvatron.ir.verify.computed import BATCHES, computed_types
from galvatron.ir.verify.shapes import expected_dtype, expected_shapes
from galvatron.passes.fuse.constants import Constants
from galvatron.passes.fuse.matcher import Match, matches
from galvatron.passes.fuse.notation import Call, Listed, Name, Number, Term, parse
from galvatron.passes.normalize.arguments import with_arguments

Where = Callable[[Match], Mapping[str, Arg] | None]
"""A condition: what further names of the replacement stand for, or None where the rewrite would be wrong."""


@dataclass(frozen=True)
class Fusion:
    """One rewrite: where one of the patterns `before` fits and `where` holds, `after` takes its place.

    What else reads a covered value would compute it again, so such places are left alone, unless the rewrite is
    `repeatable`: it covers only ops that cost nothing.
    """

    name: str
    before: str | tuple[str, ...]
    after: str
    where: Where = lambda match: {}
    repeatable: bool = False

    @property
    def patterns(self) -> tuple[Term, ...]:
        return tuple(map(parse, (self.before,) if isinstance(self.before, str) else self.before))

    def match(self, op: Op, graph: Graph, constants: Constants) -> Match | None:
        """The first place with `op` as its last op; its names include those that `where` adds."""
        for pattern in self.patterns:
            for found in matches(pattern, op, graph, constants):
                if (self.repeatable or found.closed) and (more := self.where(found)) is not None:
                    match = replace(found, names={**found.names, **more})
                    if self._keeps_type(match):
                        return match
        return None

    def _keeps_type(self, match: Match) -> bool:
        """Whether the replacement has the type of what it replaces, whatever mix of types its operands have."""
        after = parse(self.after)
        if isinstance(after, Name):
            return match.type_of(after.name) == match.type
        made: list[Op] = []
        replacement = _Replacement(match, Names(match.graph.values), made)
        replacement.of(after)
        return all(_gives_its_type(op, replacement.types) for op in made)


def _gives_its_type(op: Op, types: Mapping[str, TensorType]) -> bool:
    """Whether an op on operands of these types gives the element type that it says, for every mix that torch takes."""
    given = computed_types(op, types, BATCHES[0])
    return isinstance(given, tuple) and given[0].dtype == op.result.type.dtype


def fuse(graph: Graph, fusions: Iterable[Fusion]) -> Graph:
    """The graph after every rewrite that applies, and those that they make possible; earlier ones of the list first."""
    by_target: dict[str, list[Fusion]] = {}
    for fusion in fusions:
        for target in dict.fromkeys(p.target for p in fusion.patterns if isinstance(p, Call)):
            by_target.setdefault(target, []).append(fusion)
    constants = Constants()
    while (simpler := _round(graph, by_target, constants)) is not None:
        graph = simpler
    return graph


def _round(graph: Graph, fusions: Mapping[str, Sequence[Fusion]], constants: Constants) -> Graph | None:
    """One walk over the graph; places that cover a rewritten op wait for the next walk. None: there was no place."""
    rewritten: set[int] = set()
    renamed: dict[str, str] = {}
    names = Names(graph.values)
    ops: list[Op] = []
    for op in graph.ops:
        places = ((f, f.match(op, graph, constants)) for f in fusions.get(op.target, ()))
        fusion, match = next(((f, m) for f, m in places if m is not None), (None, None))
        if fusion is None or match is None or not rewritten.isdisjoint(map(id, match.ops)):
            ops.append(op)
            continue
        rewritten.add(id(op))
        outcome = _Replacement(match, names, ops).of(parse(fusion.after))
        if outcome.name != op.result.name:
            renamed[op.result.name] = outcome.name
    return _with_renamed(graph, ops, renamed).without_dead_ops() if rewritten else None


def _with_renamed(graph: Graph, ops: Sequence[Op], renamed: Mapping[str, str]) -> Graph:
    def last(name: str) -> str:
        while name in renamed:
            name = renamed[name]
        return name

    return replace(graph, ops=tuple(op.map_refs(last) for op in ops), outputs=tuple(map(last, graph.outputs)))


class _Replacement:
    """Emits the ops of a replacement."""

    def __init__(self, match: Match, names: Names, ops: list[Op]) -> None:
        self._match, self._names, self._ops = match, names, ops
        self.types = {name: value.type for name, value in match.graph.values.items()}

    def of(self, term: Term) -> Ref:
        """What stands in the place of the match."""
        value = self._call(term, self._match.ops[0].result) if isinstance(term, Call) else self._argument(term)
        assert isinstance(value, Ref)
        return value

    def _argument(self, term: Term) -> Arg:
        match term:
            case Name(name):
                return self._match[name]
            case Number(value):
                return value
            case Listed(items):
                return tuple(map(self._argument, items))
            case Call():
                return self._call(term, None)

    def _call(self, term: Call, result: Value | None) -> Ref:
        arguments = {name: self._argument(t) for name, t in term.arguments}
        nothing = Value("", TensorType("bool", ()))
        op = with_arguments(Op(term.target, (), (), (nothing,), self._match.ops[0].source), **arguments)
        if result is None:
            result = Value(self._names.fresh(base_name(term.target)), self._type(op))
            self.types[result.name] = result.type
        self._ops.append(replace(op, results=(result,)))
        return Ref(result.name)

    def _type(self, op: Op) -> TensorType:
        shapes = expected_shapes(op, self.types)
        if shapes is None:
            raise GalvatronError(f"a replacement uses {op.target!r}, the shape of whose result is not known")
        return TensorType(expected_dtype(op, self.types) or self.types[op.operands[0]].dtype, shapes[0])
