"""Sample calls of ops that place, select, reduce or multiply elements."""

from __future__ import annotations

import torch

from tests.partition.samples import Draw, Sample, below, case, each, positive, real, sample

# products


def _products(d: Draw, rule: str) -> Sample:
    m, k, n, b = d.shape(4, 4)
    return {
        "mv": lambda: sample("mv.default", real(m, k), real(k)),
        "dot": lambda: sample("dot.default", real(k), real(k)),
        "outer": lambda: sample("outer.default", real(m), real(n)),
        "addmv": lambda: sample("addmv.default", real(*d.one_of((m,), (1,))), real(m, k), real(k), beta=2),
        "addr": lambda: sample("addr.default", real(*d.broadcast((m, n))), real(m), real(n)),
        "addbmm": lambda: sample("addbmm.default", real(*d.broadcast((m, n))), real(b, m, k), real(b, k, n)),
        "bilinear": lambda: sample("bilinear.default", real(b, m), real(b, k), real(n, m, k), d.one_of(None, real(n))),
    }[rule]()


each(("mv", "dot", "outer", "addmv", "addr", "addbmm", "bilinear"), _products)


@case("lerp.Scalar")
def _lerp(d: Draw) -> Sample:
    shape = d.shape(2, 2)
    return sample("lerp.Scalar", real(*shape), real(*d.broadcast(shape)), 0.3)


@case("einsum")
def _einsum(d: Draw) -> Sample:
    a, b, c, e = d.shape(4, 4)
    equation, *shapes = d.one_of(
        ("ab,bc->ac", (a, b), (b, c)),
        ("abc,dc->abd", (a, b, c), (e, c)),
        ("ab,cb", (a, b), (c, b)),
        ("...a,ba->...b", (e, c, a), (b, a)),
        ("...ab,...bc->...ac", (e, a, b), (e, b, c)),
        ("aab->b", (a, a, b)),
        ("ab,ab,b->a", (a, b), (a, b), (b,)),
        ("ab->ba", (a, b)),
        ("ab,c->", (a, b), (c,)),
        ("ab,ab->ab", (a, b), (1, b)),
    )
    return sample("einsum.default", equation, [real(*shape) for shape in shapes])


@case("tensordot")
def _tensordot(d: Draw) -> Sample:
    a, b, c = d.shape(3, 3)
    first, second = d.one_of(([2], [0]), ([1, 2], [1, 0]), ([], []), ([0], [1]))
    other = d.shape(2, 2)
    shape = [*other]
    for i, j in zip(first, second, strict=True):
        shape[j] = (a, b, c)[i]
    return sample("tensordot.default", real(a, b, c), real(*shape), first, second)


@case("kron")
def _kron(d: Draw) -> Sample:
    left, right = d.shape(2, 2), d.one_of(d.shape(2, 2), d.shape(1, 1))
    return sample("kron.default", real(*left), real(*right))


# pointwise ops that torch does not tag as such

each(
    ("hardswish", "log_sigmoid"),
    lambda d, rule: sample(f"{rule}.default", real(*d.shape())),
)


@case("prelu")
def _prelu(d: Draw) -> Sample:
    shape = d.shape(2, 3)
    return sample("prelu.default", real(*shape), positive(*d.one_of((shape[1],), (1,))))


@case("copy")
def _copy(d: Draw) -> Sample:
    # Of whole numbers: torch has no derivative of it.
    shape = d.shape()
    return sample("copy.default", below(5, *shape), below(5, *d.broadcast(shape)))


@case("fill")
def _fill(d: Draw) -> Sample:
    shape = d.shape()
    return d.one_of(
        sample("fill.Tensor", real(*shape), real()),
        sample("fill.Scalar", real(*shape), 2.0),
    )


each(("one_hot",), lambda d, rule: sample(f"{rule}.default", below(3, *d.shape()), 3))


