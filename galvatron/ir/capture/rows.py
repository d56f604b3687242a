"""A graph under construction in which some dimensions hold more rows than the model has selected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import sympy

from galvatron.errors import CaptureError
from galvatron.ir.capture.sources import advice, located
from galvatron.ir.graph import Arg, Const, Graph, Op, Ref, Source, Value
from galvatron.ir.names import Names, base_name
from galvatron.ir.types import Dim, TensorType, simplify_dim


def of_selection(source: Source | None, what: str) -> CaptureError:
    """For a size or a number that depends on how many rows are selected."""
    return CaptureError(
        f"{located(source)}a {what} depends on the values of a tensor, which are not known in advance: "
        f"{advice(source, 'use masks and torch.where in place of it')}"
    )


def unlike_rows(op: Op, why: str = "", own: str = "") -> CaptureError:
    """For an op that all rows cannot be given in the place of those that are selected."""
    why = why or f"{op.name} does not treat each selected row by itself"
    own = own or "use masks and torch.where in place of the selection"
    return CaptureError(
        f"{located(op.source)}a size depends on the values of a tensor, which are not known in advance, and "
        f"{why}: {advice(op.source, own)}"
    )


@dataclass(frozen=True)
class Selection:
    """The rows that a mask selects, in the mask's order; equal to others where they are the same rows.

    Attributes:
        mask: the name of the mask, of this shape.
        flat: the name of the same with a single dimension.
        within: what it selects among, if that is selected itself.
    """

    mask: str = field(compare=False)
    flat: str
    shape: tuple[Dim, ...] = field(compare=False)
    within: Selection | None = field(default=None, compare=False)

    @property
    def size(self) -> Dim:
        """The number of all rows."""
        return simplify_dim(math.prod(self.shape, start=sympy.Integer(1)))


Selected = Mapping[int, Selection]
"""The dims of a value that hold all rows of a selection."""


class Rows:
    """The graph under construction, op by op: `begin` takes the next op of the graph before, and something is put in
    its place."""

    def __init__(self, graph: Graph) -> None:
        self.types = {value.name: value.type for value in (*graph.inputs, *graph.state)}
        self.ops: list[Op] = []
        self.source: Source | None = None
        self.names = Names(graph.values)
        self._current: dict[str, str] = {}
        self._selected: dict[str, Selected] = {}
        self._filled: dict[str, tuple[Ref, Selected, Arg] | None] = {}
        """Of a value with a number in the place of rows that are not selected: what it was before, where, and which."""
        self.sizes: dict[sympy.Symbol, Selection | None] = {}
        """What a number of selected rows is that of; None of several that torch takes to be the same."""
        self._counts: dict[str, Ref] = {}

    def begin(self, op: Op) -> None:
        """New ops are at the line of this one."""
        self.source = op.source

    def current(self, name: str) -> str:
        """What stands for a value of the graph before."""
        return self._current.get(name, name)

    def now(self, arg: Arg) -> Ref:
        """What stands for an argument."""
        assert isinstance(arg, Ref), arg
        return Ref(self.current(arg.name))

    def renewed(self, op: Op) -> Op:
        """An op on what stands for its operands."""
        return op.map_refs(self.current)

    def selected(self, name: str) -> Selected:
        """The dims of a value under construction that hold rows of a selection."""
        return self._selected.get(name, {})

    def symbolic(self, size: Dim, selection: Selection, op: Op) -> None:
        """Takes note of the number of rows that a selection has, as the trace has it."""
        if isinstance(size, sympy.Symbol) and self.sizes.setdefault(size, selection) != selection:
            self.sizes[size] = None

    # New ops.

    def emit(self, target: str, *args: Arg, type_: TensorType, **kwargs: Arg) -> Ref:
        value = Value(self.names.fresh(base_name(target)), type_)
        self._put(Op(target, args, tuple(kwargs.items()), (value,), self.source).by_position())
        return Ref(value.name)

    def reshape(self, value: Ref, shape: tuple[Dim, ...]) -> Ref:
        type_ = self.types[value.name]
        if type_.shape == shape:
            return value
        return self.emit("aten.reshape.default", value, shape, type_=type_.with_shape(shape))

    def expand(self, value: Ref, shape: tuple[Dim, ...]) -> Ref:
        type_ = self.types[value.name]
        if type_.shape == shape:
            return value
        return self.emit("aten.expand.default", value, shape, type_=type_.with_shape(shape))

    def permute(self, value: Ref, order: tuple[int, ...]) -> Ref:
        type_ = self.types[value.name]
        if order == tuple(range(len(order))):
            return value
        shape = tuple(type_.shape[dim] for dim in order)
        return self.emit("aten.permute.default", value, order, type_=type_.with_shape(shape))

    def cast(self, value: Ref, dtype: str) -> Ref:
        type_ = self.types[value.name]
        if type_.dtype == dtype:
            return value
        return self.emit("aten._to_copy.default", value, type_=replace(type_, dtype=dtype), dtype=Const("dtype", dtype))

    def where(self, mask: Ref, value: Ref, otherwise: Arg) -> Ref:
        """A value where a mask is true, and elsewhere a number."""
        type_ = self.types[value.name]
        assert isinstance(otherwise, (int, float))
        number = float(otherwise) if type_.is_floating else bool(otherwise) if type_.dtype == "bool" else int(otherwise)
        return self.emit("aten.where.ScalarOther", mask, value, number, type_=type_)

    def filled(self, value: Ref, selected: Selected, otherwise: Arg) -> Ref:
        """A value with a number in the place of rows that are not selected."""
        before = self._filled.get(value.name)
        if before is not None and before[1] == selected:
            if before[2] == otherwise:
                return value
            value = before[0]
        found, rank = value, len(self.types[value.name].shape)
        for dim, selection in selected.items():
            mask = self.reshape(Ref(selection.flat), (selection.size, *[1] * (rank - dim - 1)))
            found = self.where(mask, found, otherwise)
        self._filled[found.name] = value, selected, otherwise
        return found

    def zeroed(self, value: Ref, selected: Selected) -> Ref:
        """A value with zero in the place of rows that are not selected."""
        return self.filled(value, selected, 0)

    def sorted(self, mask: Ref, type_: TensorType) -> Ref:
        """The places of a mask's last dim, those where it is true first, otherwise in their order."""
        values = Value(self.names.fresh("sort"), type_), Value(self.names.fresh("sort"), replace(type_, dtype="i64"))
        kwargs = (("stable", True), ("dim", -1), ("descending", True))
        self._put(Op("aten.sort.stable", (mask,), kwargs, values, self.source))
        return Ref(values[1].name)

    def sum(self, value: Ref, dims: tuple[int, ...], keep: bool, dtype: str) -> Ref:
        type_ = self.types[value.name]
        wide = _wide(dtype)
        shape = [1 if dim in dims else size for dim, size in enumerate(type_.shape) if keep or dim not in dims]
        kwargs = {} if type_.dtype == wide else {"dtype": Const("dtype", wide)}
        keepdim = (True,) if keep else ()
        made = TensorType(wide, tuple(shape))
        return self.cast(self.emit("aten.sum.dim_IntList", value, dims, *keepdim, type_=made, **kwargs), dtype)

    def count(self, selection: Selection) -> Ref:
        """How many rows are selected, a whole number."""
        if selection.flat not in self._counts:
            type_ = TensorType("i64", ())
            self._counts[selection.flat] = self.emit("aten.sum.dim_IntList", Ref(selection.flat), (0,), type_=type_)
        return self._counts[selection.flat]

    def times(self, count: Ref, factor: Arg) -> Ref:
        """A whole number, times another."""
        return count if factor == 1 else self.emit("aten.mul.Tensor", count, factor, type_=self.types[count.name])

    def quotient(self, total: Ref, divisor: Ref, dtype: str) -> Ref:
        type_ = self.types[total.name]
        wide = self.cast(total, _wide(dtype))
        made = self.emit("aten.div.Tensor", wide, divisor, type_=replace(type_, dtype=_wide(dtype)))
        return self.cast(made, dtype)

    def put(self, op: Op, target: str, *args: Arg, type_: TensorType, selected: Selected | None = None) -> None:
        """Puts another op in the place of one, whose result gets a type."""
        results = (replace(op.result, type=type_),)
        self.put_op(replace(op, target=target, args=args, kwargs=(), results=results), selected or {})

    def put_op(self, op: Op, selected: Selected) -> None:
        """Adds an op whose results are as before, or hold rows of a selection."""
        self._put(op)
        if selected:
            self._selected.update((value.name, selected) for value in op.results)

    def become(self, op: Op, value: Ref, selected: Selected) -> None:
        """Puts a value, which was added last, in the place of the only result of an op."""
        made = self.ops.pop()
        assert made.result.name == value.name, made
        type_, wanted = made.result.type, op.result.type
        if type_.dtype != wanted.dtype or len(type_.shape) != len(wanted.shape):
            raise of_selection(op.source, "size")
        self.put_op(replace(made, results=(replace(op.result, type=type_),)), selected)
        self._filled[op.result.name] = self._filled.pop(value.name, None)

    def alias(self, name: str, value: str) -> None:
        """Puts a value in the place of another, which is the same."""
        self._current[name] = value

    def _put(self, op: Op) -> None:
        self.ops.append(op)
        self.types.update((value.name, value.type) for value in op.results)


def _wide(dtype: str) -> str:
    """The type in which numbers are added up that are kept in another."""
    return "f32" if dtype in ("f16", "bf16") else dtype
