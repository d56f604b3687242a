"""Ops of a model on all rows of a selection, in the place of those that are selected.

What a row holds that is not selected means nothing, but it is finite, and its gradient is zero. So an op may be applied
to all rows where it treats each by itself (its named dimensions say so), and where finite numbers give finite numbers
and finite derivatives. To an op that does so for some numbers only, one of these is given in the place of rows that are
not selected; what sums over rows is given zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import sympy

from galvatron.ir.capture.rows import Rows, Selected, Selection, of_selection, unlike_rows
from galvatron.ir.graph import Arg, Graph, Op, Ref, Value, walk_refs
from galvatron.ir.names import base_name
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.table import op_dims, operator_of, takes_size
from galvatron.ir.types import Dim, Length, TensorType, simplify_dim


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FINITE = _words("""
    outer einsum add sub mul rsub neg clone _to_copy to type_as
    contiguous alias detach where masked_fill lerp tanh sigmoid relu gelu silu mish softplus leaky_relu elu selu celu
    hardtanh hardswish hardsigmoid log_sigmoid relu6 prelu sin cos erf square abs sign floor ceil round trunc clamp
    clamp_min clamp_max maximum minimum threshold eq ne lt le gt ge logical_and logical_or logical_not logical_xor
    bitwise_and bitwise_or bitwise_xor bitwise_not __and__ __or__ __xor__ isnan isinf isfinite isin bucketize
    searchsorted softmax _softmax log_softmax _log_softmax logsumexp cumsum sum mean amax amin max min any all argmax
    argmin topk sort argsort layer_norm native_layer_norm rms_norm dropout native_dropout glu
    view reshape unsqueeze squeeze permute transpose t numpy_T movedim expand flatten
    unflatten split split_with_sizes chunk slice select narrow unbind cat stack repeat tile flip roll pad
    constant_pad_nd select_scatter slice_scatter embedding gather one_hot index_select index index_put full full_like
    zeros zeros_like ones ones_like new_zeros new_ones new_full rand_like randn_like mse_loss l1_loss
    smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy_with_logits
