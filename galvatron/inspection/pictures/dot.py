"""A graph as text for Graphviz."""

from __future__ import annotations

import networkx

from galvatron.printing import one_line

SHAPES = {"input": "oval", "result": "oval", "state": "cylinder"}


def dot(graph: networkx.DiGraph, name: str) -> str:
    """All of a graph that `galvatron.graph` gives, node by node, with what flows along each edge."""
    numbers = {node: f"n{number}" for number, node in enumerate(graph.nodes)}
    lines = [f"digraph {quoted(name)} {{", "  node [shape=box]"]
    for node, data in graph.nodes(data=True):
        shape = f", shape={SHAPES[data['kind']]}" if data["kind"] in SHAPES else ""
        told = [data["label"], *([data["strategy"]] if data.get("strategy") else []), *data["shapes"][:1]]
        lines.append(
            f"  {numbers[node]} [label={quoted(*told)}, tooltip={quoted(data.get('source') or data['kind'])}{shape}]"
        )
    for first, second, data in graph.edges(data=True):
        lines.append(f"  {numbers[first]} -> {numbers[second]} [tooltip={quoted(*data['values'])}]")
    return "\n".join([*lines, "}", ""])


def quoted(*lines: str) -> str:
    """Lines as a string of DOT, in which a backslash and a quotation mark mean themselves."""
    escaped = (one_line(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines)
    return '"' + "\\n".join(escaped) + '"'
