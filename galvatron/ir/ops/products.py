"""Products of matrices and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from galvatron.ir.graph import Op
from galvatron.ir.layout import PARTIAL
from galvatron.ir.ops import shapes
from galvatron.ir.ops.call import Call, by_line, known, whole
from galvatron.ir.ops.notation import DimNames, OpDims, Shape
from galvatron.ir.ops.operator import EVERY, OnSlices, Operator
from galvatron.ir.ops.work import Work, product
from galvatron.ir.types import Dim


def _matmul(call: Call) -> OpDims:
    left, right = (len(s) for s in call.operand_shapes())
    line = {
        (1, 1): "~k, ~k -> ",
        (1, 2): "~k, ~k n -> n",
        (2, 1): "~m k, ~k -> m",
    }.get((left, right))
    if line is None:
        line = (
            "~k, ~b* k n -> b* n"
            if left == 1
            else "~b* m k, ~k -> b* m"
            if right == 1
            else "~b* m k, ~b* k n -> b* m n"
        )
    return by_line(call, line)


def _einsum(call: Call) -> OpDims:
    """The equation names the dimensions; a letter that one operand has twice is whole."""
    equation = call["equation"]
    assert isinstance(equation, str)
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    sizes: dict[str, Dim] = {}
    shapes = call.operand_shapes()
    named = [_letters(term, len(shape)) for term, shape in zip(terms, shapes, strict=True)]
    for names, shape in zip(named, shapes, strict=True):
        sizes.update((n, s) for n, s in zip(names, shape, strict=True) if s != 1)
    twice = frozenset(n for names in named for n in names if names.count(n) > 1) & sizes.keys()
    (result,) = call.results
    return OpDims(
        tuple(_placed(names, shape) for names, shape in zip(named, shapes, strict=True)),
        (_placed(_letters(right, len(result)), result),),
        sizes,
        twice,
        products=frozenset(range(len(shapes))),
    )


def _tensordot(call: Call) -> OpDims:
    """Dims of the first operand and of the second, but for those that are summed in pairs."""
    left, right = call.shape("self"), call.shape("other")
    pairs = zip(call.dims("dims_other", len(right)), call.dims("dims_self", len(left)), strict=False)
    summed = dict(pairs) if call["dims_self"] else {}
    first = [f"a{i}" for i in range(len(left))]
    second = [f"a{summed[i]}" if i in summed else f"b{i}" for i in range(len(right))]
    sizes = {n: s for n, s in zip((*first, *second), (*left, *right), strict=True) if s != 1}
    rest = [f"a{i}" for i in range(len(left)) if i not in summed.values()]
    rest += [f"b{i}" for i in range(len(right)) if i not in summed]
    return OpDims(
        (_placed(first, left), _placed(second, right)),
        (_placed(rest, call.results[0]),),
        sizes,
        products=frozenset({0, 1}),
    )


def _kronecker(call: Call) -> OpDims:
    """Each dim is (first, second); of unequal ranks both stay whole."""
    left, right = call.operand_shapes()
    if len(left) != len(right):
        return whole(call)
    sizes = {f"{x}{i}": s for x, shape in (("a", left), ("b", right)) for i, s in enumerate(shape) if s != 1}
    first, second = (tuple(known(sizes, f"{x}{i}") for i in range(len(left))) for x in "ab")
    result = tuple((*a, *b) for a, b in zip(first, second, strict=True))
    return OpDims((first, second), (result,), sizes, products=frozenset({0, 1}))


def _letters(term: str, rank: int) -> list[str]:
    """The names of a term's dims; those of an ellipsis are numbered from the right."""
    head, dots, tail = term.partition("...")
    run = range(rank - len(head) - len(tail)) if dots else ()
    return [*head, *(f"...{i}" for i in reversed(run)), *tail]


def _placed(names: list[str], shape: Shape) -> tuple[DimNames, ...]:
    return tuple(() if size == 1 else (name,) for name, size in zip(names, shape, strict=True))


