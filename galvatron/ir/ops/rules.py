"""The rule table: the named dimensions of every op, one line per op.

An op is looked up by its overload, then by its name without the overload. Ops whose dimensions depend on their
arguments (views, reductions over given dims, concatenation) have a function instead of a line. Pointwise ops without a
line of their own are recognised by the table of operators, which repeats torch's tag. An op without a rule is computed
whole on every rank: right, and slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from galvatron.ir.graph import Arg, Op, Ref, walk_refs
from galvatron.ir.ops.notation import DimNames, OpDims, Shape, parse_notation
from galvatron.ir.ops.schemas import is_operator, schema_of
from galvatron.ir.ops.views import view_dims
from galvatron.ir.types import Dim, TensorType, exact_quotient

Types = Mapping[str, TensorType]
DimsFunction = Callable[["Call"], OpDims]


class Call:
    """An op with its arguments laid out by the operator's schema: `call["dim"]` finds one however it was passed."""

    def __init__(self, op: Op, types: Types) -> None:
        self.op = op
        self.types = types
        self.arguments: dict[str, Arg] = schema_of(op.target).arguments(op)
        self.results = tuple(v.type.shape for v in op.results)

    def __getitem__(self, name: str) -> Arg:
        return self.arguments[name]

    def shape(self, name: str) -> Shape:
        return self.types[next(walk_refs(self.arguments[name])).name].shape

    def dims(self, name: str, rank: int) -> tuple[int, ...]:
        """An argument that names dimensions, as non-negative indices; all of them when it is empty or None."""
        value = self.arguments.get(name)
        listed = value if isinstance(value, tuple) else () if value is None else (value,)
        return tuple(int(d) % rank for d in listed) if listed else tuple(range(rank))  # type: ignore[arg-type]  # ints by schema

    def operand_shapes(self) -> tuple[Shape, ...]:
        return tuple(self.types[name].shape for name in self.op.operands)


def op_dims(op: Op, types: Types) -> OpDims | None:
    """The named dimensions of `op` on operands of these types, or None for an op without a rule."""
    _, name, *_ = op.target.split(".")
    short = op.target.removeprefix("aten.")
    rule = RULES.get(short) or RULES.get(name) or RANDOM_RULES.get(short) or RANDOM_RULES.get(name)
    if rule is None and is_operator(op.target) and schema_of(op.target).pointwise:
        rule = _pointwise
    if rule is None:
        return None
    call = Call(op, types)
    if callable(rule):
        return rule(call)
    # Operands of a rule line are the leading arguments, tensors by schema; one that is absent or a number is None.
    tensors = list(call.arguments.values())[: len(parse_notation(rule).operands)]
    shapes = tuple(types[a.name].shape if isinstance(a, Ref) else None for a in tensors)
    dims = parse_notation(rule).resolve(shapes, call.results)
    return dims if len(dims.operands) == len(op.operands) else None


def _pointwise(call: Call) -> OpDims:
    terms = ", ".join("b*" for _ in call.op.operands)
    return parse_notation(f"{terms} -> {', '.join('b*' for _ in call.results)}").resolve(
        call.operand_shapes(), call.results
    )


def _view(call: Call) -> OpDims:
    (shape,) = call.operand_shapes()
    return view_dims(shape, call.results[0])


def _permuted(order: Callable[[Call, int], list[int]]) -> DimsFunction:
    """A rule that reorders dimensions: `order` gives the operand's dimension at each result dimension."""

    def rule(call: Call) -> OpDims:
        (shape,) = call.operand_shapes()
        operand = tuple((f"d{i}",) if size != 1 else () for i, size in enumerate(shape))
        result = tuple(operand[i] for i in order(call, len(shape)))
        sizes = {f"d{i}": size for i, size in enumerate(shape) if size != 1}
        return OpDims((operand,), (result,), sizes, sums=frozenset({0}))

    return rule


