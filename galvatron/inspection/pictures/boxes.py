"""What a picture shows: a box for each node, and one for a run of equal layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import networkx

from galvatron.printing import one_line
from galvatron.units import format_bytes, format_flop

FOLDED = 3
"""So many equal layers, or more, one behind the other are one box."""

LETTERS = 44
"""Longer lines are cut."""


@dataclass(frozen=True)
class Box:
    """A box: its kind, its lines, of which the first is its name, and what is known of it."""

    kind: str
    lines: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


def boxes(graph: networkx.DiGraph) -> networkx.DiGraph:
    """The graph that a picture shows of one that `galvatron.graph` gives: of nodes that have a `box`."""
    runs = _runs(graph)
    of = {node: run[0] for run in runs for node in run}
    found = networkx.DiGraph()
    for run in runs:
        found.add_node(run[0], box=_box([graph.nodes[node] for node in run]))
    for first, second in graph.edges:
        if of[first] != of[second]:
            found.add_edge(of[first], of[second])
    return found


def boxes_of(shown: networkx.DiGraph) -> dict[Any, Box]:
    """The box of each node of what a picture shows, in order."""
    return networkx.get_node_attributes(shown, "box")


def _runs(graph: networkx.DiGraph) -> list[list[Any]]:
    """The nodes in order, with those in one list that are equal layers one behind the other."""
    found: list[list[Any]] = []
    for node in graph.nodes:
        same = found and graph.has_edge(found[-1][-1], node) and _alike(graph, found[-1][-1], node)
        if same:
            found[-1].append(node)
        else:
            found.append([node])
    return [part for run in found for part in ([run] if len(run) >= FOLDED else [[node] for node in run])]


def _alike(graph: networkx.DiGraph, first: Any, second: Any) -> bool:
    return "cls" in graph.nodes[first] and all(
        graph.nodes[first].get(name) == graph.nodes[second].get(name) for name in ("cls", "strategy", "stage", "kind")
    )


def _box(run: Sequence[dict[str, Any]]) -> Box:
    first, last = run[0], run[-1]
    label = first["label"] if len(run) == 1 else f"{first['label']} … {last['label']}"
    lines = [label, *_lines(first, label, len(run))]
    facts = [("", label), *_facts(first, len(run))]
    return Box(first["kind"], tuple(map(cut, lines)), tuple((name, one_line(text)) for name, text in facts))


def _lines(node: dict[str, Any], label: str, count: int) -> Iterable[str]:
    if "cls" in node:
        told = [f"{count} layers of {node['cls']}"] if count > 1 else [node["cls"]] if node["cls"] != label else []
        told += [f"stage {node['stage']}"] if node["stage"] is not None else []
        yield from [" · ".join(told)] if told else []
        if node["strategy"]:
            yield node["strategy"]
    elif node["kind"] == "op" and node["values"]:
        yield f"%{node['values'][0]}"
    if node["kind"] != "result" and node["shapes"]:
        yield node["shapes"][0]


def _facts(node: dict[str, Any], count: int) -> Iterable[tuple[str, str]]:
    yield "kind", node["kind"]
    if count > 1:
        yield "layers", str(count)
    for name in ("cls", "strategy", "stage", "scope", "source", "code"):
        if node.get(name) not in (None, ""):
            yield {"cls": "class", "scope": "module"}.get(name, name), str(node[name])
    each = " each" if count > 1 else ""
    if "parameters" in node:
        yield f"parameters{each}", f"{node['parameters']:,}"
    if "forward_flop" in node:
        yield f"forward{each}", format_flop(node["forward_flop"])
        yield f"backward{each}", format_flop(node["backward_flop"])
        yield f"kept for backward{each}", format_bytes(node["kept_bytes"])
        yield f"read and written{each}", format_bytes(node["moved_bytes"])
    yield from zip((f"%{value}" for value in node["values"]), node["shapes"], strict=True)


def cut(text: str) -> str:
    """Text on one line, of no more than `LETTERS`."""
    text = one_line(text)
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"