def _work(_out: Any, a: Any, b: Any, *_: Any, **__: Any) -> Work:
    """Of matrices, in groups or not; where only one factor is in groups, the other is shared out over them."""
    count = b.shape[0] if a.dim() == b.dim() == 3 else 1
    return product(count, a.shape[-2], b.shape[-1], a.shape[-1])


def _grouped_op_work(op: Op, tensors: Sequence[Any], dims: OpDims | None) -> Work:
    """As many rows for each of all matrices, of which a rank may have some, what balanced experts come to: of all rows,
    or of those that have come because they choose one of the rank's."""
    (rows, inner), (matrices, columns, _), *_ = tensors
    names = () if dims is None or op.kwarg("routed") is True else dims.operands[1][0]
    among = dims.sizes[names[0]] if dims is not None and names else matrices
    return product(matrices, rows / among, columns, inner)


def _grouped_work(_out: Any, rows: Any, weight: Any, ids: Any) -> Work:
    return product(weight.shape[0], rows.shape[0] / weight.shape[0], weight.shape[1], rows.shape[1])


def _outer_work(_out: Any, left: Any, right: Any, _ids: Any, matrices: Any) -> Work:
    return product(matrices, left.shape[1], right.shape[1], left.shape[0] / matrices)


def _added_work(out: Any, _term: Any, *factors: Any, **options: Any) -> Work:
    return _work(out, *factors, **options)


_product = partial(Operator, contracts=True, kept=True, padded=EVERY)

OPERATORS: dict[str, Operator] = {
    "linear": _product(
        "~b* k, ~n k, +n? -> b* n",
        written="F.linear(input, weight, bias)",
        shapes=shapes.linear,
        dtype="shared",
        anchored=True,
        weights=("weight", "bias"),
    ),
    "mm": _product("~m k, ~k n -> m n", written="self @ mat2", shapes=shapes.matrices(2), dtype="shared", work=_work),
    "bmm": _product(
        "~b m k, ~b k n -> b m n", written="self @ mat2", shapes=shapes.matrices(3), dtype="shared", work=_work
    ),
    "addmm": _product(
        "+m n, ~m k, ~k n -> m n",
        written="torch.addmm(self, mat1, mat2, beta=, alpha=)",
        shapes=shapes.addmm,
        dtype="shared",
        anchored=True,
        weights=("self", "mat2"),
        work=_added_work,
    ),
    "baddbmm": _product(
        "+b m n, ~b m k, ~b k n -> b m n",
        written="torch.baddbmm(self, batch1, batch2, beta=, alpha=)",
        work=_added_work,
    ),
    "matmul": _product(_matmul, written="self @ other", shapes=shapes.matmul, dtype="shared"),
    "mv": Operator("~m k, ~k -> m", contracts=True),
    "addmv": Operator("+m, ~m k, ~k -> m", contracts=True),
    "addbmm": Operator("+m n, ~b m k, ~b k n -> m n", contracts=True, kept=True),
    "dot": Operator("~k, ~k -> ", contracts=True),
    "outer": Operator("~m, ~n -> m n", written="torch.outer(self, vec2)"),
    "addr": Operator("+m n, ~m, ~n -> m n"),
    "bilinear": Operator("~b* i, ~b* j, ~o i j, +o? -> b* o", contracts=True, kept=True),
    "einsum": Operator(_einsum, written="torch.einsum(equation, *tensors)", contracts=True, kept=True),
    "tensordot": Operator(_tensordot, contracts=True, kept=True),
    "kron": Operator(_kronecker),
    "_grouped_mm": Operator(contracts=True, kept=True, work=_work),
    "galvatron::grouped_linear": Operator(
        "~t k, ~e^ n k, t -> t n",
        written="rt.grouped_linear(rows, weight, ids)",
        shapes=shapes.grouped_linear,
        dtype="same",
        contracts=True,
        kept=True,
        anchored=True,
        work=_grouped_work,
        op_work=_grouped_op_work,
        on_slices=OnSlices(PARTIAL, routes=True, function="grouped_linear"),
        padded=range(1, 2),
    ),
    "galvatron::grouped_outer": Operator(work=_outer_work),
}
