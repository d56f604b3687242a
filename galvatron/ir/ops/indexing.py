"""Elements at indices, read and written."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from galvatron.ir.layout import PARTIAL
from galvatron.ir.ops import shapes
from galvatron.ir.ops.arguments import Ref, walk_refs
from galvatron.ir.ops.call import Call, along, by_line, known, paired, unnamed, whole
from galvatron.ir.ops.notation import DimNames, OpDims
from galvatron.ir.ops.operator import OnSlices, Operator, alike
from galvatron.ir.types import Dim


def _embedding(call: Call) -> OpDims:
    """Rows of a table; with gradients scaled by how often an index occurs, only the columns may be sharded."""
    line = "~v! h, b*! -> b*! h" if call["scale_grad_by_freq"] else "~v^ h, b* -> b* h"
    return by_line(call, line)


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


def _indexed(call: Call) -> OpDims:
    """`index_add` and its like: `source` is written at indices of one dim, which is whole; all else is as in `self`."""
    shape = call.shape("self")
    along = call.dims("dim", len(shape))
    sizes = {f"d{i}": s for i, s in enumerate(shape) if i not in along and s != 1}
    named = tuple(known(sizes, f"d{i}") for i in range(len(shape)))
    tensors = [(name, call.types[a.name].shape) for name, a in call.arguments.items() if isinstance(a, Ref)]
    operands = tuple(named if name in ("self", "source") else unnamed(shape) for name, shape in tensors)
    return OpDims(operands, (named,), sizes)


def _index_added(call: Call) -> OpDims:
    """`index_add` is a sum over the rows of `source`."""
    return _added(_indexed(call), call, call.dims("dim", len(call.shape("self")))[0])


def _scatter_added(call: Call) -> OpDims:
    """`scatter_add` is a sum over what is along its dim, where each element of `src` has an index."""
    dims, shape = along("dim")(call), call.shape("self")
    if not shape or call.shape("index") != call.shape("src"):
        return dims
    return _added(dims, call, call.dims("dim", len(shape))[0])


def _added(dims: OpDims, call: Call, dim: int) -> OpDims:
    """The dims of an op that adds terms to its first operand, of which the last has some in each row of `dim`."""
    index, source = call.operand_shapes()[1:]
    if source[dim] == 1:
        return dims
    first, *rest = dims.operands
    terms = [
        tuple(("s",) if i == (dim if len(tensor) > 1 else 0) else names for i, names in enumerate(tensor))
        for tensor in rest
    ]
    return replace(
        dims, operands=(first, *terms), sizes={**dims.sizes, "s": source[dim]}, sums=frozenset({0, len(rest)})
    )


def _written(call: Call) -> OpDims:
    """`index_put`: dims that are not indexed are those of the values; a mask that chooses where one number goes is read
    element by element."""
    shape, indices = call.shape("self"), call["indices"]
    values = call.shape("values")
    assert isinstance(indices, tuple)
    refs = {i: index for i, index in enumerate(indices) if isinstance(index, Ref)}
    masks = [index for index in refs.values() if call.types[index.name].dtype in _MASKS]
    if masks:
        if len(refs) > 1 or 0 not in refs or any(size != 1 for size in values):
            return whole(call)
        sizes = {f"d{i}": s for i, s in enumerate(shape) if s != 1}
        named = tuple(known(sizes, f"d{i}") for i in range(len(shape)))
        mask = named[: len(call.types[masks[0].name].shape)]
        return OpDims((named, mask, unnamed(values)), (named,), sizes)
    positions = sorted(refs)
    sizes = {f"d{i}": s for i, s in enumerate(shape) if i not in refs and s != 1}
    named = tuple(known(sizes, f"d{i}") for i in range(len(shape)))
    index_shapes = [call.types[refs[i].name].shape for i in positions]
    at = positions[0] if positions == list(range(positions[0], positions[-1] + 1)) else 0
    rest = [n for i, n in enumerate(named) if i not in refs]
    chosen = [*rest[:at], *[()] * max(map(len, index_shapes)), *rest[at:]]
    aligned = tuple(() if size == 1 else n for n, size in zip(chosen[len(chosen) - len(values) :], values, strict=True))
    return OpDims((named, *map(unnamed, index_shapes), aligned), (named,), sizes)


def _positions(call: Call) -> OpDims:
    """`searchsorted` in one sequence, or in one of as many as there are rows of values."""
    if isinstance(call["sorter"], Ref):
        return whole(call)
    shared = len(call.shape("sorted_sequence")) == 1
    return by_line(call, "k!, b* -> b*" if shared else "b* k!, b* q -> b* q")


_MASKS = ("bool", "u8")

_write = partial(Operator, shapes=shapes.like_first, indices="index", moves="scatter")

OPERATORS: dict[str, Operator] = {
    "one_hot": Operator("b* -> b* v!", written="F.one_hot(self, num_classes)", indices="self"),
    "bucketize.Tensor": Operator("b*, k! -> b*"),
    "searchsorted.Tensor": Operator(_positions),
    "isin.Tensor_Tensor": Operator(
        "b*, t*! -> b*", written={"Tensor_Tensor": "torch.isin(elements, test_elements, assume_unique=, invert=)"}
    ),
    "gather": Operator(along("dim"), written="self.gather(dim, index)", indices="index", gathers=True, moves="gather"),
    "take_along_dim": Operator(paired("dim"), indices="indices", negative=True, moves="gather"),
    "scatter": _write(
        along("dim"),
        written={"src": "self.scatter(dim, index, src)", "value": "self.scatter(dim, index, value)"},
    ),
    "scatter_add": _write(_scatter_added, written="self.scatter_add(dim, index, src)"),
    "scatter_reduce": Operator(along("dim"), indices="index", moves="scatter"),
    "index_add": _write(_index_added, written="self.index_add(dim, index, source, alpha=)"),
    "index_copy": _write(_indexed),
    "index_fill": _write(_indexed, negative=True),
    "index_put": _write(_written, indices="indices", masks=True, negative=True),
    "embedding": Operator(
        _embedding,
        written="F.embedding(indices, weight) or torch.embedding(weight, indices, padding_idx)",
        shapes=shapes.embedding,
        dtype="same",
        indices="indices",
        special=("padding_idx",),
        rows=True,
        looks_up=True,
        gathers=True,
        on_slices=OnSlices(PARTIAL),
        padded=range(1),
        moves="gather",
    ),
    "embedding_dense_backward": Operator(moves="scatter"),
    "index": Operator(
        _index,
        written={"Tensor": "self[indices]"},
        indices="indices",
        masks=True,
        negative=True,
        gathers=True,
        moves="gather",
    ),
    "index_select": Operator(
        _index_select, written="self.index_select(dim, index)", indices="index", rows=True, gathers=True, moves="gather"
    ),
    **alike(
        "_embedding_bag embedding_bag",
        Operator(indices="indices", special=("padding_idx",), looks_up=True, moves="gather"),
    ),
    "index_reduce": Operator(indices="index"),
    **alike("put take", Operator(indices="index", negative=True)),
}