def _swap(call: Call, rank: int) -> list[int]:
    order = list(range(rank))
    first, second = int(call["dim0"]) % rank, int(call["dim1"]) % rank  # type: ignore[arg-type]  # ints by schema
    order[first], order[second] = order[second], order[first]
    return order


def _along(argument: str, *, linear: bool = False) -> DimsFunction:
    """A rule for an op that works along the dims an argument names, and independently along all others.

    The named dims are indivisible; a result has them unless it has fewer dimensions than the operand.
    """

    def rule(call: Call) -> OpDims:
        shape = call.operand_shapes()[0]
        along = call.dims(argument, len(shape))
        return _with_whole(call, along, linear)

    return rule


def _with_whole(call: Call, along: tuple[int, ...], linear: bool) -> OpDims:
    """All operands and results share their dims, except those in `along` and those of differing sizes."""
    shapes = call.operand_shapes()
    rank = len(shapes[0])
    of_all = [s for s in (*shapes, *call.results) if len(s) == rank]
    shared = [i for i in range(rank) if i not in along and all(s[i] == shapes[0][i] for s in of_all)]
    sizes: dict[str, Dim] = {f"d{i}": shapes[0][i] for i in shared if shapes[0][i] != 1}

    def names(shape: Shape) -> tuple[DimNames, ...]:
        kept = range(rank) if len(shape) == rank else [i for i in range(rank) if i not in along]
        return tuple((f"d{i}",) if f"d{i}" in sizes else () for i in kept)

    whole = {f"w{i}": shapes[0][i] for i in along}
    return OpDims(
        tuple(names(s) for s in shapes),
        tuple(names(s) for s in call.results),
        {**sizes, **whole},
        frozenset(whole),
        sums=frozenset(range(len(shapes))) if linear else frozenset(),
    )


def _sum(call: Call) -> OpDims:
    """Summed dims may be sharded: the result is then partial."""
    (shape,) = call.operand_shapes()
    along = call.dims("dim", len(shape)) if "dim" in call.arguments else tuple(range(len(shape)))
    operand = tuple((f"d{i}",) if size != 1 else () for i, size in enumerate(shape))
    keep = len(call.results[0]) == len(shape)
    result = tuple(() if i in along else operand[i] for i in range(len(shape)) if keep or i not in along)
    return OpDims((operand,), (result,), {f"d{i}": s for i, s in enumerate(shape) if s != 1}, sums=frozenset({0}))


def _split(call: Call) -> OpDims:
    """Equal parts: the dim is (parts, size of a part), the second may be sharded; unequal parts keep it whole."""
    (shape,) = call.operand_shapes()
    dim = int(call["dim"]) % len(shape)  # type: ignore[arg-type]  # an int by schema
    parts = {result[dim] for result in call.results}
    if len(parts) > 1 or exact_quotient(shape[dim], next(iter(parts))) != len(call.results):
        return _with_whole(call, (dim,), linear=True)
    sizes = {f"d{i}": s for i, s in enumerate(shape) if i != dim and s != 1}
    rest = tuple((f"d{i}",) if f"d{i}" in sizes else () for i in range(len(shape)))
    part = next(iter(parts))
    inner: DimNames = ("part",) if part != 1 else ()
    operand = (*rest[:dim], ("parts", *inner) if len(call.results) > 1 else inner, *rest[dim + 1 :])
    result = (*rest[:dim], inner, *rest[dim + 1 :])
    all_sizes: dict[str, Dim] = {**sizes, "parts": len(call.results), **({"part": part} if inner else {})}
    return OpDims((operand,), (result,) * len(call.results), all_sizes, frozenset({"parts"}), sums=frozenset({0}))


def _logsumexp(call: Call) -> OpDims:
    """One dimension may be sharded; several are whole."""
    dims = _along("dim")(call)
    whole = [n for n in dims.sizes if n in dims.indivisible]
    if len(whole) != 1 or dims.sizes[whole[0]] == 1:
        return dims
    (along,) = call.dims("dim", len(call.shape("self")))
    (operand,) = dims.operands
    named = (*operand[:along], (whole[0],), *operand[along + 1 :])
    return replace(dims, operands=(named,), indivisible=frozenset(), spmd=frozenset(whole))


