"""Selections by a mask (`x[mask]`, `masked_select`, `nonzero`), whose sizes depend on values, as all rows.

In a program a selection is dense: all rows that could be selected, of which those that are not are zero, with the mask
beside them. An op that treats each row by itself is applied to all of them (`all_rows`); what sums over rows is given
those that are not selected as zero (`reduced_rows`), and a size is a sum over the mask. So what follows a selection is
made of ordinary ops, to be sharded and cut into micro-batches as others.

Where that would not be exact, in values or in gradients, the line is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace

import sympy
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from galvatron.ir.capture.all_rows import AllRows, has_counts
from galvatron.ir.capture.reduced_rows import REDUCED
from galvatron.ir.capture.rows import Selection, of_selection, unlike_rows
from galvatron.ir.graph import Arg, Graph, Op, Ref
from galvatron.ir.ops.schemas import signature
from galvatron.ir.ops.table import operator_of
from galvatron.ir.types import Dim, TensorType

__all__ = ["of_selection", "selected_sizes", "with_all_rows"]

_SELECT = frozenset(
    ("aten.index.Tensor", "aten.masked_select.default", "aten.nonzero.default", "aten.nonzero_numpy.default",
     "aten.where.default")
)  # fmt: skip
"""The ops whose results may have sizes that are numbers of selected rows."""

_CASTS = frozenset(("_to_copy", "to", "alias", "clone", "contiguous", "detach"))


def selected_sizes(graph: fx.Graph) -> frozenset[sympy.Symbol]:
    """The symbols of a trace that are numbers of rows which a mask selects."""
    nodes = (node for node in graph.nodes if node.op == "call_function" and str(node.target) in _SELECT)
    return frozenset(symbol for node in nodes for symbol in free_unbacked_symbols(node.meta["val"]))


def with_all_rows(graph: Graph) -> Graph:
    """A captured graph with each selection by a mask as all rows that could be selected.

    Raises:
        CaptureError: what becomes of a selection is nothing that all rows could stand for.
    """
    if not any(_selects(op, graph.types) or has_counts(op) for op in graph.ops):
        return graph
    return _Dense(graph).graph()


def _selects(op: Op, types: Mapping[str, TensorType]) -> bool:
    """Whether an op reads, or writes, rows that a mask selects, and not one number for all of them."""
    if op.name in ("index", "index_put"):
        indices = op["indices"]
        assert isinstance(indices, tuple)
        masks = any(types[index.name].dtype == "bool" for index in indices if isinstance(index, Ref))
        return masks and (op.name == "index" or any(size != 1 for size in types[op.operands[-1]].shape))
    return op.target in _SELECT


def _numbered(graph: Graph) -> dict[str, int]:
    """Equal numbers for values of a graph that are computed alike."""
    numbers: dict[str, int] = {}
    known: dict[Hashable, int] = {}
    for value in (*graph.inputs, *graph.state):
        numbers[value.name] = len(numbers)
    for op in graph.ops:
        named = replace(op.map_refs(lambda name: str(numbers[name])), results=())
        schema = signature(op.target)
        draws = operator_of(op).draws is not None or schema is None or schema.random
        key: Hashable = op.results if draws and op.target not in _SELECT else named
        for place, value in enumerate(op.results):
            numbers[value.name] = known.setdefault((key, place, value.type.dtype), len(graph.state) + len(numbers) + 1)
    return numbers


class _Dense:
    """A graph that is made anew, op by op, with all rows of each selection."""

    def __init__(self, graph: Graph) -> None:
        self._before = graph
        self._rows = AllRows(graph)
        self._numbers = _numbered(graph)
        self._selections: dict[Hashable, Selection] = {}
        self._flats: dict[Hashable, Ref] = {}
        self._places: dict[str, tuple[Selection, tuple[int, ...]]] = {}
        """Indices of the rows that are selected, by name: along which dims of the mask; they are never computed."""

    def graph(self) -> Graph:
        for op in self._before.ops:
            self._rows.begin(op)
            self._add(op)
        for name in self._before.outputs:
            if name in self._places or self._rows.selected(self._rows.current(name)):
                raise of_selection(self._before.producers[name].source, "size")
        return replace(self._before, ops=tuple(self._rows.ops)).without_dead_ops()

    def _add(self, op: Op) -> None:
        handler = _HANDLERS.get(op.name)
        if any(name in self._places for name in op.operands):
            handler = _OF_PLACES.get(op.name, _Dense._refused)
            if (op.operands[0] in self._places) != (handler is _Dense._columns):
                raise of_selection(op.source, "size")
        elif handler is None or not (_selects(op, self._before.types) or self._reads_selected(op)):
            handler = None
        if handler is None or not handler(self, op):
            self._rows.apply(op)

    def _reads_selected(self, op: Op) -> bool:
        return any(self._rows.selected(self._rows.current(name)) for name in op.operands)

    def _refused(self, op: Op) -> bool:
        raise of_selection(op.source, "size")

    # What selects.

    def _selection(self, mask: str, shape: tuple[Dim, ...] | None = None) -> Selection:
        """What a mask selects, perhaps one that is broadcast to a shape; one that is itself made of selected rows
        selects among these."""
        rows, name = self._rows, self._rows.current(mask)
        within = rows.selected(name)
        type_ = rows.types[name]
        shape = type_.shape if shape is None else shape
        key = (self._numbers[mask], shape)
        if key not in self._selections:
            if within and not (len(type_.shape) == 1 and shape == type_.shape):
                raise of_selection(rows.source, "size")
            whole = rows.expand(self._truth(name), shape)
            flat = self._flat(mask, whole)
            if within:
                outer = Ref(within[0].flat)
                flat = whole = rows.emit("aten.logical_and.default", flat, outer, type_=rows.types[outer.name])
            self._selections[key] = Selection(whole.name, flat.name, shape, within.get(0))
        return self._selections[key]

    def _truth(self, mask: str) -> Ref:
        type_ = self._rows.types[mask]
        if type_.dtype == "bool":
            return Ref(mask)
        return self._rows.emit("aten.ne.Scalar", Ref(mask), 0, type_=replace(type_, dtype="bool"))

    def _flat(self, mask: str, whole: Ref) -> Ref:
        """A mask with one dimension: the same for all views of it."""
        type_ = self._rows.types[whole.name]
        key: Hashable = self._numbers[mask], type_.shape
        if self._before.types[mask].shape == type_.shape and not self._rows.selected(self._rows.current(mask)):
            while (op := self._before.producers.get(mask)) and op.name in ("reshape", "view", "flatten"):
                mask = op.operands[0]
            key = self._numbers[mask], type_.numel
        if key not in self._flats:
            self._flats[key] = self._rows.reshape(whole, (type_.numel,))
        return self._flats[key]

    def _index(self, op: Op) -> bool:
        """`x[:, mask]`, with one mask and nothing else."""
        indices = op.args[1]
        assert isinstance(indices, tuple)
        found = [(place, index) for place, index in enumerate(indices) if isinstance(index, Ref)]
        if not any(self._before.types[index.name].dtype == "bool" for _, index in found):
            return False
        if len(found) != 1:
            raise of_selection(op.source, "size")
        ((place, index),) = found
        selection = self._selection(index.name)
        self._select(op, selection, tuple(range(len(selection.shape))), place)
        return True

    def _masked_select(self, op: Op) -> bool:
        value, mask = (arg for arg in op.args if isinstance(arg, Ref))
        value = self._rows.now(value)
        shape = _broadcast(self._rows.types[value.name].shape, self._before.types[mask.name].shape)
        if self._rows.types[value.name].shape != shape and not self._rows.selected(value.name):
            value = self._rows.expand(value, shape)
        if self._rows.selected(value.name) and len(shape) != 1:
            raise of_selection(op.source, "size")
        selection = self._selection(mask.name, None if self._rows.selected(value.name) else shape)
        self._select(op, selection, tuple(range(len(selection.shape))), 0, value)
        return True

    def _where(self, op: Op) -> bool:
        """`torch.where(mask)` and its like: a list of indices for each dim of the mask."""
        if op.overload != "default" or len(op.args) != 1:
            return False
        selection = self._selection(op.operands[0])
        for dim, value in enumerate(op.results):
            self._rows.symbolic(value.type.shape[0], selection, op)
            self._places[value.name] = selection, (dim,)
        return True

    def _nonzero(self, op: Op) -> bool:
        selection = self._selection(op.operands[0])
        self._rows.symbolic(op.result.type.shape[0], selection, op)
        self._places[op.result.name] = selection, tuple(range(len(selection.shape)))
        return True

    def _select(
        self, op: Op, selection: Selection, dims: tuple[int, ...], place: int, value: Ref | None = None
    ) -> None:
        """A value, the first operand, at the rows that are selected: its dims from a place on are these of the mask."""
        rows = self._rows
        value = rows.now(op.args[0]) if value is None else value
        shape, inside = rows.types[value.name].shape, range(place, place + len(dims))
        selected = rows.selected(value.name)
        if any(selected.get(dim) != selection.within for dim in inside) or (selection.within and len(dims) != 1):
            raise of_selection(op.source, "size")
        if selection.within is None and [shape[at] for at in inside] != [selection.shape[dim] for dim in dims]:
            raise of_selection(op.source, "size")  # indices into what is larger than the mask
        after = shape[place + len(dims) :]
        order = [place + dims.index(dim) for dim in sorted(dims)]
        value = rows.permute(value, (*range(place), *order, *range(place + len(dims), len(shape))))
        lacking = tuple(1 if dim not in dims else size for dim, size in enumerate(selection.shape))
        value = rows.reshape(value, (*shape[:place], *lacking, *after))
        value = rows.expand(value, (*shape[:place], *selection.shape, *after))
        value = rows.reshape(value, (*shape[:place], selection.size, *after))
        moved = {dim if dim < place else dim - len(dims) + 1: s for dim, s in selected.items() if dim not in inside}
        rows.symbolic(op.result.type.shape[place], selection, op)
        rows.become(op, rows.zeroed(value, {place: selection}), {**moved, place: selection})

    # Indices of what is selected.

    def _columns(self, op: Op) -> bool:
        """The columns of a list of indices."""
        selection, dims = self._places[op.operands[0]]
        rank = len(self._before.types[op.operands[0]].shape)
        if op.name in ("unbind", "split", "chunk") and len(op.results) == len(dims):
            columns = [(dim,) for dim in dims]
        elif op.name == "select" and int(op["dim"]) % rank == 1:  # type: ignore[arg-type]  # ints by schema
            columns = [(dims[int(op["index"])],)]  # type: ignore[arg-type]
        elif op.name in ("squeeze", "reshape", "view", "flatten", *_CASTS) and len(dims) == 1:
            columns = [dims]
        else:
            raise of_selection(op.source, "size")
        if any(value.type.shape[:1] != self._before.types[op.operands[0]].shape[:1] for value in op.results):
            raise of_selection(op.source, "size")
        self._places.update((value.name, (selection, dims)) for value, dims in zip(op.results, columns, strict=True))
        return True

    def _at(self, op: Op, indices: Iterable[Arg]) -> tuple[Selection, tuple[int, ...], int]:
        """The selection that indices of one tensor say, along which dims of its mask, and where the first stands."""
        refs = [(at, index.name) for at, index in enumerate(indices) if isinstance(index, Ref)]
        found = [(at, self._places.get(name)) for at, name in refs]
        selection = found[0][1]
        if selection is None or any(len(self._before.types[name].shape) != 1 for _, name in refs):
            raise of_selection(op.source, "size")
        dims: list[int] = []
        for offset, (at, place) in enumerate(found):
            if place is None or place[0] is not selection[0] or len(place[1]) != 1 or at != found[0][0] + offset:
                raise of_selection(op.source, "size")
            dims.extend(place[1])
        if len(set(dims)) != len(dims):
            raise of_selection(op.source, "size")
        return selection[0], tuple(dims), found[0][0]

    def _index_at(self, op: Op) -> bool:
        indices = op.args[1]
        assert isinstance(indices, tuple)
        self._select(op, *self._at(op, indices))
        return True

    def _index_select_at(self, op: Op) -> bool:
        rank = len(self._before.types[op.operands[0]].shape)
        selection, dims, _ = self._at(op, (op["index"],))
        self._select(op, selection, dims, int(op["dim"]) % rank)  # type: ignore[arg-type]  # an int by schema
        return True

    def _index_add_at(self, op: Op) -> bool:
        """Rows that are added where they were selected: all of them, along the dim of the mask."""
        rows = self._rows
        selection, (dim,), _ = self._at(op, (op["index"],))
        target, source = rows.now(op["self"]), rows.now(op["source"])
        shape = rows.types[target.name].shape
        place = int(op["dim"]) % len(shape)  # type: ignore[arg-type]  # an int by schema
        if op["alpha"] != 1 or rows.selected(target.name) or rows.selected(source.name) != {place: selection}:
            raise of_selection(op.source, "size")
        if shape[place] != selection.shape[dim] or rows.types[source.name].shape != (
            *shape[:place],
            selection.size,
            *shape[place + 1 :],
        ):
            raise of_selection(op.source, "size")
        source = rows.zeroed(source, {place: selection})
        source = rows.reshape(source, (*shape[:place], *selection.shape, *shape[place + 1 :]))
        others = tuple(place + other for other in range(len(selection.shape)) if other != dim)
        if others:
            type_ = rows.types[target.name]
            source = rows.emit("aten.sum.dim_IntList", source, others, type_=type_)
        rows.put(op, "aten.add.Tensor", target, source, type_=rows.types[target.name])
        return True

    def _index_put(self, op: Op) -> bool:
        """Rows that take the place of those, or are added to those, that a mask or its indices select."""
        rows, indices = self._rows, op["indices"]
        assert isinstance(indices, tuple)
        values = rows.now(op["values"])
        found = [index for index in indices if isinstance(index, Ref)]
        at_places = any(index.name in self._places for index in found)
        if not at_places and (len(found) != 1 or self._before.types[found[0].name].dtype != "bool"):
            return False
        if not at_places and not _selects(op, self._before.types) and not rows.selected(values.name):
            return False  # a number for all of them
        target = rows.now(op["self"])
        if at_places:
            selection, dims, place = self._at(op, indices)
        else:
            selection, place = self._selection(found[0].name), indices.index(found[0])
            dims = tuple(range(len(selection.shape)))
        shape = rows.types[target.name].shape
        full = (*shape[:place], selection.size, *shape[place + len(dims) :])
        taken = rows.selected(target.name)
        if dims != tuple(range(len(selection.shape))) or rows.selected(values.name) not in ({}, {place: selection}):
            raise of_selection(op.source, "size")
        if any(taken.get(place + dim) != selection.within for dim in dims) or len(taken) > 1:
            raise of_selection(op.source, "size")
        given = rows.types[values.name].shape
        if selection.within is None and shape[place : place + len(dims)] != selection.shape:
            raise of_selection(op.source, "size")
        if rows.selected(values.name):
            if given != full:
                raise of_selection(op.source, "size")
            values = rows.reshape(values, shape)
        else:  # what is the same for all of them
            after = len(shape) - place - len(dims)
            if len(given) > after and given[len(given) - after - 1] != 1:
                raise of_selection(op.source, "size")
            if len(given) > after:
                cut = len(given) - after
                values = rows.reshape(values, (*given[: cut - 1], *[1] * len(dims), *given[cut:]))
            values = rows.expand(values, shape)
        mask = rows.reshape(Ref(selection.mask), (*selection.shape, *[1] * (len(shape) - place - len(dims))))
        if op["accumulate"]:
            zero = rows.where(mask, values, 0)
            rows.put(op, "aten.add.Tensor", target, zero, type_=rows.types[target.name], selected=taken)
        else:
            rows.put(op, "aten.where.self", mask, values, target, type_=rows.types[target.name], selected=taken)
        return True

    def _ctc(self, op: Op) -> bool:
        """Targets of all samples in one row, which a mask of samples and places has selected: a row for each sample,
        in which they stand on the left."""
        rows = self._rows
        targets, lengths = rows.now(op["targets"]), op["target_lengths"]
        selected = rows.selected(targets.name)
        if not isinstance(lengths, Ref) or list(selected) != [0] or len(rows.types[targets.name].shape) != 1:
            raise unlike_rows(op)
        selection = selected[0]
        mask = self._counted(lengths.name, selection)
        if mask is None:
            own = "count them as the sum of the mask that selects the targets, or pad the targets of each sample"
            raise unlike_rows(op, "the lengths of the targets are not those of what is selected in each sample", own)
        wide = rows.types[mask.name]
        order = rows.sorted(rows.cast(mask, "i32"), replace(wide, dtype="i32"))
        targets = rows.reshape(targets, wide.shape)
        left = rows.emit("aten.gather.default", targets, 1, order, type_=rows.types[targets.name])
        rows.put_op(rows.renewed(op).changed(targets=left), {})
        return True

    def _counted(self, name: str, selection: Selection) -> Ref | None:
        """The mask of a selection, if a value is how many elements of each of its rows are selected."""
        op = self._before.producers.get(name)
        while op is not None and op.name in _CASTS:
            op = self._before.producers.get(op.operands[0])
        if op is None or op.name != "sum" or op.get("dim") not in ((-1,), (1,)) or op.get("keepdim"):
            return None
        mask = op.operands[0]
        while (cast := self._before.producers.get(mask)) is not None and cast.name in _CASTS:
            mask = cast.operands[0]
        type_ = self._before.types[mask]
        if type_.dtype != "bool" or len(type_.shape) != 2 or selection.within:
            return None
        found = self._selection(mask)
        return Ref(found.mask) if found == selection else None


def _of_rows(reduce: Callable[[AllRows, Op], bool]) -> Callable[[_Dense, Op], bool]:
    return lambda dense, op: reduce(dense._rows, op)


_HANDLERS: dict[str, Callable[[_Dense, Op], bool]] = {
    "index": _Dense._index,
    "masked_select": _Dense._masked_select,
    "where": _Dense._where,
    "nonzero": _Dense._nonzero,
    "nonzero_numpy": _Dense._where,
    "index_put": _Dense._index_put,
    "ctc_loss": _Dense._ctc,
    **{name: _of_rows(reduce) for name, reduce in REDUCED.items()},
}
"""What becomes of an op that selects, or that reads what is selected and is no function of each row; False where it is
one all the same."""

_OF_PLACES: dict[str, Callable[[_Dense, Op], bool]] = {
    "index": _Dense._index_at,
    "index_select": _Dense._index_select_at,
    "index_add": _Dense._index_add_at,
    "index_put": _Dense._index_put,
    **dict.fromkeys(
        ("unbind", "split", "chunk", "select", "squeeze", "reshape", "view", "flatten", *_CASTS), _Dense._columns
    ),
}
"""What becomes of an op that reads indices of what is selected."""


def _broadcast(one: tuple[Dim, ...], other: tuple[Dim, ...]) -> tuple[Dim, ...]:
    rank = max(len(one), len(other))
    padded = ((1,) * (rank - len(shape)) + shape for shape in (one, other))
    return tuple(b if a == 1 else a for a, b in zip(*padded, strict=True))
