"""The rule table: the named dimensions of every op, one line per op.

An op is looked up by its overload, then by its name without the overload. Ops whose dimensions depend on their
arguments (views, reductions over given dims, concatenation) have a function instead of a line. Pointwise ops without a
line of their own are recognised by the table of operators, which repeats torch's tag. An op without a rule is computed
whole on every rank: right, and slow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from galvatron.ir.graph import Op, Ref, walk_refs
from galvatron.ir.ops.call import Call, DimsFunction, Types, by_line, whole
from galvatron.ir.ops.elements import (
    diagonal,
    diagonal_matrices,
    indexed,
    paired,
    repeated,
    repeated_in_place,
    windows,
    written,
)
from galvatron.ir.ops.layers import (
    batch_norm,
    convolution,
    einsum,
    grid_samples,
    group_norm,
    instance_norm,
    kronecker,
    recurrent,
    recurrent_cell,
    solution,
    tensordot,
)
from galvatron.ir.ops.notation import DimNames, OpDims, Shape, parse_notation
from galvatron.ir.ops.schemas import is_operator, schema_of
from galvatron.ir.ops.views import view_dims
from galvatron.ir.types import BATCH, Dim, exact_quotient


def op_dims(op: Op, types: Types) -> OpDims | None:
    """The named dimensions of `op` on operands of these types, or None for an op without a rule."""
    names = (f"{op.name}.{op.overload}", op.name)
    rule = next((table[name] for table in (RULES, RANDOM_RULES) for name in names if name in table), None)
    if rule is None and is_operator(op.target) and schema_of(op.target).pointwise:
        rule = _pointwise
    if rule is None:
        return None
    call = Call(op, types)
    if callable(rule):
        return rule(call)
    dims = by_line(call, rule)
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


def _joined(call: Call) -> OpDims:
    """Equal parts: the dim is (parts, size of a part) as in `_split`; unequal parts keep it whole."""
    shapes = call.operand_shapes()
    dim = int(call.arguments.get("dim", 0)) % len(shapes[0])  # type: ignore[arg-type]  # an int by schema
    return _joined_along(call, dim)


def _joined_along(call: Call, dim: int) -> OpDims:
    shapes = call.operand_shapes()
    if len(set(shapes)) > 1 or len(shapes) == 1:
        return _with_whole(call, (dim,), linear=True)
    operand = tuple((f"d{i}",) if s != 1 else () for i, s in enumerate(shapes[0]))
    result = (*operand[:dim], ("parts", *operand[dim]), *operand[dim + 1 :])
    sizes = {f"d{i}": s for i, s in enumerate(shapes[0]) if s != 1} | {"parts": len(shapes)}
    return OpDims((operand,) * len(shapes), (result,), sizes, frozenset({"parts"}), sums=frozenset(range(len(shapes))))


def _sliced(call: Call) -> OpDims:
    """One of several equal parts of the batch is (parts, samples) of which it has the samples; others keep it whole."""
    shape, (result,) = call.shape("self"), call.results
    (dim,) = call.dims("dim", len(shape))
    inner, parts = exact_quotient(result[dim], BATCH), exact_quotient(shape[dim], result[dim])
    start = call["start"] or 0
    assert isinstance(start, Dim)
    aligned = start == 0 or exact_quotient(start, result[dim]) is not None
    if inner is None or parts in (None, 1) or call["step"] != 1 or not aligned:
        return _with_whole(call, (dim,), linear=True)
    named = tuple((f"d{i}",) if i != dim and s != 1 else () for i, s in enumerate(shape))
    part: DimNames = ("samples",) if inner == 1 else ("samples", "inner")
    sizes: dict[str, Dim] = {f"d{i}": s for i, s in enumerate(shape) if i != dim and s != 1}
    sizes |= {"parts": parts, "samples": BATCH} | ({} if inner == 1 else {"inner": inner})
    names = (("parts", *part), part)
    operand, made = ((*named[:dim], n, *named[dim + 1 :]) for n in names)
    return OpDims((operand,), (made,), sizes, frozenset({"parts", "inner"} & sizes.keys()), sums=frozenset({0}))


def _overwritten(call: Call) -> OpDims:
    """A slice that is written anew; where it is all there is, so is each element."""
    if call.shape("src") == call.shape("self"):
        return by_line(call, "b*, b* -> b*")
    return _with_whole(call, call.dims("dim", len(call.shape("self"))), linear=True)


def _terms(call: Call) -> OpDims:
    """A sum of terms that are not linear in the operand."""
    return replace(_sum(call), sums=frozenset())


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
    """A tensor of one repeated number: each rank makes its part of any dim. Operands only lend their dtype, but those
    of samples are made beside samples."""
    (shape,) = call.results
    result = tuple((f"d{i}",) if s != 1 else () for i, s in enumerate(shape))
    operands = tuple(
        tuple(result[i] if i < len(shape) and s == shape[i] and not isinstance(s, int) else () for i, s in enumerate(o))
        for o in call.operand_shapes()
    )
    return OpDims(operands, (result,), {f"d{i}": s for i, s in enumerate(shape) if s != 1})


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


def _embedding(call: Call) -> OpDims:
    """Rows of a table; with gradients scaled by how often an index occurs, only the columns may be sharded."""
    line = "~v! h, b*! -> b*! h" if call["scale_grad_by_freq"] else "~v^ h, b* -> b* h"
    return by_line(call, line)


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


def _loss(line: str, elementwise: str) -> DimsFunction:
    """A loss whose `reduction` argument is 2 (sum) or 0 (none); a mean is left whole."""

    def rule(call: Call) -> OpDims:
        if call["reduction"] == 1:
            return whole(call)
        return by_line(call, line if call["reduction"] == 2 else elementwise)

    return rule


def _of_rank(rank: int, argument: str, rule: DimsFunction) -> DimsFunction:
    """A rule for an argument of at least this rank; below, the op stays whole."""
    return lambda call: rule(call) if len(call.shape(argument)) >= rank else whole(call)


def _cross_entropy(call: Call) -> OpDims:
    rank = len(call.shape("self"))
    if rank == 1:
        return whole(call)
    # Class indices without class weights may be looked up in a sharded vocabulary.
    indices = len(call.shape("target")) < rank
    v = "v^" if indices and rank == 2 and not isinstance(call["weight"], Ref) else "v!"
    target = "n d*" if indices else "n v! d*"
    return _loss(f"n {v} d*, {target}, {v}? -> ", f"n {v} d*, {target}, {v}? -> n d*")(call)


_likelihood = _of_rank(2, "self", _loss("n v! d*, n d*, v!? -> ", "n v! d*, n d*, v!? -> n d*"))


def _prelu(call: Call) -> OpDims:
    """One slope for all, or one for each channel."""
    return by_line(call, "b*, 1 -> b*" if call.shape("weight") in ((), (1,)) else "n c d*, c -> n c d*")


def _positions(call: Call) -> OpDims:
    """`searchsorted` in one sequence, or in one of as many as there are rows of values."""
    if isinstance(call["sorter"], Ref):
        return whole(call)
    shared = len(call.shape("sorted_sequence")) == 1
    return by_line(call, "k!, b* -> b*" if shared else "b* k!, b* q -> b* q")


_POOL_1D = "b* l! -> b* x!"
_POOL_2D = "b* h! w! -> b* x! y!"
_POOL_3D = "b* d! h! w! -> b* x! y! z!"


def _attention(call: Call) -> OpDims:
    """Queries may be split, except under `is_causal`, which numbers them from 0."""
    rows = "q!" if call["is_causal"] else "q"
    heads = "(h g)" if call["enable_gqa"] else "h"
    return by_line(call, f"b* {heads} {rows} d!, b* h k! d!, b* h k! e!, b* {heads} {rows} k!? -> b* {heads} {rows} e!")


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
    "mv": "~m k, ~k -> m",
    "addmv": "+m, ~m k, ~k -> m",
    "addbmm": "+m n, ~b m k, ~b k n -> m n",
    "dot": "~k, ~k -> ",
    "outer": "~m, ~n -> m n",
    "addr": "+m n, ~m, ~n -> m n",
    "bilinear": "~b* i, ~b* j, ~o i j, +o? -> b* o",
    "einsum": einsum,
    "tensordot": tensordot,
    "kron": kronecker,
    "convolution": convolution,
    "conv1d": convolution,
    "conv2d": convolution,
    "conv3d": convolution,
    "conv_transpose1d": convolution,
    "conv_transpose2d": convolution,
    "conv_transpose3d": convolution,
    "scaled_dot_product_attention": _attention,
    # sums
    "add": "+b*, +b* -> b*",
    "sub": "+b*, +b* -> b*",
    "rsub": "+b*, +b* -> b*",
    "neg": "+b* -> b*",
    "clone": "+b* -> b*",
    "_to_copy": "b* -> b*",
    "detach": "b* -> b*",
    "sum": _sum,
    "nansum": _terms,
    "count_nonzero": _terms,
    # pointwise ops that torch does not tag as such
    "where.ScalarOther": "b*, b* -> b*",
    "where.ScalarSelf": "b*, b*, b* -> b*",
    "hardswish": "b* -> b*",
    "log_sigmoid": "b* -> b*",
    "prelu": _prelu,
    "fill": "b*, b* -> b*",
    "copy": "b*, b* -> b*",
    "complex": "+b*, +b* -> b*",
    "real": "+b* -> b*",
    "imag": "+b* -> b*",
    "conj_physical": "+b* -> b*",
    "polar": "b*, b* -> b*",
    "view_as_complex": "+b* 2! -> b*",
    "view_as_real": "+b* -> b* 2!",
    "one_hot": "b* -> b* v!",
    "bucketize.Tensor": "b*, k! -> b*",
    "searchsorted.Tensor": _positions,
    "isin.Tensor_Tensor": "b*, t*! -> b*",
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
    "slice": _sliced,
    "select": _along("dim", linear=True),
    "narrow": _along("dim", linear=True),
    "unbind": _along("dim", linear=True),
    "narrow_copy": _along("dim", linear=True),
    "select_scatter": _along("dim", linear=True),
    "slice_scatter": _overwritten,
    "cat": _joined,
    "hstack": _of_rank(2, "tensors", lambda call: _joined_along(call, 1)),
    "vstack": _of_rank(2, "tensors", lambda call: _joined_along(call, 0)),
    "stack": _stack,
    "repeat": repeated,
    "tile": repeated,
    "repeat_interleave.self_int": repeated_in_place,
    "unfold": windows,
    "diagonal": diagonal,
    "diagonal_scatter": diagonal,
    "diag_embed": diagonal_matrices,
    "pad": _pad,
    "constant_pad_nd": _pad,
    # along one dimension
    "softmax": _along("dim"),
    "_softmax": _along("dim"),
    "log_softmax": _along("dim"),
    "_log_softmax": _along("dim"),
    "cumsum": _along("dim", linear=True),
    "cumprod": _along("dim"),
    "cummax": _along("dim"),
    "cummin": _along("dim"),
    "logcumsumexp": _along("dim"),
    "logsumexp": _logsumexp,
    "mean": _along("dim", linear=True),
    "amax": _along("dim"),
    "amin": _along("dim"),
    "aminmax": _along("dim"),
    "max.dim": _along("dim"),
    "min.dim": _along("dim"),
    "argmax": _along("dim"),
    "argmin": _along("dim"),
    "median": _along("dim"),
    "nanmedian": _along("dim"),
    "mode": _along("dim"),
    "kthvalue": _along("dim"),
    "quantile.scalar": _along("dim"),
    "nanmean": _along("dim"),
    "prod": _along("dim"),
    "any": _along("dim"),
    "all": _along("dim"),
    "norm": _along("dim"),
    "linalg_norm": _along("dim"),
    "linalg_vector_norm": _along("dim"),
    "var": _along("dim"),
    "std": _along("dim"),
    "var_mean": _along("dim"),
    "std_mean": _along("dim"),
    "glu": _along("dim"),
    "trapezoid.dx": _along("dim", linear=True),
    "diff": _along("dim"),
    "flip": _along("dims", linear=True),
    "roll": _along("dims", linear=True),
    "topk": _along("dim"),
    "sort": _along("dim"),
    "argsort": _along("dim"),
    "rot90": _along("dims", linear=True),
    "fliplr": lambda call: _with_whole(call, (1,), linear=True),
    "flipud": lambda call: _with_whole(call, (0,), linear=True),
    "fft_fft": _along("dim", linear=True),
    "fft_ifft": _along("dim", linear=True),
    "fft_rfft": _along("dim", linear=True),
    "fft_irfft": _along("dim", linear=True),
    "fft_fft2": _along("dim", linear=True),
    "fft_ifft2": _along("dim", linear=True),
    "fft_rfft2": _along("dim", linear=True),
    "fft_irfft2": _along("dim", linear=True),
    "fft_fftn": _along("dim", linear=True),
    "fft_ifftn": _along("dim", linear=True),
    "fft_fftshift": _along("dim", linear=True),
    "fft_ifftshift": _along("dim", linear=True),
    "gather": _along("dim"),
    "take_along_dim": paired("dim"),
    "scatter": _along("dim"),
    "scatter_add": _along("dim"),
    "scatter_reduce": _along("dim"),
    "index_add": indexed,
    "index_copy": indexed,
    "index_fill": indexed,
    "index_put": written,
    "cosine_similarity": paired("dim"),
    "pairwise_distance": paired(""),
    "linalg_cross": paired("dim"),
    "cdist": "b* m d!, b* n d! -> b* m n",
    "triu": "b* m! n! -> b* m! n!",
    "tril": "b* m! n! -> b* m! n!",
    # of matrices
    "linalg_inv": "b* m! n! -> b* m! n!",
    "linalg_cholesky": "b* m! n! -> b* m! n!",
    "linalg_matrix_power": "b* m! n! -> b* m! n!",
    "linalg_matrix_exp": "b* m! n! -> b* m! n!",
    "linalg_det": "b* m! n! -> b*",
    "linalg_slogdet": "b* m! n! -> b*, b*",
    "linalg_svdvals": "b* m! n! -> b* k!",
    "linalg_eigvalsh": "b* m! n! -> b* k!",
    "linalg_solve": solution,
    # of images and sequences
    "max_pool1d": _POOL_1D,
    "avg_pool1d": _POOL_1D,
    "adaptive_avg_pool1d": _POOL_1D,
    "adaptive_max_pool1d": f"{_POOL_1D}, b* x!",
    "max_pool2d": _POOL_2D,
    "max_pool2d_with_indices": f"{_POOL_2D}, b* x! y!",
    "avg_pool2d": _POOL_2D,
    "adaptive_avg_pool2d": _POOL_2D,
    "adaptive_max_pool2d": f"{_POOL_2D}, b* x! y!",
    "max_pool3d": _POOL_3D,
    "max_pool3d_with_indices": f"{_POOL_3D}, b* x! y! z!",
    "avg_pool3d": _POOL_3D,
    "adaptive_avg_pool3d": _POOL_3D,
    "adaptive_max_pool3d": f"{_POOL_3D}, b* x! y! z!",
    "upsample_nearest1d": _POOL_1D,
    "upsample_linear1d": _POOL_1D,
    "upsample_nearest2d": _POOL_2D,
    "upsample_bilinear2d": _POOL_2D,
    "upsample_bicubic2d": _POOL_2D,
    "_upsample_bilinear2d_aa": _POOL_2D,
    "_upsample_bicubic2d_aa": _POOL_2D,
    "upsample_nearest3d": _POOL_3D,
    "upsample_trilinear3d": _POOL_3D,
    "pixel_shuffle": "b* (c r!) h! w! -> b* c x! y!",
    "pixel_unshuffle": "b* c h! w! -> b* (c r!) x! y!",
    "channel_shuffle": "n c! d* -> n c! d*",
    "im2col": "n c h! w! -> n (c k!) l!",
    "col2im": "n (c k!) l! -> n c h! w!",
    "grid_sampler": grid_samples,
    "lstm.input": recurrent(2),
    "gru.input": recurrent(1),
    "rnn_tanh.input": recurrent(1),
    "rnn_relu.input": recurrent(1),
    "lstm_cell": recurrent_cell(2),
    "gru_cell": recurrent_cell(1),
    "rnn_tanh_cell": recurrent_cell(1),
    "rnn_relu_cell": recurrent_cell(1),
    # normalisation and lookup
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "group_norm": group_norm,
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
    "new_empty": _created,
    "empty_like": "b* -> b*",
    "full_like": "b* -> b*",
    "zeros_like": "b* -> b*",
    "ones_like": "b* -> b*",
    "arange": whole,
    "scalar_tensor": whole,
    # losses
    "cross_entropy_loss": _cross_entropy,
    "nll_loss": _likelihood,
    "nll_loss_nd": _likelihood,
    "nll_loss2d": _likelihood,
    "mse_loss": _loss("b*, b* -> ", "b*, b* -> b*"),
    "l1_loss": _loss("b*, b* -> ", "b*, b* -> b*"),
    "smooth_l1_loss": _loss("b*, b* -> ", "b*, b* -> b*"),
    "huber_loss": _loss("b*, b* -> ", "b*, b* -> b*"),
    "binary_cross_entropy": _loss("b*, b*, b*? -> ", "b*, b*, b*? -> b*"),
    "binary_cross_entropy_with_logits": _loss("b*, b*, b*?, b*? -> ", "b*, b*, b*?, b*? -> b*"),
    "kl_div": _loss("b*, b* -> ", "b*, b* -> b*"),
    "soft_margin_loss": _loss("b*, b* -> ", "b*, b* -> b*"),
    "hinge_embedding_loss": _loss("b*, b* -> ", "b*, b* -> b*"),
    "poisson_nll_loss": _loss("b*, b* -> ", "b*, b* -> b*"),
    "margin_ranking_loss": _loss("b*, b*, b* -> ", "b*, b*, b* -> b*"),
    "cosine_embedding_loss": _loss("b* d!, b* d!, b* -> ", "b* d!, b* d!, b* -> b*"),
    "triplet_margin_loss": _loss("b* d!, b* d!, b* d! -> ", "b* d!, b* d!, b* d! -> b*"),
    "multi_margin_loss": _of_rank(2, "self", _loss("n v!, n, 1, 1, v!? -> ", "n v!, n, 1, 1, v!? -> n")),
    "multilabel_margin_loss": _of_rank(2, "self", _loss("n v!, n v! -> ", "n v!, n v! -> n")),
    "ctc_loss.Tensor": _of_rank(2, "targets", _loss("t! n c!, n s!, n, n -> ", "t! n c!, n s!, n, n -> n")),
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
