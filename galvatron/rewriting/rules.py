"""The two kinds of rules: formulas and functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from galvatron.ir.graph import Arg, Op, Ref
from galvatron.ir.ops.targets import of_aten
from galvatron.rewriting.arguments import with_arguments
from galvatron.rewriting.builder import Builder
from galvatron.rewriting.matcher import Match, matches
from galvatron.rewriting.notation import Listed, Name, Number, OpPattern, Term, parse

Outcome = Op | Ref | tuple[Ref, ...] | None
"""What a rule makes of an op: another with the same results, what replaces the results, or None where it leaves it."""

Meanings = Mapping[str, Arg] | None
"""What a condition says: what further names of the replacement stand for, or None where the rewrite would be wrong."""


@dataclass(frozen=True)
class Function:
    """A rule for some ops, written as in a formula and separated by spaces; without any for all."""

    rewrite: Callable[[Op, Builder], Outcome]
    ops: str = ""

    @cached_property
    def _targets(self) -> frozenset[str]:
        return frozenset(map(of_aten, self.ops.split()))

    def fits(self, target: str) -> bool:
        """Whether the rule may apply to an op."""
        return not self.ops or target in self._targets

    def apply(self, op: Op, build: Builder) -> Outcome:
        """What takes the place of an op."""
        return self.rewrite(op, build)


@dataclass(frozen=True)
class Formula:
    """Where one of the patterns `before` fits and `where` holds, `after` takes its place, if that has the same type.

    What else reads a covered value would compute it again, so such places are left alone, unless the rule is
    `repeatable`: it covers only ops that cost nothing.
    """

    before: str | tuple[str, ...]
    after: str
    where: Callable[[Match], Meanings] = lambda match: {}
    repeatable: bool = False

    @cached_property
    def _patterns(self) -> tuple[OpPattern, ...]:
        texts = (self.before,) if isinstance(self.before, str) else self.before
        return tuple(pattern for pattern in map(parse, texts) if isinstance(pattern, OpPattern))

    def fits(self, target: str) -> bool:
        """Whether the rule may apply to an op."""
        return any(pattern.target == target for pattern in self._patterns)

    def apply(self, op: Op, build: Builder) -> Outcome:
        """What takes the place of the first match with the op as its last one."""
        for pattern in self._patterns:
            for match in matches(pattern, op, build):
                if (self.repeatable or match.closed) and (more := self.where(match)) is not None:
                    before = len(build.ops)
                    outcome = _replacement(parse(self.after), replace(match, names={**match.names, **more}))
                    if outcome is not None:
                        return outcome
                    build.take_back(before)
        return None


def _replacement(after: Term, match: Match) -> Op | Ref | None:
    """What stands in the place of a match; None if that would have another type."""
    build, type_ = match.build, match.type
    if not isinstance(after, OpPattern):
        value = _argument(after, match)
        return value if isinstance(value, Ref) and build.type_of(value) == type_ else None
    op = replace(_op(after, match), results=match.op.results)
    return op if build.dtype(op) == type_.dtype else None


def _op(term: OpPattern, match: Match) -> Op:
    op = Op(term.target, (), (), (), match.op.source)
    return with_arguments(op, **{name: _argument(t, match) for name, t in term.arguments})


def _argument(term: Term, match: Match) -> Arg:
    match term:
        case Name(name):
            return match[name]
        case Number(value):
            return value
        case Listed(items):
            return tuple(_argument(item, match) for item in items)
        case OpPattern():
            op = _op(term, match)
            return Ref(match.build.emit_op(op, match.build.inferred(op)).result.name)


RewriteRule = Formula | Function
