"""Programs of names drawn at random: the trees of attributes that models have, and names that no model has."""

from __future__ import annotations

import keyword
import random

from galvatron.ir.graph import Arg, Graph, Op, Ref, Source, Value
from galvatron.ir.layout import BROADCAST, REPLICATE, Axis, Shard
from galvatron.ir.program import Form, Layer, LayerClass, LayerKind, Program, Stage, State, StateLayout, Transfer
from galvatron.ir.types import BATCH, TensorType

ODD = (
    "", " ", "a b", "{i}", "{i+1}", "layer{i}", "{", "}", "{{0}}", '"', "'", '"""', "\\", "\\n", "\n", "\t", "\r",
    "\0", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\ud800", "größe", "层", "²", "٣", "𝟙", "e\u0301", "\u200b",
    "_", "__class__", "0", "00", "007", "1e5", "0x1f", "9" * 5000, ".", "..", "a.", ".a", "a..b", "-", "+", "@", "$",
    "%", "%x", "@c", "#0", "//", "// x", "a//b", "layer", "step", "preamble", "state", "for", "tied", "frozen", "keep",
    "zero3", "R'", "_0", "x_1", "i", "B", "b", "()", "dp2-tp2", "pp2", "none", "inf", "tp=2@1", "×", "\u202e",
    *keyword.kwlist,
)  # fmt: skip
"""Names that a text or a program could take for something else."""

_WORDS = ("layer", "block", "conv", "h", "encoder", "attn", "weight", "bias", "x", "down_proj", "bn", "_0", "é")
_TYPE = TensorType("f32", (BATCH, 4))
_MESH = (Axis("dp", 2, 1),)


class Naming:
    """Draws names of one program: a tree of words and numbers that count by one or otherwise, with odd ones between."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.oddness = self.draw.choice((0.0, 0.0, 0.02, 0.2))
        self.stems = [self._stem() for _ in range(self.draw.randint(1, 3))]

    def _stem(self) -> str:
        """A template of names: `layer{0}.{1}.conv{0}.weight`."""
        parts = []
        for _ in range(self.draw.randint(1, 4)):
            word = self.draw.choice(_WORDS)
            parts.append(self.draw.choice((word, f"{word}<n>", f"{word}_<n>", "<n>", "<m>", f"{word}<m>x<n>")))
        return ".".join(parts)

    def rows(self, count: int) -> list[tuple[int, int]]:
        """Two counters for each of `count` items: they mostly count evenly, as attributes of unequal layers do."""
        first, step, wrap = self.draw.randint(0, 11), self.draw.choice((0, 1, 1, 1, 2, -1)), self.draw.randint(1, 4)
        rows = []
        for k in range(count):
            n = abs(first + step * k)
            if self.draw.random() < 0.05:
                n = self.draw.randint(0, 10**6)
            rows.append((n, self.draw.choice((k % wrap, k % wrap, n))))
        return rows

    def name(self, row: tuple[int, int], suffix: str = "") -> str:
        if self.draw.random() < self.oddness:
            return self.draw.choice(ODD) + (self.draw.choice(("", suffix, ".weight", "1")))
        n, m = row
        return self.draw.choice(self.stems).replace("<n>", str(n)).replace("<m>", str(m)) + suffix


def program(seed: int) -> Program:
    """A program of any layered form, or a captured one; equal shapes throughout, since names alone are meant."""
    naming = Naming(seed)
    draw = naming.draw
    rows = naming.rows(draw.randint(1, 14))
    classes = [naming.name(row) for row in naming.rows(draw.choice((1, 2, 3, len(rows))))]
    weights = [[naming.name(row, suffix) for suffix in ("", ".w", ".b")[: draw.randint(1, 3)]] for row in rows]
    results = [naming.name(row, draw.choice(("", ".out"))) for row in rows]
    layers = tuple(
        Layer(
            naming.name(row),
            classes[k % len(classes)],
            tuple(results[max(0, k - 1) : k]) or ("x",),
            tuple(weights[k]) if draw.random() < 0.9 else (),
            (results[k],),
            draw.choice((LayerKind.PLANNED,) * 8 + (LayerKind.PREAMBLE, LayerKind.STEP)),
        )
        for k, row in enumerate(rows)
    )
    names = [name for group in weights for name in group]
    state = tuple(
        State(
            name, _TYPE, *draw.choice((("parameter", True), ("parameter", False), ("buffer", False))), _aliases(naming)
        )
        if draw.random() < 0.2
        else State(name, _TYPE)
        for name in names
    )
    inputs = tuple(Value(naming.name(row), _TYPE) for row in naming.rows(draw.randint(1, 3)))
    base = Program(naming.name((1, 2)), Form.CLUSTERED, 8, inputs, state, results[-1])
    if draw.random() < 0.2:
        return _captured(base, naming, results)
    graphs = tuple(LayerClass(name, _graph(naming, name)) for name in classes)
    if draw.random() < 0.5:
        return Program(**{**vars(base), "classes": graphs, "layers": layers})
    stage = Stage(
        draw.randint(0, 3),
        layers,
        tuple(Transfer(naming.name(row), _TYPE, draw.random() < 0.5) for row in naming.rows(2)),
        tuple(Transfer(naming.name(row), _TYPE) for row in naming.rows(2)),
        tuple(StateLayout(name, _MESH, (draw.choice((BROADCAST, REPLICATE, Shard(0))),)) for name in names),
    )
    return Program(**{**vars(base), "form": Form.STAGED, "classes": graphs, "stages": (stage,)})


def _aliases(naming: Naming) -> tuple[str, ...]:
    return tuple(naming.name(row) for row in naming.rows(naming.draw.randint(0, 2)))


def _graph(naming: Naming, scope: str) -> Graph:
    values = [Value(naming.name(row), _TYPE) for row in naming.rows(4)]
    return Graph((values[0],), (values[1],), tuple(_ops(naming, [v.name for v in values], scope)), (values[3].name,))


def _ops(naming: Naming, names: list[str], scope: str) -> list[Op]:
    source = Source(naming.name((0, 1)), 3, naming.name((1, 1)), scope)
    arguments: tuple[Arg, ...] = (Ref(names[0]), (Ref(names[1]), naming.name((2, 2))))
    results = (Value(names[2], _TYPE), Value(names[3], _TYPE))
    return [Op("aten.add.Tensor", arguments, (), results, naming.draw.choice((None, source)))]


def _captured(base: Program, naming: Naming, results: list[str]) -> Program:
    ops = tuple(op for name in results for op in _ops(naming, ["x", name, name, name], name))
    graph = Graph(base.inputs, tuple(Value(s.name, s.type) for s in base.state), ops, (base.output,))
    return Program(**{**vars(base), "form": Form.CAPTURED, "graph": graph})
