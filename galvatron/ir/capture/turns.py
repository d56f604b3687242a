"""Loops over the indices of what is true in a vector (`for expert in hit.nonzero(): ...`), as loops over all indices.

A program has no values, so that no turn can be left out. But a turn that selects nothing does nothing, where it only
adds what it has selected to tensors that were there before. So all turns are taken, and each selects only where the
model takes that turn. That nothing else of a turn is read outside of it, the graph says (`check_turns`), and that
nothing of Python goes from one turn to the next, the statements of the loop (`loops`) and the model's attributes.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from galvatron.ir.capture.checks import note
from galvatron.ir.capture.diagnose import on_values
from galvatron.ir.capture.loops import loop_begun
from galvatron.ir.capture.running import here, line_running, turns_running
from galvatron.ir.capture.tracing import version_of
from galvatron.ir.graph import Arg, Graph, Op, Ref, Value
from galvatron.ir.names import Names
from galvatron.ir.results import Reached
from galvatron.ir.types import TensorType

_INDICES = frozenset(("nonzero", "argwhere", "where"))
_SELECTIONS = frozenset(("aten.where.default", "aten.nonzero.default", "aten.nonzero_numpy.default"))
_VIEWS = frozenset(("squeeze", "view", "reshape", "flatten"))
_SAME = frozenset(("detach", "alias", "clone", "_to_copy", "to", "contiguous"))
_ORDERS = frozenset(("permute", "transpose", "squeeze", "unsqueeze", "select", *_VIEWS))


T = TypeVar("T")


@dataclass(frozen=True)
class _Known(Generic[T]):
    """What is known of a tensor, which is held so that no other gets its id, as long as nothing writes into tensors."""

    value: T
    held: tuple[torch.Tensor, ...]
    versions: tuple[int, ...]

    @staticmethod
    def of(value: T, *held: torch.Tensor) -> _Known[T]:
        return _Known(value, held, tuple(map(version_of, held)))

    @property
    def holds(self) -> bool:
        return tuple(map(version_of, self.held)) == self.versions


class Turns(TorchFunctionMode):
    """Inside the `with` block a loop over the indices of what is true in a vector takes all turns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._loops = count()
        self._vectors: dict[int, _Known[torch.Tensor]] = {}
        """By id, lists of indices, with the vector that has them."""
        self._indices: dict[int, _Known[int]] = {}
        """By id, tensors that are the index of a turn."""
        self._taken: torch.Tensor | None = None
        """Whether the model takes the turn that is being taken."""
        turns_running.clear()

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        read = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if read is None:
            if name in _INDICES and self._taken is not None:
                raise on_values(line_running())  # it is given a mask by its name
            return func(*args, **kwargs)
        if name == "unbind" and _knows(self._vectors, read) and self._taken is None and _begins_a_loop():
            return self._turns(read)
        selects = name in _INDICES and len(args) == 1 and not kwargs.keys() - {"as_tuple"}
        if selects and self._taken is not None:
            args = ((read != 0) & self._taken,)
        if name == "__getitem__":
            args = (read, *(self._with_numbers(index, read) for index in args[1:]))
        result = func(*args, **kwargs)
        if _knows(self._indices, read) and name in ("__getitem__", *_VIEWS) and result.numel() == 1:
            self._indices[id(result)] = _Known.of(self._indices[id(read)].value, result)
        if selects and self._taken is None and read.dim() == 1 and isinstance(read.shape[0], int):
            indices = result[0] if isinstance(result, tuple) else result
            self._vectors[id(indices)] = _Known.of(read, indices, read)
        elif name in _VIEWS and _knows(self._vectors, read) and result.shape[:1] == read.shape[:1]:
            vector = self._vectors[id(read)].value
            self._vectors[id(result)] = _Known.of(vector, result, vector)
        return result

    def _with_numbers(self, index: Any, indexed: torch.Tensor) -> Any:
        """What a tensor is indexed with, numbers and slices in the place of indices of turns.

        There may be none for a turn that no step takes, which the program then checks.
        """
        if isinstance(index, tuple):
            return tuple(self._with_numbers(one, indexed) if len(index) == 1 else self._number(one) for one in index)
        found, size = self._number(index), indexed.shape[0] if indexed.dim() else 0
        if type(found) is int and isinstance(size, int) and size <= found and self._taken is not None:
            note(self._taken, False, f"IndexError: index {found} is out of bounds for dimension 0 with size {size}")
            return size - 1
        return found

    def _number(self, index: Any) -> Any:
        if not isinstance(index, torch.Tensor) or not _knows(self._indices, index):
            return index
        number = self._indices[id(index)].value
        return number if index.dim() == 0 else slice(number, number + 1) if index.dim() == 1 else index

    def _turns(self, indices: torch.Tensor) -> Iterator[torch.Tensor]:
        vector = self._vectors[id(indices)].value
        warnings.warn(
            f"{here()}each of the {vector.shape[0]} turns of this loop is taken with all rows, since a program does "
            "not know which are selected; only where each row is seen to be in one turn, as with experts that topk "
            "chooses, is it computed once",
            stacklevel=2,
        )
        loop, before = next(self._loops), _attributes(self._model)
        for index in range(vector.shape[0]):
            self._taken = vector[index] != 0
            turns_running.append(f"{loop}.{index}")
            given = torch.full(indices.shape[1:], index, device=indices.device)
            self._indices[id(given)] = _Known.of(index, given)
            try:
                yield given
            finally:
                turns_running.pop()
                self._taken = None
            if not _is_same(_attributes(self._model), before):
                raise on_values(line_running())


