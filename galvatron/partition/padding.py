"""Padded splits that hold together: since none is ever converted, one is of use only where all its neighbours take it.

A padded vocabulary reaches from the parameters that have it to the ops that sum it up; where anything in between must
have the dimension whole, or passes it to another layer, nothing is padded at all.
"""

from __future__ import annotations

from collections import defaultdict

from galvatron.ir.graph import Graph
from galvatron.partition.modes import AxisState, Mode, Split


def without_stranded_padding(
    graph: Graph, modes: list[tuple[Mode, ...]], shardable: frozenset[str], read: frozenset[str]
) -> list[tuple[Mode, ...]]:
    """The modes of every op without those whose padded splits somebody else cannot give or take.

    Args:
        shardable: the state that may be kept sharded.
        read: the outputs that other layers read.
    """
    modes = [_of_one_factor(choices) for choices in modes]
    while True:
        stranded = _stranded(graph, modes, shardable, read)
        if not stranded:
            return modes
        modes = [
            tuple(mode for mode in choices if not stranded & set(_padded(graph, index, mode)))
            for index, choices in enumerate(modes)
        ]


_Place = tuple[str, Split]
"""A padded split of a named value."""


def _of_one_factor(choices: tuple[Mode, ...]) -> tuple[Mode, ...]:
    """No padded modes where there would be several to choose from: what is kept for one would not fit the others."""
    padded = [mode for mode in choices if any(map(_is_padded, (*mode.operands, *mode.results)))]
    return choices if len(padded) <= 1 else tuple(mode for mode in choices if mode not in padded)


def _is_padded(state: AxisState) -> bool:
    return isinstance(state, Split) and state.padded


def _padded(graph: Graph, index: int, mode: Mode) -> list[_Place]:
    """The padded splits of a mode of op `index`."""
    op = graph.ops[index]
    names = (*op.operands, *(v.name for v in op.results))
    pairs = zip(names, (*mode.operands, *mode.results), strict=True)
    return [(name, state) for name, state in pairs if isinstance(state, Split) and state.padded]


def _stranded(
    graph: Graph, modes: list[tuple[Mode, ...]], shardable: frozenset[str], read: frozenset[str]
) -> set[_Place]:
    """The padded splits that some op has a mode for and that the producer or a consumer of the value has none for."""
    made: dict[str, set[AxisState]] = defaultdict(set)
    taken: dict[str, list[set[AxisState]]] = defaultdict(list)
    for op, choices in zip(graph.ops, modes, strict=True):
        for position, value in enumerate(op.results):
            made[value.name] = {mode.results[position] for mode in choices}
        for position, name in enumerate(op.operands):
            taken[name].append({mode.operands[position] for mode in choices})

    def fits(name: str, split: Split) -> bool:
        given = name in shardable or split in made[name]
        return given and name not in read and all(split in states for states in taken[name])

    used = {place for index, choices in enumerate(modes) for mode in choices for place in _padded(graph, index, mode)}
    return {place for place in used if not fits(*place)}
