"""A graph under construction in which some dimensions hold more rows than the model has selected.

What a row holds that is not selected means nothing, but it is finite, and its gradient is zero. So an op may be applied
to all rows where it treats each by itself (its named dimensions say so), and where finite numbers give finite numbers
and finite derivatives. To an op that does so for some numbers only, one of these is given in the place of rows that are
not selected; what sums over rows is given zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import sympy

from galvatron.errors import CaptureError
from galvatron.ir.capture.sources import advice, located
from galvatron.ir.graph import Arg, Const, Graph, Op, Ref, Source, Value
from galvatron.ir.names import Names, base_name
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.table import op_dims, operator_of, takes_size
from galvatron.ir.types import Dim, TensorType, simplify_dim

_FINITE = frozenset(
    """
    linear matmul mm bmm mv dot outer einsum addmm baddbmm bilinear
    add sub mul rsub neg clone _to_copy to type_as contiguous alias detach where masked_fill lerp
    tanh sigmoid relu gelu silu mish softplus leaky_relu elu selu celu hardtanh hardswish hardsigmoid log_sigmoid relu6
    prelu sin cos erf square abs sign floor ceil round trunc clamp clamp_min clamp_max maximum minimum threshold
    eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_xor bitwise_not
    __and__ __or__ __xor__ isnan isinf isfinite isin bucketize searchsorted
    softmax _softmax log_softmax _log_softmax logsumexp cumsum sum mean amax amin max min any all argmax argmin topk sort
    argsort layer_norm native_layer_norm rms_norm dropout native_dropout glu scaled_dot_product_attention
    view reshape unsqueeze squeeze permute transpose t numpy_T movedim expand flatten unflatten
    split split_with_sizes chunk slice select narrow unbind cat stack repeat tile flip roll pad constant_pad_nd
    select_scatter slice_scatter embedding gather one_hot index_select index index_put
    full full_like zeros zeros_like ones ones_like new_zeros new_ones new_full rand_like randn_like empty_like
    mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy_with_logits kl_div
    """.split()
)
"""Ops that make finite numbers of finite numbers, and so do their derivatives."""

_FILLED: dict[str, dict[str, float]] = {
    **dict.fromkeys(("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "exp", "exp2", "expm1"), {"self": 1}),
    **dict.fromkeys(("linalg_vector_norm", "norm"), {"self": 1}),
    **dict.fromkeys(("div", "divide", "true_divide", "floor_divide", "remainder", "fmod"), {"other": 1}),
    "pow": {"self": 1, "exponent": 1},
    "cosine_similarity": {"x1": 1, "x2": 1},
    "binary_cross_entropy": {"self": 0.5, "target": 0},
}  # fmt: skip
"""By op and parameter, what makes it one of those: what it is given in the place of rows that are not selected."""


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
    """The graph under construction, op by op: `begin` takes the next op of the graph before, and `apply` adds it, on
    all rows of what it reads; or something else is put in its place."""

    def __init__(self, graph: Graph) -> None:
        self.types = {value.name: value.type for value in (*graph.inputs, *graph.state)}
        self.ops: list[Op] = []
        self.source: Source | None = None
        self._names = Names(graph.values)
        self._current: dict[str, str] = {}
        self._selected: dict[str, Selected] = {}
        self._filled: dict[str, tuple[Ref, Selected, Arg] | None] = {}
        """Of a value with a number in the place of rows that are not selected: what it was before, where, and which."""
        self._sizes: dict[sympy.Symbol, Selection | None] = {}
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
        if isinstance(size, sympy.Symbol) and self._sizes.setdefault(size, selection) != selection:
            self._sizes[size] = None

    # New ops.

    def emit(self, target: str, *args: Arg, type_: TensorType, **kwargs: Arg) -> Ref:
        value = Value(self._names.fresh(base_name(target)), type_)
        self._put(Op(target, args, tuple(kwargs.items()), (value,), self.source))
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
        values = Value(self._names.fresh("sort"), type_), Value(self._names.fresh("sort"), replace(type_, dtype="i64"))
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

    def put(self, op: Op, target: str, *args: Arg, selected: Selected | None = None) -> None:
        """Puts another op in the place of one, with the same result."""
        self.put_op(replace(op, target=target, args=args, kwargs=()), selected or {})

    def put_op(self, op: Op, selected: Selected) -> None:
        """Adds an op whose results are as before, or hold rows of a selection."""
        self._put(op)
        if selected:
            self._selected.update((value.name, selected) for value in op.results)

    def become(self, op: Op, value: Ref, selected: Selected) -> None:
        """Puts a value, which was added last, in the place of the only result of an op."""
        made = self.ops.pop()
        assert made.result.name == value.name, made
        self.put_op(replace(made, results=(replace(op.result, type=made.result.type),)), selected)
        self._filled[op.result.name] = self._filled.pop(value.name, None)

    def alias(self, name: str, value: str) -> None:
        """Puts a value in the place of another, which is the same."""
        self._current[name] = value

    def _put(self, op: Op) -> None:
        self.ops.append(op)
        self.types.update((value.name, value.type) for value in op.results)

    # Ops of the model on all rows.

    def apply(self, op: Op) -> None:
        """Adds an op as it is, on all rows of what it reads.

        Raises:
            CaptureError: it does not treat each row by itself, or might make something infinite.
        """
        self.put_op(*self._dense(op))

    def applied(self, op: Op, type_: TensorType) -> Ref:
        """Adds an op on all rows of what it reads, with a new result of a type."""
        result = Value(self._names.fresh(base_name(op.target)), type_)
        self.apply(replace(op, results=(result,)))
        return Ref(result.name)

    def _dense(self, op: Op) -> tuple[Op, Selected]:
        before = op
        op = self._with_numbers(self.renewed(op))
        reads = [self.selected(name) for name in op.operands]
        symbolic = any(_counts_in(size) for value in op.results for size in value.type.shape)
        if not any(reads) and not symbolic and not any(map(_counts_in, _leaves(op))):
            return op, {}
        op = replace(
            op,
            args=tuple(self._with_size(arg) for arg in op.args),
            kwargs=tuple((name, self._with_size(arg)) for name, arg in op.kwargs),
            results=tuple(
                replace(v, type=v.type.with_shape(tuple(map(self._size, v.type.shape)))) for v in op.results
            ),
        )
        dims = None if op.function is not None else op_dims(op, self.types)
        shapes = [self.types[name].shape for name in op.operands] + [v.type.shape for v in op.results]
        if dims is None or not dims.agree(shapes) or (op.name not in _FINITE and op.name not in _FILLED):
            raise unlike_rows(op)
        if any(isinstance(leaf, float) and not math.isfinite(leaf) for leaf in _leaves(op)):
            raise unlike_rows(op, f"{op.name} is given a number that is not finite", "use a large number, as torch.finfo(x.dtype).min")
        named = self._named(op, dims, reads)
        results = [self._result(op, dims, named, place, before) for place in range(len(op.results))]
        if any(result != results[0] for result in results):
            raise unlike_rows(op)
        return self._safe(op, dims, named, set(results[0].values())), results[0]

    def _named(self, op: Op, dims: OpDims, reads: list[Selected]) -> dict[str, Selection]:
        """The selections whose rows are along the named dimensions of an op."""
        found: dict[str, Selection] = {}
        for names, selected in zip(dims.operands, reads, strict=True):
            for dim, selection in selected.items():
                if len(names[dim]) != 1 or found.setdefault(names[dim][0], selection) != selection:
                    raise unlike_rows(op)
        for names, selected in zip(dims.operands, reads, strict=True):
            if any(found.keys() & set(one) for dim, one in enumerate(names) if dim not in selected):
                raise unlike_rows(op)
        if found.keys() & (dims.indivisible | dims.spmd):
            raise unlike_rows(op)
        return found

    def _result(
        self, op: Op, dims: OpDims, named: Mapping[str, Selection], place: int, before: Op
    ) -> dict[int, Selection]:
        """The dims of a result that hold rows of a selection."""
        of_operands = {name for operand in dims.operands for names in operand for name in names}
        found: dict[int, Selection] = {}
        for dim, names in enumerate(dims.results[place]):
            declared = before.results[place].type.shape[dim]
            if len(names) == 1 and names[0] in named:
                found[dim] = named[names[0]]
            elif named.keys() & set(names):
                raise unlike_rows(op)
            elif _counts_in(declared):  # as of `torch.zeros(len(x[mask]))`
                selection = self._sizes.get(declared) if isinstance(declared, sympy.Symbol) else None
                if selection is None or of_operands & set(names):
                    raise unlike_rows(op)
                found[dim] = selection
        return found

    def _safe(self, op: Op, dims: OpDims, named: Mapping[str, Selection], left: set[Selection]) -> Op:
        """The op on operands that are zero in rows that are not selected where it sums over these, and otherwise what
        keeps all finite."""
        summed = {name: selection for name, selection in named.items() if selection not in left}
        places = self._zero_places(op, dims, summed)
        fills = {**_FILLED.get(op.name, {}), **dict.fromkeys([operator_of(op).indices] if not operator_of(op).masks else [], 0)}
        fillers = [fills.get(name) for name, arg in op.arguments.items() for _ in _refs(arg)]
        operands: list[Ref] = []
        for place, name in enumerate(op.operands):
            value, selected = Ref(name), self.selected(name)
            if place in places:
                value = self.filled(value, {d: s for d, s in selected.items() if dims.operands[place][d][0] in summed}, 0)
            elif fillers[place] is not None and selected:
                value = self.filled(value, selected, fillers[place])
            operands.append(value)
        following = iter(operands)
        return op.map_refs(lambda _: next(following).name)

    def _zero_places(self, op: Op, dims: OpDims, summed: Mapping[str, Selection]) -> set[int]:
        """The operands that are to be zero in rows that are not selected, so that a sum over these is of the others."""
        places: set[int] = set()
        for name in summed:
            having = [place for place, names in enumerate(dims.operands) if any(name in one for one in names)]
            factors = [place for place in having if place in dims.products]
            if not factors and not dims.sums.issuperset(having):
                raise unlike_rows(op)
            places.update(factors[:1] or having)
        return places

    # Numbers of selected rows among arguments.

    def _size(self, size: Dim) -> Dim:
        """A size with all rows in the place of those that are selected."""
        counts = _counts_in(size)
        if not counts:
            return size
        assert isinstance(size, sympy.Expr)
        selections = {symbol: self._sizes.get(symbol) for symbol in counts}
        if None in selections.values():
            raise of_selection(self.source, "size")
        return simplify_dim(size.subs({symbol: s.size for symbol, s in selections.items() if s is not None}))

    def _with_size(self, arg: Arg) -> Arg:
        if isinstance(arg, tuple):
            return tuple(map(self._with_size, arg))
        return self._size(arg) if isinstance(arg, sympy.Expr) else arg

    def _with_numbers(self, op: Op) -> Op:
        """The op with tensors in the place of numbers that follow from how many rows are selected."""

        def number(place: int | str, arg: Arg) -> Arg:
            if not isinstance(arg, sympy.Expr) or not _counts_in(arg) or takes_size(op, place):
                return arg
            if not operator_of(op).numbers or op.overload != "Tensor" or len(op.results) != 1:
                raise of_selection(op.source, "number")
            return self._number(arg, op.result.type.dtype)

        args = tuple(number(place, arg) for place, arg in enumerate(op.args))
        return replace(op, args=args, kwargs=tuple((name, number(name, arg)) for name, arg in op.kwargs))

    def _number(self, expression: sympy.Expr, dtype: str) -> Ref:
        """The number of selected rows times something else, or something else divided by it."""
        (symbol, *more) = _counts_in(expression)
        selection = self._sizes.get(symbol)
        if more or selection is None:
            raise of_selection(self.source, "number")
        factor, dividend = (sympy.simplify(expression * symbol**power) for power in (-1, 1))
        if not _counts_in(factor):
            return self.times(self.count(selection), simplify_dim(factor))
        if _counts_in(dividend) or dtype[0] not in "fb" or dtype == "bool":
            raise of_selection(self.source, "number")
        type_ = TensorType(dtype, ())
        inverse = self.emit("aten.reciprocal.default", self.cast(self.count(selection), dtype), type_=type_)
        return self.times(inverse, simplify_dim(dividend))


def _counts_in(expression: object) -> list[sympy.Symbol]:
    """The numbers of selected rows in an expression: symbols of torch, of which a program has none."""
    symbols = expression.free_symbols if isinstance(expression, sympy.Expr) else ()
    return [s for s in symbols if isinstance(s, sympy.Symbol) and s.name[0] == "u" and s.name[1:].isdigit()]


def _leaves(op: Op) -> Iterator[Arg]:
    pending: list[Arg] = [*op.args, *(arg for _, arg in op.kwargs)]
    while pending:
        arg = pending.pop()
        if isinstance(arg, tuple):
            pending.extend(arg)
        else:
            yield arg


def _refs(arg: Arg) -> list[Ref]:
    return [one for one in (arg if isinstance(arg, tuple) else (arg,)) if isinstance(one, Ref)]


def _wide(dtype: str) -> str:
    """The type in which numbers are added up that are kept in another."""
    return "f32" if dtype in ("f16", "bf16") else dtype