def _begins_a_loop() -> bool:
    """Whether a tensor is iterated by a loop whose turns leave nothing of Python behind."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not torch.Tensor.__iter__.__code__:
        if not frame.f_code.co_filename.startswith(_TORCH):
            return False
        frame = frame.f_back
    return frame is not None and frame.f_back is not None and loop_begun(frame.f_back) is not None


_TORCH = torch.__path__[0]


def _knows(known: Mapping[int, _Known[Any]], tensor: torch.Tensor) -> bool:
    return id(tensor) in known and known[id(tensor)].holds


def _attributes(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Every attribute of every module, and what is in its lists and the like."""
    return {
        (path, name): dict(value) if isinstance(value, dict) else list(value) if isinstance(value, _MANY) else value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
    }


_MANY = (list, tuple, set, deque)


def _is_same(one: Any, other: Any) -> bool:
    """Whether attributes are the same objects, or equal numbers or text."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(value, other[key]) for key, value in one.items())
    if isinstance(one, _MANY) and type(one) is type(other):
        return len(one) == len(other) and all(map(_is_same, one, other))
    is_plain = type(one) is type(other) and isinstance(one, (bool, int, float, str))
    return one is other or (is_plain and one == other)


def check_turns(graph: Graph, turns: Mapping[str, str]) -> None:
    """Sees that a turn which selects nothing leaves all values as they were that are read outside of it.

    Args:
        turns: the turn of a loop in which each value is computed, of those that are in one.

    Raises:
        CaptureError: another value of a turn is read outside of it.
    """
    for name in graph.outputs:
        _check(name, "", graph, turns)
    for op in graph.ops:
        for name in op.operands:
            _check(name, turns.get(op.results[0].name, ""), graph, turns)


def turns_of_parameters(graph: Graph, turns: Mapping[str, str], trained: Collection[str]) -> dict[str, frozenset[str]]:
    """The turns that read each parameter, of those that some turns of a loop read and nothing else does: in a step that
    takes none of these it has no gradient in PyTorch, where here it is zero, which optimizers tell apart."""
    readers: dict[str, set[str]] = {}
    for op in graph.ops:
        for name in op.operands:
            if name in trained:
                readers.setdefault(name, set()).add(turns.get(op.results[0].name, ""))
    every = set(turns.values())
    return {
        name: frozenset(read)
        for name, read in readers.items()
        if "" not in read and not _loops(every - read).isdisjoint(_loops(read))
    }


def with_turns_taken(
    graph: Graph, turns: Mapping[str, str], parameters: Mapping[str, frozenset[str]]
) -> tuple[Graph, list[Reached]]:
    """A graph that gives besides, last of all, which turns a step takes of loops whose turns have parameters of their
    own, each as many as any other.

    Args:
        parameters: the turns that read each.
    """
    vectors: dict[str, tuple[str, int]] = {}
    for op in graph.ops:
        if op.target == "aten.__and__.Tensor" and (turn := turns.get(op.result.name)):
            taken = _part(op.operands[-1], graph)
            if taken is not None and taken[1] == int(turn.partition(".")[2]):
                vectors[turn] = (taken[0], int(turn.partition(".")[2]))
    own: dict[str, dict[int, list[str]]] = {}
    for name, read in parameters.items():
        if len(read) == 1 and (found := vectors.get(next(iter(read)))):
            own.setdefault(found[0], {}).setdefault(found[1], []).append(name)
    names, ops, reached = Names(graph.values), list(graph.ops), list[Reached]()
    for vector, by_place in own.items():
        (count,) = graph.types[vector].shape
        if len({len(by_place.get(place, ())) for place in range(int(count))}) == 1:
            made = Value(names.fresh("taken"), TensorType("bool", (count,)))
            ops.append(Op("aten.ne.Scalar", (Ref(vector), 0), (), (made,)))
            reached.append(Reached(made.name, tuple(name for place in sorted(by_place) for name in by_place[place])))
    outputs = (*graph.outputs, *(one.value for one in reached))
    return replace(graph, ops=tuple(ops), outputs=outputs), reached


def _loops(turns: Collection[str]) -> set[str]:
    return {turn.partition(".")[0] for turn in turns}


def _check(name: str, reader: str, graph: Graph, turns: Mapping[str, str]) -> None:
    turn = turns.get(name, "")
    if not turn or reader == turn:
        return
    op = graph.producers[name]
    if op.name != "index_add" or not _selects_in(turn, op["index"], graph, turns):
        raise on_values(op.source)
    for operand in (arg.name for arg in (op["self"],) if isinstance(arg, Ref)):
        _check(operand, "", graph, turns)


def _selects_in(turn: str, index: Arg, graph: Graph, turns: Mapping[str, str]) -> bool:
    """Whether indices are those of what is selected in a turn."""
    op: Op | None = graph.producers.get(index.name) if isinstance(index, Ref) else None
    while op is not None and op.name in _SAME | _ORDERS | {"unbind"}:
        op = graph.producers.get(op.operands[0])
    if op is None or op.target not in _SELECTIONS or turns.get(op.results[0].name) != turn:
        return False
    mask = graph.producers.get(op.operands[0])
    taken = _part(mask.operands[-1], graph) if mask is not None and mask.target == "aten.__and__.Tensor" else None
    return taken is not None and str(taken[1]) == turn.partition(".")[2]


def without_certain_turns(graph: Graph) -> Graph:
    """The graph without what asks whether a turn is taken, where the turn selects nothing otherwise: the model takes
    it if a sum of numbers that are not negative is more than zero, and selects among those that are not zero."""
    renamed: dict[str, str] = {}
    ops: list[Op] = []
    for op in graph.ops:
        op = op.map_refs(lambda name: renamed.get(name, name))
        if op.target == "aten.__and__.Tensor" and _is_certain(op, graph):
            renamed[op.result.name] = op.operands[0]
        else:
            ops.append(op)
    return replace(graph, ops=tuple(ops)).without_dead_ops() if renamed else graph


def _is_certain(op: Op, graph: Graph) -> bool:
    """Whether `(mask[i] != 0) & (taken[i] != 0)` is its first half: `taken` asks for a sum of it that is not zero."""
    chosen, taken = (_part(name, graph) for name in op.operands)
    if chosen is None or taken is None or chosen[1] != taken[1]:
        return False
    compared = _producer(taken[0], graph)
    if compared is None or compared.name not in ("gt", "greater") or compared.args[1] != 0:
        return False
    summed = _producer(compared.operands[0], graph)
    if summed is None or summed.name != "sum" or summed.get("keepdim"):
        return False
    mask, dims = _plain(summed.operands[0], graph), summed.get("dim")
    rank = len(graph.types[mask].shape)
    sums = isinstance(dims, tuple) and {int(d) % rank for d in dims} == set(range(1, rank))  # type: ignore[arg-type]  # ints by schema
    return sums and mask == _plain(chosen[0], graph) and _is_not_negative(mask, graph)


def _part(name: str, graph: Graph) -> tuple[str, Arg] | None:
    """For `x[i] != 0`, what `x` is, and `i`."""
    op = _producer(name, graph)
    op = _producer(op.operands[0], graph) if op is not None and op.name == "ne" and op.args[1] == 0 else None
    while op is not None and op.name == "squeeze":
        op = _producer(op.operands[0], graph)
    if op is None:
        return None
    if op.name == "select" and op["dim"] == 0:
        return op.operands[0], op["index"]
    start, end = op.get("start"), op.get("end")
    if op.name == "slice" and op["dim"] == 0 and isinstance(start, int) and end == start + 1 and op["step"] == 1:
        return op.operands[0], start
    return None


def _is_not_negative(name: str, graph: Graph) -> bool:
    op = _producer(name, graph)
    if graph.types[name].dtype == "bool" or (op is not None and op.name == "one_hot"):
        return True
    if op is None or op.name not in _ORDERS | {"mul"}:
        return False
    return len(op.operands) == (2 if op.name == "mul" else 1) and all(_is_not_negative(n, graph) for n in op.operands)


def _producer(name: str, graph: Graph) -> Op | None:
    return graph.producers.get(_plain(name, graph))


def _plain(name: str, graph: Graph) -> str:
    """What a value is a copy of."""
    while (op := graph.producers.get(name)) is not None and op.name in _SAME:
        name = op.operands[0]
    return name
