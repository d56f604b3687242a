"""Sums and other functions along some dimensions, independent along all others."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from galvatron.ir.layout import REPLICATE
from galvatron.ir.ops import shapes
from galvatron.ir.ops.call import Call, along, paired, unnamed, whole
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.operator import OnSlices, Operator, alike


def _sum(call: Call) -> OpDims:
    """Summed dims may be sharded: the result is then partial."""
    (shape,) = call.operand_shapes()
    dims = call.dims("dim", len(shape)) if "dim" in call.arguments else tuple(range(len(shape)))
    operand = tuple((f"d{i}",) if size != 1 else () for i, size in enumerate(shape))
    keep = len(call.results[0]) == len(shape)
    result = tuple(() if i in dims else operand[i] for i in range(len(shape)) if keep or i not in dims)
    return OpDims((operand,), (result,), {f"d{i}": s for i, s in enumerate(shape) if s != 1}, sums=frozenset({0}))


def _terms(call: Call) -> OpDims:
    """A sum of terms that are not linear in the operand."""
    return replace(_sum(call), sums=frozenset())


def _histogram(call: Call) -> OpDims:
    """Of a stated range it is a sum over elements; the range of what is there depends on all of them."""
    if call["min"] == call["max"]:
        return whole(call)
    (shape,) = call.operand_shapes()
    operand = tuple((f"d{i}",) if size != 1 else () for i, size in enumerate(shape))
    sizes = {f"d{i}": size for i, size in enumerate(shape) if size != 1}
    return OpDims((operand,), tuple(map(unnamed, call.results)), sizes)


def _logsumexp(call: Call) -> OpDims:
    """One dimension may be sharded; several are whole."""
    dims = along("dim")(call)
    whole = [n for n in dims.sizes if n in dims.indivisible]
    if len(whole) != 1 or dims.sizes[whole[0]] == 1:
        return dims
    (at,) = call.dims("dim", len(call.shape("self")))
    (operand,) = dims.operands
    named = (*operand[:at], (whole[0],), *operand[at + 1 :])
    return replace(dims, operands=(named,), indivisible=frozenset(), spmd=frozenset(whole))


_along = partial(Operator, along("dim"))
_reduction = partial(_along, moves="reduction")
_softmax = partial(_along, shapes=shapes.in_one, dtype="shared", moves="softmax")

OPERATORS: dict[str, Operator] = {
    "sum": Operator(
        _sum,
        written={"default": "self.sum(dtype=)", "dim_IntList": "self.sum(dim=, keepdim=, dtype=)"},
        shapes=shapes.reduced,
        dtype="summed",
        moves="reduction",
    ),
    "nansum": Operator(_terms, moves="reduction"),
    "count_nonzero": Operator(_terms, moves="reduction"),
    "histc": Operator(_histogram, moves="reduction"),
    "softmax": _softmax(written={"int": "F.softmax(self, dim=, dtype=)"}),
    "log_softmax": _softmax(written={"int": "F.log_softmax(self, dim=, dtype=)"}),
    **alike("_softmax _log_softmax", _softmax(dtype="")),
    **alike("_softmax_backward_data _log_softmax_backward_data", Operator(moves="softmax")),
    "cumsum": Operator(
        along("dim", linear=True), written="self.cumsum(dim=, dtype=)", shapes=shapes.in_one, dtype="summed"
    ),
    **alike(
        "cumprod cummax cummin logcumsumexp median nanmedian mode kthvalue quantile.scalar argsort",
        _along(),
    ),
    **alike("aminmax argmin nanmean norm linalg_norm linalg_vector_norm var_mean std_mean", _reduction()),
    "diff": _along(rounds="n"),
    "logsumexp": Operator(
        _logsumexp,
        written="self.logsumexp(dim=, keepdim=)",
        on_slices=OnSlices(REPLICATE, forward=(("all_reduce", 1), ("all_reduce", 1)), folded="alike"),
        padded=range(1),
        moves="softmax",
    ),
    "mean": Operator(
        along("dim", linear=True),
        written={"default": "self.mean(dtype=)", "dim": "self.mean(dim=, keepdim=, dtype=)"},
        shapes=shapes.reduced,
        dtype="shared",
        moves="reduction",
    ),
    "amax": _reduction(written="self.amax(dim=, keepdim=)", shapes=shapes.reduced),
    "amin": _reduction(written="self.amin(dim=, keepdim=)", shapes=shapes.reduced),
    "max.dim": _reduction(written={"dim": "self.max(dim=, keepdim=)"}),
    "min.dim": _reduction(written={"dim": "self.min(dim=, keepdim=)"}),
    "argmax": _reduction(written="self.argmax(dim=, keepdim=)"),
    "prod": _reduction(written={"dim_int": "self.prod(dim=, keepdim=, dtype=)"}),
    "any": _reduction(written={"default": "self.any()", "dim": "self.any(dim=, keepdim=)"}, shapes=shapes.judged),
    "all": _reduction(written={"default": "self.all()", "dim": "self.all(dim=, keepdim=)"}, shapes=shapes.judged),
    "var": _reduction(written={"correction": "self.var(dim=, correction=, keepdim=)"}),
    "std": _reduction(written={"correction": "self.std(dim=, correction=, keepdim=)"}),
    "glu": _along(written="F.glu(self, dim=)"),
    **alike(
        "trapezoid.dx fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn "
        "fft_ifftn fft_fftshift fft_ifftshift",
        Operator(along("dim", linear=True)),
    ),
    "topk": _along(written="self.topk(k, dim=, largest=, sorted=)"),
    "sort": _along(written="self.sort(dim=, descending=)"),
    **alike("cosine_similarity linalg_cross", Operator(paired("dim"))),
    "pairwise_distance": Operator(paired("")),
    "cdist": Operator("b* m d!, b* n d! -> b* m n"),
}
