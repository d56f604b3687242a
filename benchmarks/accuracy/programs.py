"""Programs of the published models: captured with few layers, which then are repeated, and kept as text."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import galvatron
from accuracy.models import Shape, batch_of, on_meta
from galvatron.ir.capture import capture_graph
from galvatron.ir.program import Program
from galvatron.ir.text import parse_program, print_program
from galvatron.passes import FRONT_END
from galvatron.passes.pipeline import Pipeline

CAPTURED_LAYERS = 3
"""Enough for `cluster-layers` to see that they are equal."""


@lru_cache(maxsize=64)
def program_of(shape: Shape, precision: str, captured_layers: int = CAPTURED_LAYERS) -> Program:
    """The clustered program of a model.

    Attention and norms that a model writes out stay so, since that is what was measured: then `fuse` takes no part.
    """
    few = replace(shape, layers=captured_layers)
    path = _cache() / f"{hashlib.sha256(repr((few, precision)).encode()).hexdigest()[:16]}.gir"
    if not path.exists():
        captured = capture_graph(on_meta(few), batch_of(few, 8), precision=precision)
        written = few.norm_written or not few.flash
        passes = tuple(name for name in FRONT_END if not (written and name == "fuse"))
        text = print_program(Pipeline.of(passes).run(captured.program))
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    return deepened(parse_program(path.read_text(encoding="utf-8")), shape.layers)


def deepened(program: Program, count: int) -> Program:
    """A clustered program with the last of its equal layers repeated until there are `count` of them.

    The layers are a chain, named by a path and an index, as is the state that each has for itself.
    """
    cls = max(program.layers_of, key=lambda name: len(program.layers_of[name]))
    *_, before, last = program.layers_of[cls]
    path, _, index = last.name.rpartition(".")
    first = int(index)

    def copied(name: str, number: int) -> str:
        """The name that the copy of this number has where the last layer, or the one before, has this one."""
        for offset in (0, -1):
            prefix = f"{path}.{first + offset}."
            if name.startswith(prefix):
                return f"{path}.{first + number + offset}.{name.removeprefix(prefix)}"
        return name

    added = range(1, count - len(program.layers_of[cls]) + 1)
    layers = [
        replace(
            last,
            name=f"{path}.{first + number}",
            operands=tuple(copied(name, number) for name in last.operands),
            state=tuple(copied(name, number) for name in last.state),
            results=tuple(copied(name, number) for name in last.results),
        )
        for number in added
    ]
    state = [
        replace(one, name=copied(one.name, number))
        for number in added
        for one in program.state
        if one.name in last.state and one.name not in before.state
    ]
    own = {name: copied(name, len(added)) for name in last.results}
    behind = program.layers.index(last) + 1
    tail = [
        replace(layer, operands=tuple(own.get(name, name) for name in layer.operands))
        for layer in program.layers[behind:]
    ]
    return replace(program, layers=(*program.layers[:behind], *layers, *tail), state=(*program.state, *state))


@lru_cache(maxsize=1)
def _cache() -> Path:
    """Where captures of this source tree are kept."""
    digest = hashlib.sha256()
    for root in (Path(galvatron.__file__).parent, Path(__file__).parent):
        for path in sorted(root.rglob("*.py")):
            digest.update(path.read_bytes())
    path = Path(tempfile.gettempdir()) / f"galvatron-published-{os.getuid()}" / digest.hexdigest()[:16]
    path.mkdir(parents=True, exist_ok=True)
    return path
