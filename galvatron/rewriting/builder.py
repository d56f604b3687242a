"""A graph under construction, op by op."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Arg, Const, Graph, Op, Ref, Value
from galvatron.ir.names import Names, base_name
from galvatron.ir.ops.schemas import arranged, signature
from galvatron.ir.ops.sizes import ShapeError
from galvatron.ir.ops.table import operator_of
from galvatron.ir.types import Dim, TensorType
from galvatron.ir.verify.computed import BATCHES, computed_types
from galvatron.ir.verify.shapes import expected_dtype, expected_shapes, expected_types

T = TypeVar("T")


class Builder:
    """The graph under construction: rules read what precedes an op here, and emit what takes its place.

    `op` is the op at hand, as the rules have it so far. `reads` counts how often a value is read: by ops that stand, by
    the op at hand, and by those still to come. `differentiable` are the values that a gradient flows through.
    """

    def __init__(self, graph: Graph, trainable: Iterable[str], names: Names) -> None:
        self.types = {value.name: value.type for value in (*graph.inputs, *graph.state)}
        self.state = frozenset(value.name for value in graph.state)
        self.ops: list[Op] = []
        self.reads = Counter(graph.outputs)
        for op in graph.ops:
            self.reads.update(op.operands)
        self.op: Op = Op("", (), (), ())
        self.differentiable = set(self.state.intersection(trainable))
        self._before = graph
        self._producers: dict[str, Op] = {}
        self._names = names
        self._renamed: dict[str, str] = {}
        self._known: dict[tuple[Callable, str], Any] = {}

    def type_of(self, arg: Arg) -> TensorType:
        """The type of the tensor that an argument refers to."""
        assert isinstance(arg, Ref), arg
        return self.types[arg.name]

    def producer(self, arg: Arg) -> Op | None:
        """The op that computes an argument; None for inputs, state and constants."""
        return self._producers.get(arg.name) if isinstance(arg, Ref) else None

    def known(self, find: Callable[[str, Builder], T], name: str) -> T:
        """What `find` says of a value, which is asked once."""
        key = (find, name)
        if key not in self._known:
            self._known[key] = find(name, self)
        return self._known[key]

    def emit(self, target: str, *args: Arg, type_: TensorType | None = None, **kwargs: Arg) -> Ref:
        """Adds an op with one result, at the source line of the op at hand; arguments may be given by parameter.

        Raises:
            GalvatronError: no type is given, and it does not follow from the operands.
        """
        known = signature(target)
        op = Op(target, *arranged(known.parameters if known else (), args, kwargs), (), self.op.source)
        return Ref(self.emit_op(op, type_ or self.inferred(op)).result.name)

    def emit_op(self, op: Op, *types: TensorType) -> Op:
        """Adds an op with new results of these types, and gives it back."""
        op = replace(op, results=tuple(Value(self._names.fresh(base_name(op.target)), type_) for type_ in types))
        self.reads.update(op.operands)
        self._add(op)
        return op

    def reshape(self, arg: Arg, shape: tuple[Dim, ...]) -> Ref:
        """A tensor in another shape of as many elements."""
        assert isinstance(arg, Ref)
        return arg if self.type_of(arg).shape == shape else self.emit("aten.reshape.default", arg, shape)

    def expand(self, arg: Arg, shape: tuple[Dim, ...]) -> Ref:
        """A tensor, broadcast to a shape."""
        assert isinstance(arg, Ref)
        return arg if self.type_of(arg).shape == shape else self.emit("aten.expand.default", arg, shape)

    def cast(self, arg: Arg, dtype: str) -> Ref:
        """A tensor in another element type."""
        assert isinstance(arg, Ref)
        same = self.type_of(arg).dtype == dtype
        return arg if same else self.emit("aten._to_copy.default", arg, dtype=Const("dtype", dtype))

    def inferred(self, op: Op) -> TensorType:
        """The type of the only result of an op.

        Raises:
            GalvatronError: it does not follow from those of the operands.
        """
        shapes, dtype = expected_shapes(op, self.types), self.dtype(op)
        if shapes is None or dtype is None:
            raise GalvatronError(f"a rewrite uses {op.target!r}, the type of whose result is not known")
        return TensorType(dtype, shapes[0])

    def dtype(self, op: Op) -> str | None:
        """The element type that an op gives; None where torch does not take the types of its operands."""
        try:
            given = expected_types(op, self.types) or computed_types(op, self.types, BATCHES[0])
        except ShapeError:
            return None
        if given is None:  # only a real run would tell
            return expected_dtype(op, self.types)
        return given[0].dtype if isinstance(given, tuple) else None

    def take_back(self, count: int) -> None:
        """Drops what was emitted after the first `count` ops."""
        for op in self.ops[count:]:
            self.reads.subtract(op.operands)
        del self.ops[count:]

    def begin(self, op: Op) -> None:
        """Takes the next op of the graph in hand."""
        read = not self._renamed.keys().isdisjoint(op.operands)
        self.op = op.map_refs(self._current) if read else op

    def become(self, op: Op) -> None:
        """Puts another op in the place of the one at hand."""
        self.reads.subtract(self.op.operands)
        self.reads.update(op.operands)
        self.op = op

    def finish(self, replacement: tuple[Ref, ...] | None) -> None:
        """Adds the op at hand, or puts other values in the place of its results."""
        if replacement is None:
            self._add(self.op)
            return
        self.reads.subtract(self.op.operands)
        for value, ref in zip(self.op.results, replacement, strict=True):
            self._renamed[value.name] = ref.name
            self.reads[ref.name] += self.reads.pop(value.name, 0)

    @property
    def graph(self) -> Graph:
        """What stands, less ops and state that nobody reads."""
        outputs = tuple(map(self._current, self._before.outputs))
        live = replace(self._before, ops=tuple(self.ops), outputs=outputs).without_dead_ops()
        read = {name for op in live.ops for name in op.operands} | set(outputs)
        return replace(live, state=tuple(value for value in live.state if value.name in read))

    def _current(self, name: str) -> str:
        return self._renamed.get(name, name)

    def _add(self, op: Op) -> None:
        self.ops.append(op)
        reads_differentiable = not operator_of(op).stops_gradient and not self.differentiable.isdisjoint(op.operands)
        for value in op.results:
            self.types[value.name] = value.type
            self._producers[value.name] = op
            if reads_differentiable and value.type.is_floating:
                self.differentiable.add(value.name)
