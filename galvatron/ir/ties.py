"""Ties: parameters that several layers share.

A plan says of each tie how it is kept, on whatever stages its layers are: whole on every rank at ZeRO level 0, or in
parts, as each of its layers would keep it alone, which all must do alike: under the same axes and ZeRO level.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from galvatron.ir.plan import Ties
from galvatron.ir.program import Layer, Program
from galvatron.ir.zero import LEVELS

Binding = tuple[str, str]
"""A class and a formal of it."""

_Member = TypeVar("_Member", bound=Hashable)


@dataclass(frozen=True)
class TiedClasses:
    """Classes whose layers share parameters, in the order of their layers; sharded ones under the name of their base.

    `name` is the first parameter that several layers have. `pieces` has, per parameter or per several that one formal
    stands for, every place where it is bound.
    """

    name: str
    classes: tuple[str, ...]
    pieces: tuple[tuple[Binding, ...], ...]

    def formals(self, cls: str) -> tuple[str, ...]:
        """The state of a class that is shared."""
        return tuple(formal for piece in self.pieces for name, formal in piece if name == cls)

    def bound(self, program: Program, layer: Layer) -> tuple[str, ...]:
        """The shared parameters of a layer."""
        cls = program.class_of[layer.cls]
        formals = self.formals(cls.origin_name)
        return tuple(n for v, n in zip(cls.graph.state, layer.state, strict=True) if v.name in formals)

    def whole(self, ties: Ties) -> bool:
        """Whether a plan that says this of every tie keeps the shared parameters whole."""
        return dict(ties)[self.name] is None


def tied_classes(program: Program) -> tuple[TiedClasses, ...]:
    """The ties of a program in a form with layers; no class is in two."""
    holders: dict[str, list[Binding]] = defaultdict(list)
    for layer in program.all_layers:
        cls = program.class_of[layer.cls]
        for formal, name in zip(cls.graph.state, layer.state, strict=True):
            if name in program.parameters:
                holders[name].append((cls.origin_name, formal.name))
    shared = {name: places for name, places in holders.items() if len(places) > 1}
    pieces = _joined(shared.values())
    order = dict.fromkeys(program.class_of[layer.cls].origin_name for layer in program.all_layers)
    ties: list[TiedClasses] = []
    for found in map(set, _joined([cls for cls, _ in piece] for piece in pieces)):
        name = next(name for name, places in shared.items() if places[0][0] in found)
        own = tuple(tuple(piece) for piece in pieces if piece[0][0] in found)
        ties.append(TiedClasses(name, tuple(cls for cls in order if cls in found), own))
    return tuple(ties)


def kept_whole(program: Program) -> frozenset[str]:
    """The shared parameters that the plan of a program keeps whole."""
    ties = program.required_plan.ties
    tie_of = {cls: tie for tie in tied_classes(program) if tie.whole(ties) for cls in tie.classes}
    layers = [(layer, tie_of.get(program.class_of[layer.cls].origin_name)) for layer in program.all_layers]
    return frozenset(name for layer, tie in layers if tie is not None for name in tie.bound(program, layer))


def zero_levels(program: Program) -> dict[str, int]:
    """The ZeRO level of each parameter in a sharded or staged program: that of its layers, 0 for what is kept whole,
    and for what is frozen where the level cuts no values. Where a single device has it it means nothing."""
    levels: dict[str, int] = {}
    for layer in program.all_layers:
        strategy = program.class_of[layer.cls].strategy
        zero = strategy.zero if strategy else 0
        for name in layer.state:
            cuts = name in program.trainable or (name in program.parameters and LEVELS[zero].values)
            levels[name] = zero if cuts else 0
    return levels | dict.fromkeys(kept_whole(program), 0)


def _joined(groups: Iterable[Sequence[_Member]]) -> list[list[_Member]]:
    """The groups, those with a member in common made one; both groups and members in the order of their first."""
    parent: dict[_Member, _Member] = {}

    def root(member: _Member) -> _Member:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for group in groups:
        for member in group:
            parent.setdefault(member, member)
            parent[root(member)] = root(group[0])
    found: dict[_Member, list[_Member]] = defaultdict(list)
    for member in parent:
        found[root(member)].append(member)
    return list(found.values())
