"""The stream as the search for layers sees it: labels, weights, and how many values are alive between two ops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from galvatron.ir.graph import Arg, Graph, Op, Ref
from galvatron.ir.ops.table import operator_of
from galvatron.ir.program import State
from galvatron.ir.types import TensorType, evaluate
from galvatron.passes.frontend.cluster_layers.roles import Roles

Path = tuple[str, ...]
"""A module path, one component per module: `("model", "layers", "3")`."""


@dataclass(frozen=True)
class Stream:
    """The stream's ops and what is known of each; a cut at `c` stands before op `c`.

    `weighted` marks ops that read a weight, `heavy` contractions among them, the skeleton in which repeats are sought;
    `lookups` marks embeddings. `weight` is an op's share of the model's arithmetic plus its share of the parameters.
    `scopes` are the module paths that ops were called in, `paths` the same with the path of an op's parameter where it
    was called in no module; both empty where hints are off. `edges` has a row (value number, definition, use) for every
    read of a value of the stream, `sizes` the elements of each value.
    """

    ops: tuple[Op, ...]
    labels: np.ndarray
    weighted: np.ndarray
    heavy: np.ndarray
    lookups: np.ndarray
    weight: np.ndarray
    scopes: tuple[Path, ...]
    paths: tuple[Path, ...]
    edges: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.ops)

    @cached_property
    def anchors(self) -> np.ndarray:
        """Positions of the heavy ops."""
        return np.flatnonzero(self.heavy)

    @cached_property
    def fan_out(self) -> np.ndarray:
        """For every cut, how many ops read what the op before it makes."""
        return np.concatenate([[0], np.bincount(self.edges[:, 1], minlength=len(self))])

    def alive(self, limit: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
        """For every cut, how many values are defined before it and read after it, and how many elements those hold.

        Reads more than `limit` ops after the definition are not counted: a value that many layers share, or that skips
        over many, is alive everywhere and says nothing about where a layer ends.
        """
        value, definition, use = self.edges.T
        near = use - definition <= limit
        first, last = (np.zeros(len(self.sizes), int) for _ in range(2))
        first[value] = last[value] = definition
        np.maximum.at(last, value[near], use[near])

        def total(amounts: np.ndarray) -> np.ndarray:
            change = np.zeros(len(self) + 2, amounts.dtype)
            np.add.at(change, first + 1, amounts)
            np.add.at(change, last + 1, -amounts)
            return np.cumsum(change)[: len(self) + 1]

        return total(np.ones_like(self.sizes)), total(self.sizes)

    def depth(self, cut: int) -> int:
        """How deep in the tree of modules a cut stands: how much of their paths the ops around it have in common."""
        if not 0 < cut < len(self):
            return 0
        return common_prefix(self.scopes[cut - 1], self.scopes[cut])


def make_stream(graph: Graph, state: dict[str, State], roles: Roles, batch_size: int, hints: bool) -> Stream:
    """The stream of a graph; arithmetic is weighed at the given batch size."""
    ops = tuple(graph.ops[i] for i in roles.stream)
    parameters = {s.name for s in state.values() if s.kind == "parameter"}
    weights = parameters | roles.derived
    types = graph.types
    sizes = _Sizes(batch_size)
    reads = [[n for n in op.operands if n in weights] for op in ops]
    heavy = np.array([_is_heavy(op, read, types) for op, read in zip(ops, reads, strict=True)], bool)
    lookups = np.array([operator_of(op).looks_up for op in ops], bool)
    flop = np.array([_flop(op, types, sizes) for op in ops], float)
    held = np.array(
        [0 if skip else sum(sizes(types[n]) for n in r) for skip, r in zip(lookups, reads, strict=True)], float
    )
    scopes = tuple(_path(op.source.scope) if hints and op.source else () for op in ops)
    paths = tuple(
        scope or (_path(r[0])[:-1] if hints and r and r[0] in parameters else ())
        for scope, r in zip(scopes, reads, strict=True)
    )
    return Stream(
        ops=ops,
        labels=_labels(ops, types, weights),
        weighted=np.array([bool(r) for r in reads], bool),
        heavy=heavy,
        lookups=lookups,
        weight=flop / max(flop.sum(), 1) + held / max(held.sum(), 1),
        scopes=scopes,
        paths=paths,
        edges=_edges(ops),
        sizes=np.array([sizes(v.type) for op in ops for v in op.results], int),
    )


def _is_heavy(op: Op, weights: Sequence[str], types: dict[str, TensorType]) -> bool:
    """Whether an op contracts a weight. A trained bias that attention adds to its scores is none: whether attention is
    one op, or several of which none reads the bias, may differ from block to block."""
    operator = operator_of(op)
    mask = op.get(operator.mask) if operator.mask else None
    return operator.contracts and any(len(types[n].shape) > 1 and Ref(n) != mask for n in weights)


def common_prefix(first: Sequence[str], second: Sequence[str]) -> int:
    """The number of leading components that two paths share."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def _path(scope: str) -> Path:
    return tuple(scope.split(".")) if scope else ()


def _edges(ops: Sequence[Op]) -> np.ndarray:
    defined = {v.name: i for i, op in enumerate(ops) for v in op.results}
    number = {name: i for i, name in enumerate(defined)}
    rows = [(number[n], defined[n], i) for i, op in enumerate(ops) for n in dict.fromkeys(op.operands) if n in defined]
    return np.array(rows, int).reshape(-1, 3)


class _Sizes:
    """Elements of a type at one batch size."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._known: dict[TensorType, int] = {}

    def __call__(self, type_: TensorType) -> int:
        if type_ not in self._known:
            self._known[type_] = math.prod(evaluate(d, self._batch_size) for d in type_.shape)
        return self._known[type_]


def _flop(op: Op, types: dict[str, TensorType], sizes: _Sizes) -> float:
    """A measure of arithmetic, close to multiply-adds: for (m,k)·(k,n) → (m,n) the root of mk·kn·mn is mkn."""
    out = sum(sizes(v.type) for v in op.results)
    if not operator_of(op).contracts:
        return out
    operands = sorted((sizes(types[n]) for n in op.operands), reverse=True)[:2]
    return math.sqrt(math.prod(operands) * out)


def _labels(ops: Sequence[Op], types: dict[str, TensorType], weights: set[str]) -> np.ndarray:
    """Equal numbers for ops that do the same to operands of the same types, whatever those are called.

    Floats are left out, so that blocks that differ in a rate or a scale count as repeats (of different classes).
    """
    numbers: dict[object, int] = {}
    operand = {name: (name in weights, type_) for name, type_ in types.items()}

    def label(op: Op) -> object:
        results = tuple(v.type for v in op.results)
        return op.target, _abstract(op.args, operand), tuple((k, _abstract(v, operand)) for k, v in op.kwargs), results

    return np.array([numbers.setdefault(label(op), len(numbers)) for op in ops], int)


def _abstract(arg: Arg, operand: dict[str, tuple[bool, TensorType]]) -> object:
    if isinstance(arg, Ref):
        return operand[arg.name]
    if isinstance(arg, tuple):
        return tuple(_abstract(a, operand) for a in arg)
    return "float" if isinstance(arg, float) else (type(arg), arg)
