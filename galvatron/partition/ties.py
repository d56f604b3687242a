"""Ties: parameters that several layers share, and when those layers keep them in parts.

A shared parameter is kept in one way by all its layers, on whatever stages they are. Layers that agree, which is to say
that their strategies have the same axes and ZeRO level, keep it as one of them would alone; layers that do not keep it
whole on every rank, at level 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import networkx

from galvatron.ir.program import Layer, LayerClass, Program
from galvatron.ir.strategy import Strategy
from galvatron.partition.boundary import ROLES

Binding = tuple[str, str]
"""A class and a formal of it."""


@dataclass(frozen=True)
class TiedClasses:
    """Classes whose layers share parameters, in the order of their layers; sharded ones under the name of their base.

    `pieces` has, per parameter or per several that one formal stands for, every place where it is bound.
    """

    classes: tuple[str, ...]
    pieces: tuple[tuple[Binding, ...], ...]

    def formals(self, cls: str) -> tuple[str, ...]:
        """The state of a class that is shared."""
        return tuple(formal for piece in self.pieces for name, formal in piece if name == cls)

    def bound(self, program: Program, layer: Layer) -> tuple[str, ...]:
        """The shared parameters of a layer."""
        cls = program.class_of[layer.cls]
        formals = self.formals(_base(cls))
        return tuple(n for v, n in zip(cls.graph.state, layer.state, strict=True) if v.name in formals)


def tied_classes(program: Program) -> tuple[TiedClasses, ...]:
    """The ties of a program in a form with layers; no class is in two."""
    holders: dict[str, list[Binding]] = defaultdict(list)
    for layer in program.all_layers:
        cls = program.class_of[layer.cls]
        for formal, name in zip(cls.graph.state, layer.state, strict=True):
            if program.state_of[name].trainable:
                holders[name].append((_base(cls), formal.name))
    links: networkx.Graph[Binding] = networkx.Graph()
    for places in holders.values():
        if len(places) > 1:
            links.add_node(places[0])
            networkx.add_path(links, places)
    pieces = [tuple(place for place in links if place in found) for found in networkx.connected_components(links)]
    classes: networkx.Graph[str] = networkx.Graph()
    for piece in pieces:
        classes.add_node(piece[0][0])
        networkx.add_path(classes, [cls for cls, _ in piece])
    order = list(dict.fromkeys(_base(program.class_of[layer.cls]) for layer in program.all_layers))
    return tuple(
        TiedClasses(
            tuple(cls for cls in order if cls in found), tuple(piece for piece in pieces if piece[0][0] in found)
        )
        for found in networkx.connected_components(classes)
    )


def agreement(strategies: Iterable[Strategy]) -> Strategy | None:
    """What layers with these strategies agree on: the axes and ZeRO level under which they keep shared parameters in
    parts. None where they keep them whole, because they differ or because none of them would cut a parameter."""
    found = {Strategy(tuple(axis for axis in s.axes if axis.degree > 1), s.zero) for s in strategies}
    common = next(iter(found), Strategy(()))
    cut = any(common.zero or axis.role in ROLES and ROLES[axis.role].matrices for axis in common.axes)
    return common if cut and len(found) == 1 else None


def _base(cls: LayerClass) -> str:
    return cls.base or cls.name