""")
"""Ops that make finite numbers of finite numbers, and so do their derivatives, besides products and the like."""

_FILLED: dict[str, dict[str, float]] = {
    **dict.fromkeys(_words("log log2 log10 log1p sqrt rsqrt reciprocal exp exp2 expm1"), {"self": 1}),
    **dict.fromkeys(_words("linalg_vector_norm norm"), {"self": 1}),
    **dict.fromkeys(_words("div divide true_divide floor_divide remainder fmod"), {"other": 1}),
    "pow": {"self": 1, "exponent": 1},
    "cosine_similarity": {"x1": 1, "x2": 1},
    "binary_cross_entropy": {"self": 0.5, "target": 0},
    "kl_div": {"target": 1},
}
"""By op and parameter, what makes it one of those: what it is given in the place of rows that are not selected."""


_BOUNDED = _words("softmax _softmax sigmoid tanh isinf isnan isfinite eq ne lt le gt ge")
"""Ops whose results are finite where operands are not, besides those that take a mask."""


class AllRows(Rows):
    """The graph under construction, to which `apply` adds an op on all rows of what it reads."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._infinite: set[str] = set()
        """The values, not selected, that follow from a number that the model says and that is not finite."""

    def apply(self, op: Op) -> None:
        """Adds an op as it is, on all rows of what it reads.

        Raises:
            CaptureError: it does not treat each row by itself, or might make something infinite.
        """
        self.put_op(*self._dense(op))

    def applied(self, op: Op, type_: TensorType) -> Ref:
        """Adds an op on all rows of what it reads, with a new result of a type."""
        result = Value(self.names.fresh(base_name(op.target)), type_)
        self.apply(replace(op, results=(result,)))
        return Ref(result.name)

    def _dense(self, op: Op) -> tuple[Op, Selected]:
        before = op
        op = self._with_numbers(self.renewed(op))
        reads = [self.selected(name) for name in op.operands]
        symbolic = any(_counts_in(size) for value in op.results for size in value.type.shape)
        if not any(reads) and not symbolic and not any(map(_counts_in, _leaves(op))):
            if _is_given_infinity(op) or not self._infinite.isdisjoint(op.operands):
                is_bounded = op.name in _BOUNDED or operator_of(op).mask
                self._infinite.update(value.name for value in op.results if not is_bounded)
            return op, {}
        op = replace(
            op,
            args=tuple(self._with_size(arg) for arg in op.args),
            kwargs=tuple((name, self._with_size(arg)) for name, arg in op.kwargs),
            results=tuple(replace(v, type=v.type.with_shape(tuple(map(self._size, v.type.shape)))) for v in op.results),
        )
        dims = None if op.function is not None else op_dims(op, self.types)
        shapes = [self.types[name].shape for name in op.operands] + [v.type.shape for v in op.results]
        is_finite = op.name in _FINITE or op.name in _FILLED or operator_of(op).contracts
        if dims is None or not dims.agree(shapes) or not is_finite:
            raise unlike_rows(op)
        others = [name for name, selected in zip(op.operands, reads, strict=True) if not selected]
        if _is_given_infinity(op) or not self._infinite.isdisjoint(others):
            own = "use a large number in its place, such as torch.finfo(x.dtype).min"
            raise unlike_rows(op, f"{op.name} may be given a number that is not finite", own)
        if op.get("eps") == 0:
            raise unlike_rows(op, f"{op.name} divides by what may be zero", "give it an eps")
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
                selection = self.sizes.get(declared) if isinstance(declared, sympy.Symbol) else None
                if selection is None or of_operands & set(names):
                    raise unlike_rows(op)
                found[dim] = selection
        return found

    def _safe(self, op: Op, dims: OpDims, named: Mapping[str, Selection], left: set[Selection]) -> Op:
        """The op on operands that are zero in rows that are not selected where it sums over these, and otherwise what
        keeps all finite."""
        summed = {name: selection for name, selection in named.items() if selection not in left}
        places = self._zero_places(op, dims, summed)
        fills = {**_FILLED.get(op.name, {}), operator_of(op).indices: 0}
        given = [*zip(op.arguments, op.args, strict=False), *op.kwargs]
        fillers = [fills.get(name) for name, arg in given for _ in walk_refs(arg)]
        operands: list[Ref] = []
        for place, name in enumerate(op.operands):
            value, selected = Ref(name), self.selected(name)
            if place in places:
                value = self.filled(
                    value, {d: s for d, s in selected.items() if dims.operands[place][d][0] in summed}, 0
                )
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
        selections = {symbol: self.sizes.get(symbol) for symbol in counts}
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
        selection = self.sizes.get(symbol)
        if more or selection is None:
            raise of_selection(self.source, "number")
        factor, dividend = (sympy.simplify(expression * symbol**power) for power in (-1, 1))
        if not _counts_in(factor) and factor.is_integer:
            return self.times(self.count(selection), simplify_dim(factor))
        is_number = dividend.is_integer or dividend.is_number
        if _counts_in(dividend) or not is_number or dtype[0] not in "fb" or dtype == "bool":
            raise of_selection(self.source, "number")
        type_ = TensorType(dtype, ())
        inverse = self.emit("aten.reciprocal.default", self.cast(self.count(selection), dtype), type_=type_)
        return self.times(inverse, simplify_dim(dividend) if dividend.is_integer else float(dividend))


def _counts_in(expression: object) -> list[sympy.Symbol]:
    """The numbers of selected rows in an expression: symbols of torch, of which a program has none."""
    symbols = expression.free_symbols if isinstance(expression, sympy.Expr) else ()
    plain = (s for s in symbols if isinstance(s, sympy.Symbol) and not isinstance(s, Length))
    return [s for s in plain if s.name[0] == "u" and s.name[1:].isdigit()]


def has_counts(op: Op) -> bool:
    """Whether a size or a number of an op depends on how many rows are selected."""
    sizes = (size for value in op.results for size in value.type.shape)
    return any(map(_counts_in, sizes)) or any(map(_counts_in, _leaves(op)))


def _is_given_infinity(op: Op) -> bool:
    return any(isinstance(leaf, float) and not math.isfinite(leaf) for leaf in _leaves(op))


def _leaves(op: Op) -> Iterator[Arg]:
    pending: list[Arg] = [*op.args, *(arg for _, arg in op.kwargs)]
    while pending:
        arg = pending.pop()
        if isinstance(arg, tuple):
            pending.extend(arg)
        else:
            yield arg
