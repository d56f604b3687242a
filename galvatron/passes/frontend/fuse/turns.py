"""Turns of a loop over experts, of which each row is in one turn only, as one computation of all rows.

A sum has a term for each expert: what the rows that have chosen it become, and zero for all others. Every row has
chosen one, so that the terms are one value, made as they are made, with the matrices that each row chooses in the place
of those of the turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from galvatron.ir.graph import Arg, Const, Op, Ref, map_refs
from galvatron.ir.ops.table import is_pointwise
from galvatron.ir.random import is_random
from galvatron.ir.types import Dim
from galvatron.passes.frontend.fuse.experts import bound_of, grouped, rows_beside
from galvatron.rewriting import Builder

_LINEAR = frozenset(("reshape", "unsqueeze", "squeeze", "permute", "transpose", "sum", "_to_copy"))
"""What may be done to each term of a sum or to the sum."""
_TAKES = frozenset(("aten.where.ScalarOther", "aten.where.self"))
_MASK_VIEWS = frozenset(("reshape", "unsqueeze", "squeeze"))
_MOST_OPS = 256
"""In one turn."""


@dataclass(frozen=True)
class _Choice:
    """A mask of the rows that choose `index`: those whose id it is, of `ids` with their dims in an order."""

    ids: Ref
    order: tuple[int, ...]
    index: int


@dataclass(frozen=True)
class _Term:
    """Linear `steps`, the last one first, on rows that are zero where a mask does not hold."""

    steps: tuple[Op, ...]
    choice: _Choice
    rows: Ref


def turns_as_one(op: Op, build: Builder) -> Ref | None:
    """The sum of one term for each expert, at the op that adds the last."""
    last = _term(op.args[1], build)
    count = bound_of(last.choice.ids, build) if last else None
    if last is None or count is None:
        return None
    found = _terms(op, count, build)
    if found is None or {term.choice.index for term in found[1]} != set(range(count)):
        return None
    base, terms = found
    terms = sorted(terms, key=lambda term: term.choice.index)
    before = len(build.ops)
    turn = _Turn(last.choice, build)
    rows = turn.rows([term.rows.name for term in terms])
    if rows is None or not turn.products:
        build.take_back(before)
        return None
    rows = turn.in_turn(rows)
    for step in reversed(last.steps):
        made = build.emit_op(replace(step, args=(rows, *step.args[1:])), step.result.type)
        rows = Ref(made.result.name)
    return rows if _is_zero(base, build) and build.type_of(rows) == op.result.type else _added(base, rows, op, build)


def _added(base: Ref, rows: Ref, op: Op, build: Builder) -> Ref:
    return build.emit("aten.add.Tensor", base, rows, type_=op.result.type)


def _terms(op: Op, count: int, build: Builder) -> tuple[Ref, list[_Term]] | None:
    """What a sum begins with, and its last terms, which are alike but for the index of their mask."""
    terms: list[_Term] = []
    while True:
        base, term = op.args[0], _term(op.args[1], build)
        if term is None or op.get("alpha") != 1 or not isinstance(base, Ref):
            return None
        if terms and not _is_alike(term, terms[0]):
            return None
        terms.append(term)
        if len(terms) == count:
            return base, terms
        before = build.producer(base)
        if before is None or before.target != "aten.add.Tensor" or build.reads[base.name] != 1:
            return None
        op = before


def _is_alike(term: _Term, other: _Term) -> bool:
    steps = zip(term.steps, other.steps, strict=False)
    same = len(term.steps) == len(other.steps) and all(_frame(a) == _frame(b) for a, b in steps)
    return same and (term.choice.ids, term.choice.order) == (other.choice.ids, other.choice.order)


def _frame(op: Op) -> tuple[object, ...]:
    """An op less the names of its operands."""
    arguments = map_refs((*op.args, *(value for _, value in op.kwargs)), lambda _: "")
    return op.target, arguments, tuple(key for key, _ in op.kwargs), tuple(value.type for value in op.results)


def _term(arg: Arg, build: Builder) -> _Term | None:
    steps: list[Op] = []
    while (op := build.producer(arg)) is not None and op.name in _LINEAR:
        steps.append(op)
        arg = op.args[0]
    if op is None or op.target not in _TAKES or not _is_zero(op["other"], build):
        return None
    mask, rows = op.args[:2]
    choice = _choice(mask, build)
    if choice is None or not isinstance(rows, Ref) or not _covers(mask, op, build):
        return None
    return _Term(tuple(steps), choice, rows)


def _covers(mask: Arg, where: Op, build: Builder) -> bool:
    """Whether a mask says of each row along dim 0 whether it is taken, and of nothing smaller."""
    shape, rows = build.type_of(mask).shape, where.result.type.shape
    return bool(rows) and shape == (rows[0], *(1 for _ in rows[1:])) and build.type_of(where.args[1]).shape == rows


def _is_zero(arg: Arg, build: Builder) -> bool:
    if not isinstance(arg, Ref):
        return isinstance(arg, (int, float)) and arg == 0
    op = build.producer(arg)
    while op is not None and op.name in ("expand", "reshape"):
        op = build.producer(op.args[0])
    return op is not None and op.name == "full" and op["fill_value"] == 0


def _choice(mask: Arg, build: Builder) -> _Choice | None:
    """What a mask says of rows: `one_hot(ids)` at an index, or `ids == index`, its elements in a row."""
    op = build.producer(mask)
    while op is not None and (op.name in _MASK_VIEWS or _is_as_bool(op)):
        op = build.producer(op.args[0])
    if op is None:
        return None
    if op.target == "aten.eq.Scalar":
        ids, index = op.args
        assert isinstance(ids, Ref)
        return _Choice(ids, tuple(range(len(build.type_of(ids).shape))), index) if type(index) is int else None
    return _one_hot(op, build)


def _is_as_bool(op: Op) -> bool:
    return (op.target == "aten.ne.Scalar" and op.args[1] == 0) or (
        op.name == "_to_copy" and op.result.type.dtype == "bool"
    )


def _one_hot(op: Op, build: Builder) -> _Choice | None:
    """A place of the last dimension of `one_hot(ids)`, with its dims in some order."""
    if op.target not in ("aten.select.int", "aten.slice.Tensor"):
        return None
    index, dim, source = op.get("index"), op["dim"], build.producer(op["self"])
    if op.name == "slice" and op.result.type.shape[int(dim)] == 1:  # type: ignore[arg-type]  # an int by schema
        index = op["start"]
    if type(index) is not int or type(dim) is not int:
        return None
    order = tuple(range(len(build.type_of(op["self"]).shape)))
    while source is not None and source.name in ("permute", "transpose"):
        order = tuple(_inner(source, len(order))[i] for i in order)
        source = build.producer(source.args[0])
    if source is None or source.name != "one_hot" or index < 0:
        return None
    ids, place = source.args[0], order[dim]
    assert isinstance(ids, Ref)
    return _Choice(ids, (*order[:dim], *order[dim + 1 :]), index) if place == len(order) - 1 else None


def _inner(op: Op, rank: int) -> tuple[int, ...]:
    """Which dim of its operand each dim of a reordered tensor is."""
    if op.name == "permute":
        dims = op["dims"]
        assert isinstance(dims, tuple)
        return tuple(int(d) for d in dims)  # type: ignore[arg-type]  # ints by schema
    order = list(range(rank))
    a, b = op["dim0"], op["dim1"]
    assert isinstance(a, int) and isinstance(b, int)
    order[a], order[b] = order[b], order[a]
    return tuple(order)


@dataclass(frozen=True)
class _Same:
    """A value that all turns have."""

    ref: Ref


@dataclass(frozen=True)
class _Rows:
    """A value of rows, each as it is in the turn that takes it."""

    ref: Ref


@dataclass(frozen=True)
class _Own:
    """A value of a turn, of which the table has those of all turns along dim 0."""

    table: Ref


_Value = _Same | _Rows | _Own


class _Turn:
    """Values of all turns in one, each row as it is in the turn that takes it.

    Masks may have the rows in another order than the ids, all first choices before all second ones. What is made here
    is in the order of the ids, in which the rows of a sample are beside each other.
    """

    def __init__(self, choice: _Choice, build: Builder) -> None:
        self._choice, self._build = choice, build
        self._known: dict[tuple[str, ...], _Value | None] = {}
        ids = build.type_of(choice.ids)
        self._shape, self._count = ids.shape, ids.numel
        self._ids: Ref | None = None
        self._reordered: dict[str, Ref] = {}
        self.products = 0

    def rows(self, names: Sequence[str]) -> Ref | None:
        """The value of all rows, given what it is called in each turn; None if it is not known."""
        found = self._value(tuple(names))
        return None if found is None or isinstance(found, _Own) else self._rows(found)

    def in_turn(self, rows: Ref) -> Ref:
        """Rows in the order of the masks."""
        shape = self._shape
        return self._permuted(rows, shape, self._choice.order)

    def _rows(self, value: _Same | _Rows) -> Ref:
        """The rows of a value, in the order of the ids."""
        if isinstance(value, _Rows):
            return value.ref
        order, name = self._choice.order, value.ref.name
        if name not in self._reordered:
            shape = tuple(self._shape[i] for i in order)
            back = tuple(order.index(i) for i in range(len(order)))
            self._reordered[name] = self._permuted(value.ref, shape, back)
        return self._reordered[name]

    def _permuted(self, rows: Ref, shape: tuple[Dim, ...], order: tuple[int, ...]) -> Ref:
        """Rows that lie as a tensor of some shape does, with its dims in another order."""
        if order == tuple(range(len(order))):
            return rows
        build, inner = self._build, self._build.type_of(rows).shape[1:]
        apart = build.reshape(rows, (*shape, *inner))
        dims = (*order, *(len(order) + i for i in range(len(inner))))
        type_ = build.type_of(rows).with_shape((*(shape[i] for i in order), *inner))
        return build.reshape(build.emit("aten.permute.default", apart, dims, type_=type_), (self._count, *inner))

    @property
    def ids(self) -> Ref:
        """The id of each row."""
        if self._ids is None:
            self._ids = self._build.reshape(self._choice.ids, (self._count,))
        return self._ids

    def _value(self, names: tuple[str, ...]) -> _Value | None:
        if len(set(names)) == 1:
            return _Same(Ref(names[0]))
        if names not in self._known:
            self._known[names] = None
            if len(self._known) < _MOST_OPS:
                self._known[names] = self._made(names)
        return self._known[names]

    def _made(self, names: tuple[str, ...]) -> _Value | None:
        build = self._build
        if all(name in build.state for name in names):
            types = {build.types[name] for name in names}
            table = build.emit("aten.stack.default", tuple(map(Ref, names)), 0) if len(types) == 1 else None
            return table and _Own(table)
        ops = [build.producer(Ref(name)) for name in names]
        places = {
            [v.name for v in op.results].index(name) for op, name in zip(ops, names, strict=True) if op is not None
        }
        if None in ops or len(places) != 1:
            return None
        (place,) = places
        return self._of([op for op in ops if op is not None], place)

    def _of(self, ops: list[Op], place: int) -> _Value | None:
        """The value that an op makes in each turn."""
        first = ops[0]
        if first.target == "aten.select.int" and (table := self._table(ops)) is not None:
            return _Own(table)
        if is_random(first) or any(_frame(op) != _frame(first) for op in ops):
            return None
        if first.target in _TAKES and self._takes(ops):
            rows = self._value(tuple(op.operands[1] for op in ops))
            return None if rows is None or isinstance(rows, _Own) else _Rows(self._rows(rows))
        operands = [self._value(names) for names in zip(*(op.operands for op in ops), strict=True)]
        if all(isinstance(value, _Same) for value in operands):
            return _Same(Ref(first.results[place].name))
        read = [value for value in operands if value is not None]
        if len(read) < len(operands):
            return None
        return self._product(first, read) or self._of_own(first, read) or self._row_by_row(ops, read, place)

    def _table(self, ops: list[Op]) -> Ref | None:
        """What has the value of each turn at its index."""
        table = ops[0]["self"]
        fits = all(op["self"] == table and op["dim"] == 0 and op["index"] == i for i, op in enumerate(ops))
        return table if fits and isinstance(table, Ref) else None

    def _takes(self, ops: list[Op]) -> bool:
        """Whether ops take the rows of their turns."""
        for index, op in enumerate(ops):
            choice = _choice(op.args[0], self._build)
            if choice != replace(self._choice, index=index) or not _covers(op.args[0], op, self._build):
                return False
        return True

    def _product(self, op: Op, read: list[_Value]) -> _Value | None:
        """Rows times a matrix of each turn, perhaps with a vector of it added."""
        if op.name not in ("linear", "mm", "matmul", "addmm"):
            return None
        build = self._build
        rows, weight, *added = (*read[1:], read[0]) if op.name == "addmm" else read
        shape = op.result.type.shape
        if isinstance(rows, _Own) or not isinstance(weight, _Own) or len(shape) != 2 or shape[0] != self._count:
            return None
        table = weight.table if op.name == "linear" else build.emit("aten.transpose.int", weight.table, 1, 2)
        if op.kwargs or len(build.type_of(table).shape) != 3:
            return None
        result = grouped(self._rows(rows), table, self.ids, op.result.type, build)
        if result is None:
            return None
        self.products += 1
        for vector in added:
            if isinstance(vector, _Same) and build.type_of(vector.ref).shape[:-1] == (self._count,):
                term = self._rows(vector)
            else:
                term = self._looked_up(vector, 2)
            result = build.emit("aten.add.Tensor", result, term, type_=op.result.type)
        return _Rows(result)

    def _looked_up(self, value: _Value, rank: int) -> Ref:
        """A value for each row, that broadcasts with values of rows of so many dims."""
        if not isinstance(value, _Own):
            return value.ref
        build = self._build
        type_ = build.type_of(value.table)
        inner, count = type_.shape[1:], self._count
        found = build.emit("aten.index.Tensor", value.table, (self.ids,), type_=type_.with_shape((count, *inner)))
        inner = inner[1:] if len(inner) == rank else (*(1 for _ in range(rank - 1 - len(inner))), *inner)
        return build.reshape(found, (count, *inner))

    def _of_own(self, op: Op, read: list[_Value]) -> _Value | None:
        """Another form of a value of each turn."""
        (value, *others), build = read, self._build
        if others or not isinstance(value, _Own):
            return None
        shape = op.result.type.shape
        if op.name in ("reshape", "unsqueeze", "squeeze"):
            return _Own(build.reshape(value.table, (build.type_of(value.table).shape[0], *shape)))
        if op.name in ("transpose", "permute") and len(shape) == 2:
            swaps = _inner(op, 2) == (1, 0)
            return _Own(build.emit("aten.transpose.int", value.table, 1, 2)) if swaps else value
        dtype = op.get("dtype")
        return _Own(build.cast(value.table, dtype.name)) if op.name == "_to_copy" and isinstance(dtype, Const) else None

    def _row_by_row(self, ops: list[Op], read: list[_Value], place: int) -> _Value | None:
        """An op that treats rows one by one."""
        op, build = ops[0], self._build
        shape = op.results[place].type.shape
        if any(isinstance(value, _Own) for value in read):
            thin = all(self._is_thin(value, len(shape)) for value in read)
            if not thin or not is_pointwise(op) or not shape or shape[0] != self._count:
                return None
        refs = [self._looked_up(value, len(shape)) for value in read]
        given = dict(zip(op.operands, refs, strict=True))
        if [given[name] for name in op.operands] != refs:  # one value here, but not in another turn
            return None
        made = op.map_refs(lambda name: given[name].name)
        rows = {given[name].name for name, v in zip(op.operands, read, strict=True) if not isinstance(v, _Same)}
        beside = rows_beside(made, build, rows)
        if beside is None:
            return None
        made = made.map_refs(lambda name: self._rows(_Same(Ref(name))).name if name in beside else name)
        results = build.emit_op(made, *(value.type for value in op.results)).results
        for other, value in enumerate(results):
            self._known[tuple(one.results[other].name for one in ops)] = _Rows(Ref(value.name))
        return _Rows(Ref(results[place].name))

    def _is_thin(self, value: _Value, rank: int) -> bool:
        """Whether a value of each turn is the same for all its rows."""
        if not isinstance(value, _Own):
            return True
        shape = self._build.type_of(value.table).shape[1:]
        return len(shape) < rank or (len(shape) == rank and shape[0] == 1)