def _pad(call: Call) -> OpDims:
    (shape,) = call.operand_shapes()
    padding = call["pad"]
    assert isinstance(padding, tuple)
    rank = len(shape)
    along = tuple(rank - 1 - i for i in range(len(padding) // 2) if padding[2 * i] != 0 or padding[2 * i + 1] != 0)
    return _with_whole(call, along, linear=False)


def _stack(call: Call) -> OpDims:
    shapes = call.operand_shapes()
    new = int(call["dim"]) % (len(shapes[0]) + 1)  # type: ignore[arg-type]  # an int by schema
    operand = tuple((f"d{i}",) if s != 1 else () for i, s in enumerate(shapes[0]))
    result = (*operand[:new], (), *operand[new:])
    sizes = {f"d{i}": s for i, s in enumerate(shapes[0]) if s != 1}
    return OpDims((operand,) * len(shapes), (result,), sizes, sums=frozenset(range(len(shapes))))


def _created(call: Call) -> OpDims:
    """A tensor of one repeated number: each rank makes its part of any dim. Operands only lend their dtype."""
    (shape,) = call.results
    result = tuple((f"d{i}",) if s != 1 else () for i, s in enumerate(shape))
    operands = tuple(tuple(() for _ in s) for s in call.operand_shapes())
    return OpDims(operands, (result,), {f"d{i}": s for i, s in enumerate(shape) if s != 1})


def _whole(call: Call) -> OpDims:
    """Nothing may be sharded."""
    return OpDims(
        tuple(tuple(() for _ in s) for s in call.operand_shapes()),
        tuple(tuple(() for _ in s) for s in call.results),
        {},
    )


def _index(call: Call) -> OpDims:
    """`x[:, i, j]`: dims that are not indexed are shared with the result, and so are the index tensors' dims."""
    indices = call["indices"]
    assert isinstance(indices, tuple)
    shape = call.shape("self")
    positions = [i for i, index in enumerate(indices) if isinstance(index, Ref)]
    contiguous = positions == list(range(positions[0], positions[-1] + 1))
    index_shapes = [call.types[ref.name].shape for ref in walk_refs(indices)]
    rank = max(len(s) for s in index_shapes)
    sizes: dict[str, Dim] = {}
    for index_shape in index_shapes:
        for i, size in enumerate(reversed(index_shape)):
            if size != 1:
                sizes[f"i{i}"] = size
    kept = [i for i in range(len(shape)) if i not in positions]
    sizes.update({f"d{i}": shape[i] for i in kept if shape[i] != 1})
    operand = tuple((f"d{i}",) if f"d{i}" in sizes else () for i in range(len(shape)))
    named = {
        s: tuple((f"i{i}",) if s[len(s) - 1 - i] != 1 else () for i in reversed(range(len(s)))) for s in index_shapes
    }
    indexed = tuple((f"i{i}",) if f"i{i}" in sizes else () for i in reversed(range(rank)))
    at = positions[0] if contiguous else 0
    rest = tuple(operand[i] for i in kept)
    before = len([i for i in kept if i < at])
    result = (*rest[:before], *indexed, *rest[before:])
    return OpDims((operand, *(named[s] for s in index_shapes)), (result,), sizes)


def _index_select(call: Call) -> OpDims:
    """`x[:, i]` with a list of indices."""
    shape, index = call.shape("self"), call.shape("index")
    dim = call.dims("dim", len(shape))[0]
    sizes: dict[str, Dim] = {f"d{i}": s for i, s in enumerate(shape) if i != dim and s != 1}
    operand = tuple((f"d{i}",) if f"d{i}" in sizes else () for i in range(len(shape)))
    chosen: DimNames = ("i",) if index != (1,) else ()
    if chosen:
        sizes["i"] = index[0]
    return OpDims((operand, (chosen,)), ((*operand[:dim], chosen, *operand[dim + 1 :]),), sizes)


def _index_write(call: Call) -> OpDims:
    """Rows of one dim written, added or filled: that dim is whole, the others are shared by what holds the rows."""
    shape = call.shape("self")
    (dim,) = call.dims("dim", len(shape))
    sizes: dict[str, Dim] = {f"d{i}": s for i, s in enumerate(shape) if i != dim and s != 1}
    named = tuple((f"d{i}",) if f"d{i}" in sizes else () for i in range(len(shape)))
    operands = tuple(
        named if len(s) == len(shape) and i != 1 else ((),) * len(s) for i, s in enumerate(call.operand_shapes())
    )
    return OpDims(operands, (named,), sizes)


def _index_put(call: Call) -> OpDims:
    """`y[:, i, j] = values`: dims before the indexed ones are shared, those behind too."""
    indices = call["indices"]
    assert isinstance(indices, tuple)
    shape, given = call.shape("self"), call.shape("values")
    positions = [i for i, index in enumerate(indices) if isinstance(index, Ref)]
    types = [call.types[ref.name] for ref in walk_refs(indices)]
    if positions != list(range(positions[0], positions[-1] + 1)) or any(t.dtype in ("bool", "u8") for t in types):
        return _whole(call)
    rank = max(len(t.shape) for t in types)
    sizes: dict[str, Dim] = {f"d{i}": s for i, s in enumerate(shape) if i not in positions and s != 1}
    named = tuple((f"d{i}",) if f"d{i}" in sizes else () for i in range(len(shape)))
    written = (*named[: positions[0]], *((),) * rank, *named[positions[-1] + 1 :])
    values = written[len(written) - len(given) :]
    values = tuple(() if size == 1 else names for names, size in zip(values, given, strict=True))
    return OpDims((named, *(((),) * len(t.shape) for t in types), values), (named,), sizes)


def _diagonal(call: Call) -> OpDims:
    """The two dims of a diagonal are whole."""
    shape = call.shape("self")
    along = {int(call[name]) % len(shape) for name in ("dim1", "dim2")}  # type: ignore[arg-type]  # ints by schema
    sizes: dict[str, Dim] = {f"d{i}": s for i, s in enumerate(shape) if i not in along and s != 1}
    whole = tuple((f"d{i}",) if f"d{i}" in sizes else () for i in range(len(shape)))
    part = (*(names for i, names in enumerate(whole) if i not in along), ())
    if len(call.op.operands) == 1:
        return OpDims((whole,), (part,), sizes, sums=frozenset({0}))
    return OpDims((whole, part), (whole,), sizes, sums=frozenset({0, 1}))


def _embedding(call: Call) -> OpDims:
    """Rows of a table; with gradients scaled by how often an index occurs, only the columns may be sharded."""
    line = "~v! h, b*! -> b*! h" if call["scale_grad_by_freq"] else "~v^ h, b* -> b* h"
    return parse_notation(line).resolve(call.operand_shapes(), call.results)


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
    return parse_notation(line).resolve(call.operand_shapes(), call.results)


def _loss(line: str, elementwise: str) -> DimsFunction:
    """A loss whose `reduction` argument is 2 (sum) or 0 (none); a mean is left whole."""

    def rule(call: Call) -> OpDims:
        if call["reduction"] == 1:
            return _whole(call)
        notation = parse_notation(line if call["reduction"] == 2 else elementwise)
        tensors = list(call.arguments.values())[: len(notation.operands)]
        return notation.resolve(
            tuple(call.types[a.name].shape if isinstance(a, Ref) else None for a in tensors), call.results
        )

    return rule


def _cross_entropy(call: Call) -> OpDims:
    rank = len(call.shape("self"))
    if rank == 1:
        return _whole(call)
    # Class indices without class weights may be looked up in a sharded vocabulary.
    indices = len(call.shape("target")) < rank
    v = "v^" if indices and rank == 2 and not isinstance(call["weight"], Ref) else "v!"
    target = "n d*" if indices else "n v! d*"
    return _loss(f"n {v} d*, {target}, {v}? -> ", f"n {v} d*, {target}, {v}? -> n d*")(call)


def _attention(call: Call) -> OpDims:
    """Queries may be split, except under `is_causal`, which numbers them from 0."""
    rows = "q!" if call["is_causal"] else "q"
    heads = "(h g)" if call["enable_gqa"] else "h"
    line = f"b* {heads} {rows} d!, b* h k! d!, b* h k! e!, b* {heads} {rows} k!? -> b* {heads} {rows} e!"
    tensors = [call[n] for n in ("query", "key", "value", "attn_mask")]
    shapes = tuple(call.types[a.name].shape if isinstance(a, Ref) else None for a in tensors)
    return parse_notation(line).resolve(shapes, call.results)


def _convolution(call: Call) -> OpDims:
    """Grouped, transposed and unbatched convolutions stay whole."""
    grouped = call["groups"] != 1 or call.arguments.get("transposed")
    if grouped or len(call.shape("input")) != len(call.shape("weight")):
        return _whole(call)
    line = "~n c d*, ~o c k*, +o? -> n o d*"
    shapes = (call.shape("input"), call.shape("weight"), call.shape("bias") if isinstance(call["bias"], Ref) else None)
    spatial = len(shapes[0]) - 2
    line = line.replace("d*", " ".join(f"x{i}!" for i in range(spatial))).replace(
        "k*", " ".join(f"y{i}!" for i in range(spatial))
    )
    head, _, tail = line.partition("->")
    tail = tail.replace("x", "z")
    return parse_notation(f"{head}->{tail}").resolve(shapes, call.results)


RULES: dict[str, str | DimsFunction] = {
    # products
    "linear": "~b* k, ~n k, +n? -> b* n",
    "mm": "~m k, ~k n -> m n",
    "bmm": "~b m k, ~b k n -> b m n",
    "addmm": "+m n, ~m k, ~k n -> m n",
    "baddbmm": "+b m n, ~b m k, ~b k n -> b m n",
    "matmul": _matmul,
    "mul": "~b*, ~b* -> b*",
    "div.Tensor": "~b*, b* -> b*",
    "convolution": _convolution,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "scaled_dot_product_attention": _attention,
    # sums
    "add": "+b*, +b* -> b*",
    "sub": "+b*, +b* -> b*",
    "neg": "+b* -> b*",
    "clone": "+b* -> b*",
    "_to_copy": "b* -> b*",
    "detach": "b* -> b*",
    "sum": _sum,
    # choices with a number, which torch does not tag as pointwise
    "where.ScalarOther": "b*, b* -> b*",
    "where.ScalarSelf": "b*, b*, b* -> b*",
    # views
    "view": _view,
    "reshape": _view,
    "expand": "+b* -> b*",
    "squeeze": _view,
    "unsqueeze": _view,
    "flatten": _view,
    "unflatten": _view,
    "permute": _permuted(lambda call, rank: list(call.dims("dims", rank))),
    "transpose": _permuted(_swap),
    "t": _permuted(lambda call, rank: list(reversed(range(rank)))),
    "numpy_T": _permuted(lambda call, rank: list(reversed(range(rank)))),
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _split,
    "slice": _along("dim", linear=True),
    "select": _along("dim", linear=True),
    "narrow": _along("dim", linear=True),
    "unbind": _along("dim", linear=True),
    "cat": _along("dim", linear=True),
    "stack": _stack,
    "pad": _pad,
    "constant_pad_nd": _pad,
    # along one dimension
    "softmax": _along("dim"),
    "_softmax": _along("dim"),
    "log_softmax": _along("dim"),
    "_log_softmax": _along("dim"),
    "cumsum": _along("dim", linear=True),
    "logsumexp": _logsumexp,
    "mean": _along("dim", linear=True),
    "amax": _along("dim"),
    "amin": _along("dim"),
    "argmax": _along("dim"),
    "var": _along("dim"),
    "diff": _along("dim"),
    "flip": _along("dims", linear=True),
    "roll": _along("dims", linear=True),
    "topk": _along("dim"),
    "sort": _along("dim"),
    "gather": _along("dim"),
    "scatter": _along("dim"),
    "scatter_add": _along("dim"),
    "slice_scatter": _along("dim", linear=True),
    "index_add": _index_write,
    "index_copy": _index_write,
    "index_fill": _index_write,
    "index_put": _index_put,
    "diagonal": _diagonal,
    "diagonal_scatter": _diagonal,
    "triu": "b* m! n! -> b* m! n!",
    "tril": "b* m! n! -> b* m! n!",
    # complex numbers
    "view_as_complex": "+b* c! -> b*",
    "view_as_real": "+b* -> b* c!",
    "real": "+b* -> b*",
    "imag": "+b* -> b*",
    "conj_physical": "+b* -> b*",
    "complex": "+b*, +b* -> b*",
    "polar": "b*, b* -> b*",
    # normalisation and lookup
    "layer_norm": lambda call: _normalisation(call, "weight", "bias"),
    "rms_norm": lambda call: _normalisation(call, "weight"),
    "embedding": _embedding,
    "index": _index,
    "index_select": _index_select,
    # numbers
    "full": _created,
    "zeros": _created,
    "ones": _created,
    "empty": _created,
    "new_zeros": _created,
    "new_ones": _created,
    "new_full": _created,
    "full_like": "b* -> b*",
    "zeros_like": "b* -> b*",
    "ones_like": "b* -> b*",
    "arange": _whole,
    "scalar_tensor": _whole,
    # losses
    "cross_entropy_loss": _cross_entropy,
    "nll_loss": _loss("n v!, n, v!? -> ", "n v!, n, v!? -> n"),
    "mse_loss": _loss("b*, b* -> ", "b*, b* -> b*"),
    "l1_loss": _loss("b*, b* -> ", "b*, b* -> b*"),
    "smooth_l1_loss": _loss("b*, b* -> ", "b*, b* -> b*"),
    "huber_loss": _loss("b*, b* -> ", "b*, b* -> b*"),
    "binary_cross_entropy": _loss("b*, b*, b*? -> ", "b*, b*, b*? -> b*"),
    "binary_cross_entropy_with_logits": _loss("b*, b*, b*?, b*? -> ", "b*, b*, b*?, b*? -> b*"),
    "kl_div": _loss("b*, b* -> ", "b*, b* -> b*"),
}
"""Op name (or name with overload) → its rule."""

RANDOM_RULES: dict[str, str | DimsFunction] = {
    "dropout": "+b* -> b*",
    "native_dropout": "b* -> b*, b*",
    "bernoulli": _pointwise,
    "cauchy": "b* -> b*",
    "exponential": "b* -> b*",
    "geometric": "b* -> b*",
    "log_normal": "b* -> b*",
    "normal": _pointwise,
    "normal.float_float": _created,
    "normal_functional": "b* -> b*",
    "poisson": "b* -> b*",
    "rand": _created,
    "rand_like": "b* -> b*",
    "randint": _created,
    "randint_like": "b* -> b*",
    "randn": _created,
    "randn_like": "b* -> b*",
    "uniform": "b* -> b*",
}
"""Rules of ops that draw random numbers: slices are drawn apart, partial sums pass where all ranks draw the same."""


def _normalisation(call: Call, *affine: str) -> OpDims:
    """The trailing `normalized_shape` dims are whole."""
    normalized = call["normalized_shape"]
    assert isinstance(normalized, tuple)
    inner = " ".join(f"h{i}!" for i in range(len(normalized)))
    present = [name for name in affine if isinstance(call[name], Ref)]
    line = f"b* {inner}{f', {inner}' * len(present)} -> b* {inner}"
    return parse_notation(line).resolve(call.operand_shapes(), call.results)
