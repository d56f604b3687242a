"""Names that a person would give: layers after their modules, formal state after what its names have in common."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from galvatron.ir.graph import Graph
from galvatron.ir.names import Names, base_name
from galvatron.ir.ops.table import operator_of
from galvatron.ir.program import LayerKind
from galvatron.passes.frontend.cluster_layers.cuts import Region
from galvatron.passes.frontend.cluster_layers.placement import Part
from galvatron.passes.frontend.cluster_layers.stream import Path, Stream, common_prefix

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\s*=[^=]")


def value_name(graph: Graph, name: str) -> str:
    """What a person calls a value: the variable that its source line assigns, else the op that made it.

    A cast has the name of what it casts.
    """
    op = graph.producers[name]
    match = _ASSIGNMENT.match(op.source.code) if op.source else None
    return match[1] if match else op_name(graph, name)


def op_name(graph: Graph, name: str) -> str:
    """The op that made a value, before any casts: `sum`."""
    op = graph.producers[name]
    while base_name(op.target) == "to_copy" and op.operands[0] in graph.producers:
        op = graph.producers[op.operands[0]]
    return base_name(op.target)


def name_layers(stream: Stream, regions: Sequence[Region]) -> tuple[tuple[str, str], ...]:
    """For every region the name of its kind and its own: `("layers", "layers.3")`, `("head", "head")`.

    Blocks are called after the list of modules that holds them and their index in it, or `block` and a number.
    """
    modules = [_module(stream, region) for region in regions]
    kinds = _short_names({_kind(m) for m, r in zip(modules, regions, strict=True) if r.is_block and _index(m)})
    has_blocks = any(region.is_block for region in regions)
    repeated = {
        m for m, count in Counter(m for m, r in zip(modules, regions, strict=True) if r.is_block).items() if count > 1
    }
    unique, unnumbered, names = Names(reserved=()), {_kind(m) for m in repeated}, []
    counts: Counter[str] = Counter()
    for number, (region, module) in enumerate(zip(regions, modules, strict=True)):
        if not region.is_block:
            name = _name_between(stream, number, regions, module, has_blocks, modules.count(module) == 1)
            names.append((name, name))
            continue
        if module and not _index(module) and modules.count(module) == 1:
            names.append((_tail(module), _tail(module)))
            continue
        kind = kinds.get(_kind(module), "block") if _index(module) else "block"
        index = str(counts[kind]) if kind == "block" or _kind(module) in unnumbered else _index(module)
        counts[kind] += 1
        names.append((kind, f"{kind}.{index}"))
    return tuple((kind, unique.fresh(name)) for kind, name in names)


def name_closings(parts: Sequence[Part], names: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The kinds and names of layers, those of closings after the last layer of which they read something."""
    unique, maker, found = Names(reserved=()), dict[str, str](), list[tuple[str, str]]()
    for part, (kind, name) in zip(parts, names, strict=True):
        if part.kind is LayerKind.CLOSING:
            read = {n for op in part.ops for n in op.operands}
            name = f"{next(maker[n] for n in reversed(maker) if n in read)}.{kind}"
        elif part.kind is LayerKind.PLANNED:
            maker.update(dict.fromkeys(part.gives, name))
        found.append((kind, unique.fresh(name)))
    return found


def _module(stream: Stream, region: Region) -> Path:
    """The innermost module that holds all heavy ops of a region."""
    paths = [stream.paths[i] for i in range(region.start, region.stop) if stream.heavy[i]]
    return paths[0][: min(common_prefix(paths[0], p) for p in paths)] if paths else ()


def _kind(module: Path) -> Path:
    """The path of the list that holds a module: `model.layers.3.mlp` → `model.layers`."""
    last = max((i for i, part in enumerate(module) if part.isdigit()), default=0)
    return tuple(part for part in module[:last] if not part.isdigit())


def _index(module: Path) -> str:
    return ".".join(part for part in module if part.isdigit())


def _short_names(paths: Iterable[Path]) -> dict[Path, str]:
    """As many trailing components of each path as tell it from the others: `encoder_block`, `decoder_block`."""
    paths = sorted(paths)
    names: dict[Path, str] = {}
    for path in paths:
        size = 1
        while size < len(path) and any(other != path and other[-size:] == path[-size:] for other in paths):
            size += 1
        names[path] = "_".join(path[-size:]) or "block"
    return names


def _name_between(
    stream: Stream, number: int, regions: Sequence[Region], module: Path, has_blocks: bool, is_distinct: bool
) -> str:
    region = regions[number]
    is_last = number == len(regions) - 1
    if len(regions) == 1:
        return "model"
    if not has_blocks and module and is_distinct:
        return f"layer.{module[-1]}" if module[-1].isdigit() and len(module) == 1 else _tail(module)
    if is_last:
        return "head"
    if any(operator_of(op).looks_up for op in stream.ops[region.start : region.stop]):
        return "embedding"
    if not has_blocks:
        return f"layer.{number}"
    return "stem" if number == 0 else "between"


def _tail(module: Path) -> str:
    return ".".join(module[-2:]) if module[-1].isdigit() else module[-1]


def name_state(columns: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The formal names of a class's state; `columns` holds for every formal the names bound to it, layer by layer.

    What the names of a column have in common at the end: `self_attn.q_proj.weight`; where a column has one name only,
    that name without the modules that all such columns share.
    """
    constant = [column[0].split(".")[:-1] for column in columns if len(set(column)) == 1]
    shared = min((common_prefix(path, constant[0]) for path in constant), default=0)
    if len(constant) == 1:
        shared = max(shared - 1, 0)
    while shared and any(path[shared : shared + 1] and path[shared].isdigit() for path in constant):
        shared -= 1  # a member of a list is called after the list
    unique = Names(reserved=())
    return tuple(unique.fresh(_common_name(column, shared)) for column in columns)


def _common_name(names: Sequence[str], shared: int) -> str:
    parts = [name.split(".") for name in names]
    if len(set(names)) == 1:
        return ".".join(parts[0][shared:])
    size = min(common_prefix(parts[0][::-1], p[::-1]) for p in parts)
    if size:
        return ".".join(parts[0][-size:])
    bare = {re.sub(r"_?\d+", "", p[-1]) for p in parts}
    return (bare.pop() if len(bare) == 1 else "") or "weight"