def _found(d: Draw, rule: str) -> Sample:
    shape = d.shape(1, 3)
    bounds = real(5).sort()[0]
    rows = real(*shape[:-1], 4).sort(-1)[0]
    return {
        "bucketize.Tensor": lambda: sample("bucketize.Tensor", real(*shape), bounds),
        "searchsorted.Tensor": lambda: d.one_of(
            sample("searchsorted.Tensor", bounds, real(*shape), right=d.one_of(True, False)),
            sample("searchsorted.Tensor", rows, real(*shape[:-1], d.size())),
            sample("searchsorted.Tensor", rows, real(*shape[:-1], 3), sorter=rows.argsort(-1)),
        ),
        "isin.Tensor_Tensor": lambda: sample("isin.Tensor_Tensor", below(5, *shape), below(5, 2)),
    }[rule]()


each(("bucketize.Tensor", "searchsorted.Tensor", "isin.Tensor_Tensor"), _found)


each(
    ("rsub",),
    lambda d, rule: d.one_of(
        sample("rsub.Tensor", real(*(shape := d.shape())), real(*d.broadcast(shape)), alpha=d.one_of(1, 2)),
        sample("rsub.Scalar", real(*d.shape()), 2.0),
    ),
)

# where elements go


def _repeat(d: Draw, rule: str) -> Sample:
    shape = d.shape(0, 3)
    times = [*d.one_of([], [2]), *(d.one_of(1, 1, 2, 3) for _ in shape)]
    given = times[d.index(len(times)) :] if times and rule == "tile" else times
    return sample(f"{rule}.default", real(*shape), given)


each(("repeat", "tile"), _repeat)


@case("repeat_interleave.self_int")
def _repeat_interleave(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.one_of(None, d.index(len(shape)))
    return sample("repeat_interleave.self_int", real(*shape), d.one_of(1, 2, 3), dim)


@case("cat", "hstack", "vstack")
def _joined(d: Draw) -> Sample:
    shape, parts = d.shape(1, 3), d.one_of(1, 2, 3)
    target, *dim = d.one_of(
        ("cat.default", d.index(len(shape))), ("cat.default",), ("hstack.default",), ("vstack.default",)
    )
    return sample(target, [real(*shape) for _ in range(parts)], *dim)


@case("unfold")
def _unfold(d: Draw) -> Sample:
    lead, tail = d.shape(0, 2), d.shape(0, 1)
    return sample("unfold.default", real(*lead, 6, *tail), len(lead), 2, d.one_of(1, 2))


def _diagonal(d: Draw, rule: str) -> Sample:
    shape, offset = d.shape(3, 3), d.one_of(0, 1)
    dims = d.one_of((0, 1), (-2, -1), (2, 0), (-1, 0))
    return sample(f"{rule}.default", real(*(s + 1 for s in shape) if rule == "diagonal" else shape), offset, *dims)


each(("diagonal", "diag_embed"), _diagonal)


def _copied(d: Draw, rule: str) -> Sample:
    shape = d.shape(2, 3)
    dim = d.index(len(shape))
    part = (*shape[:dim], 1, *shape[dim + 1 :])
    return {
        "narrow_copy": lambda: sample("narrow_copy.default", real(*shape), dim, 0, 1),
        "select_scatter": lambda: sample(
            "select_scatter.default", real(*shape), real(*shape[:dim], *shape[dim + 1 :]), dim, 0
        ),
        "slice_scatter": lambda: sample(
            "slice_scatter.default", real(*shape), real(*part), dim, shape[dim] - 1, shape[dim]
        ),
        "fliplr": lambda: sample("fliplr.default", real(*shape)),
        "flipud": lambda: sample("flipud.default", real(*shape)),
        "rot90": lambda: sample(
            "rot90.default", real(*shape), d.one_of(1, 2, 3), d.one_of([0, 1], [len(shape) - 1, 0])
        ),
    }[rule]()


each(("narrow_copy", "select_scatter", "slice_scatter", "fliplr", "flipud", "rot90"), _copied)


@case("index_put")
def _index_put(d: Draw) -> Sample:
    x = d.shape(3, 3)
    mode = d.one_of("mask", "first", "middle", "apart", "last")
    if mode == "mask":
        mask = below(2, *x[: 1 + d.index(3)]).bool()
        return sample("index_put.default", real(*x), [mask], real(*d.one_of((), (1,))))
    # Without repeats, so that what is written last does not matter.
    first, middle, last = (torch.randperm(size)[: 1 + d.index(size)] for size in x)
    indices, shape = {
        "first": ([first], (len(first), x[1], x[2])),
        "middle": ([None, middle], (x[0], len(middle), x[2])),
        "last": ([None, None, last], (x[0], x[1], len(last))),
        "apart": ([first[:1], None, last], (len(last), x[1])),
    }[mode]
    return sample("index_put.default", real(*x), indices, real(*d.broadcast(shape)), d.one_of(True, False))


@case("take_along_dim")
def _take_along_dim(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    index = below(shape[dim], *(d.size() if i == dim else d.one_of(s, 1) for i, s in enumerate(shape)))
    return sample("take_along_dim.default", real(*shape), index, dim)


def _scatter_reduced(d: Draw, rule: str) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    other = d.one_of(shape, tuple(1 + d.index(size) for size in shape))
    index = below(shape[dim], *other[:dim], d.size(), *other[dim + 1 :])
    target, *rest = (
        ("scatter_add.default",) if rule == "scatter_add" else ("scatter_reduce.two", d.one_of("mean", "amax"))
    )
    return sample(target, real(*shape), dim, index, real(*index.shape), *rest)


each(("scatter_add", "scatter_reduce"), _scatter_reduced)


# along one dimension


def _dim(d: Draw, rule: str) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    keep = d.one_of(True, False)
    target, *rest = {
        "cumprod": ("cumprod.default", dim),
        "cummax": ("cummax.default", dim),
        "cummin": ("cummin.default", dim),
        "logcumsumexp": ("logcumsumexp.default", dim),
        "max.dim": ("max.dim", dim, keep),
        "min.dim": ("min.dim", dim, keep),
        "argmin": ("argmin.default", d.one_of(dim, None)),
        "argsort": ("argsort.default", dim),
        "median": d.one_of(("median.dim", dim, keep), ("median.default",)),
        "nanmedian": ("nanmedian.dim", dim, keep),
        "mode": ("mode.default", dim, keep),
        "kthvalue": ("kthvalue.default", 1, dim, keep),
        "quantile.scalar": ("quantile.scalar", 0.3, d.one_of(dim, None), keep),
        "nanmean": ("nanmean.default", [dim], keep),
        "nansum": ("nansum.default", d.one_of([dim], None), keep),
        "prod": d.one_of(("prod.dim_int", dim, keep), ("prod.default",)),
        "norm": d.one_of(("norm.ScalarOpt_dim", 3, [dim], keep), ("norm.Scalar",)),
        "linalg_norm": ("linalg_norm.default", None, d.one_of([dim], None), keep),
        "linalg_vector_norm": ("linalg_vector_norm.default", d.one_of(1, 2), d.one_of([dim], None), keep),
        "trapezoid.dx": ("trapezoid.dx",),
    }[rule]
    kwargs = {"dim": dim} if rule == "trapezoid.dx" else {}
    return sample(target, real(*shape), *rest, **kwargs)


each(
    ("cumprod", "cummax", "cummin", "logcumsumexp", "max.dim", "min.dim", "argmin", "argsort", "median", "nanmedian",
     "mode", "kthvalue", "quantile.scalar", "nanmean", "nansum", "prod", "norm", "linalg_norm", "linalg_vector_norm",
     "trapezoid.dx"), _dim,
)  # fmt: skip


def _truths(d: Draw, rule: str) -> Sample:
    shape = d.shape(1, 3)
    dim, keep = d.index(len(shape)), d.one_of(True, False)
    truths = below(2, *shape).bool()
    return {
        "aminmax": lambda: sample("aminmax.default", real(*shape), dim=dim, keepdim=keep),
        "any": lambda: d.one_of(
            sample("any.dim", truths, dim, keep), sample("any.dims", truths, [dim], keep), sample("any.default", truths)
        ),
        "all": lambda: sample("all.dim", truths, dim, keep),
        "count_nonzero": lambda: d.one_of(
            sample("count_nonzero.default", truths, d.one_of(dim, None)),
            sample("count_nonzero.dim_IntList", truths, [dim]),
        ),
    }[rule]()


each(("aminmax", "any", "all", "count_nonzero"), _truths)


@case("logsumexp")
def _of_a_number(d: Draw) -> Sample:
    target, dim = d.one_of(("logsumexp.default", [0]), ("amax.default", [-1]), ("logcumsumexp.default", 0))
    return sample(target, real(), dim)


def _spread(d: Draw, rule: str) -> Sample:
    shape, keep = d.shape(1, 2), d.one_of(True, False)
    if rule == "glu":
        return sample("glu.default", real(*shape, 6), len(shape))
    return sample(f"{rule}.correction", real(*shape, 5), [len(shape)], correction=d.one_of(0, 1), keepdim=keep)


each(("std", "var_mean", "std_mean", "glu"), _spread)


def _fourier(d: Draw, rule: str) -> Sample:
    shape = (*d.shape(0, 2), 4, 6)
    x = real(*shape)
    if "irfft" in rule or rule.startswith("fft_ifft"):
        x = torch.complex(x, real(*shape))
    if rule.endswith("shift"):
        return sample(f"{rule}.default", x, d.one_of([-1], None))
    dim = d.one_of([-2, -1], [-1]) if rule[-1] in "2n" else d.one_of(-1, len(shape) - 2)
    return sample(f"{rule}.default", x, None, dim)


each(
    ("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_fftn",
     "fft_ifftn", "fft_fftshift", "fft_ifftshift"), _fourier,
)  # fmt: skip


def _pairs(d: Draw, rule: str) -> Sample:
    lead, m, n = d.shape(0, 2), d.size(), d.size()
    left = real(*lead, 3)
    right = real(*d.broadcast(lead), 3)
    return {
        "cosine_similarity": lambda: d.one_of(
            sample("cosine_similarity.default", left, right, -1),
            sample("cosine_similarity.default", real(m, 3, n), real(m, 3, 1), 1),
        ),
        "pairwise_distance": lambda: sample("pairwise_distance.default", left, right, 2.0, 1e-6, d.one_of(True, False)),
        "linalg_cross": lambda: sample("linalg_cross.default", left, real(*(d.one_of(s, 1) for s in lead), 3)),
        "cdist": lambda: sample("cdist.default", real(*lead, m, 3), real(*lead, n, 3), d.one_of(1.0, 2.0)),
    }[rule]()


each(("cosine_similarity", "pairwise_distance", "linalg_cross", "cdist"), _pairs)


# of matrices


def _matrices(d: Draw, rule: str) -> Sample:
    x = real(*d.shape(0, 2), 3, 3)
    definite = x @ x.mT + torch.eye(3, dtype=x.dtype)
    return sample(f"{rule}.default", definite, *([2] if rule == "linalg_matrix_power" else []))


each(
    ("linalg_inv", "linalg_cholesky", "linalg_matrix_power", "linalg_matrix_exp", "linalg_det", "linalg_slogdet",
     "linalg_svdvals", "linalg_eigvalsh"), _matrices,
)  # fmt: skip


@case("linalg_solve")
def _solve(d: Draw) -> Sample:
    lead, n = d.shape(0, 2), d.size()
    x = real(*lead, 3, 3)
    definite = x @ x.mT + torch.eye(3, dtype=x.dtype)
    side, left = d.one_of(((*lead, 3), True), ((3,), True), ((*lead, 3, n), True), ((*lead, n, 3), False))
    return sample("linalg_solve.default", definite, real(*side), left=left)


@case("linalg_solve_triangular")
def _solve_triangular(d: Draw) -> Sample:
    lead, n = d.shape(0, 2), d.size()
    definite = positive(*d.broadcast(lead), 3, 3) + torch.eye(3, dtype=torch.float64)
    side, left = d.one_of(((*lead, 3, n), True), ((*lead, n, 3), False))
    return sample("linalg_solve_triangular.default", definite, real(*side), upper=d.one_of(True, False), left=left)


@case("histc")
def _histogram(d: Draw) -> Sample:
    """Of a stated range, beyond which nothing counts, or of that of the elements."""
    return sample("histc.default", real(*d.shape(1, 3)), 4, *d.one_of((-1, 1), (0, 0)))
