"""Sample calls of ops along one dimension."""

from __future__ import annotations

import torch

from tests.partition.samples import Draw, Sample, below, case, each, real, sample


def _dim(d: Draw, rule: str) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    target, *rest = {
        "softmax": ("softmax.int", dim),
        "_softmax": ("_softmax.default", dim, False),
        "log_softmax": ("log_softmax.int", dim),
        "_log_softmax": ("_log_softmax.default", dim, False),
        "cumsum": ("cumsum.default", dim),
        "logsumexp": ("logsumexp.default", [dim], d.one_of(True, False)),
        "mean": d.one_of(("mean.dim", [dim], d.one_of(True, False)), ("mean.default",)),
        "amax": ("amax.default", d.one_of([dim], []), d.one_of(True, False)),
        "amin": ("amin.default", [dim], d.one_of(True, False)),
        "argmax": ("argmax.default", d.one_of(dim, None)),
        "flip": ("flip.default", [dim]),
        "roll": ("roll.default", [1], d.one_of([dim], [])),
        "topk": ("topk.default", 1 + d.index(shape[dim]), dim),
        "sort": ("sort.default", dim),
    }[rule]
    return sample(target, real(*shape), *rest)


each(
    ("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "logsumexp", "mean", "amax", "amin", "argmax",
     "flip", "roll", "topk", "sort"), _dim,
)  # fmt: skip


@case("var")
def _var(d: Draw) -> Sample:
    shape = d.shape(1, 2)
    return sample(
        "var.correction", real(*shape, 5), [len(shape)], correction=d.one_of(0, 1), keepdim=d.one_of(True, False)
    )


@case("diff")
def _diff(d: Draw) -> Sample:
    shape = (*d.shape(0, 2), 5)
    return sample("diff.default", real(*shape), 1, len(shape) - 1, *d.one_of([], [real(*shape[:-1], 1)]))


@case("gather")
def _gather(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    other = d.one_of(shape, tuple(1 + d.index(size) for size in shape))
    index = below(shape[dim], *other[:dim], d.size(), *other[dim + 1 :])
    return sample("gather.default", real(*shape), dim, index)


@case("scatter")
def _scatter(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    other = d.one_of(shape, tuple(1 + d.index(size) for size in shape))
    # Without repeats in the index, so that what is written last does not matter.
    index = torch.rand((*other[:dim], shape[dim], *other[dim + 1 :])).argsort(dim)
    source = d.one_of(("scatter.src", real(*index.shape)), ("scatter.value", 2.0))
    return sample(source[0], real(*shape), dim, index, source[1])


@case("scatter_add")
def _scatter_add(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    index = below(shape[dim], *shape[:dim], d.size(), *shape[dim + 1 :])
    return sample("scatter_add.default", real(*shape), dim, index, real(*index.shape))


@case("slice_scatter")
def _slice_scatter(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    step = d.one_of(1, 2)
    part = torch.empty(shape).transpose(0, dim)[::step].transpose(0, dim).shape
    return sample("slice_scatter.default", real(*shape), real(*part), dim, 0, shape[dim], step)


@case("index_add", "index_copy", "index_fill")
def _index_write(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    rows = torch.randperm(shape[dim])[: 1 + d.index(shape[dim])]
    source = real(*shape[:dim], len(rows), *shape[dim + 1 :])
    target, value = d.one_of(
        ("index_add.default", source),
        ("index_copy.default", source),
        ("index_fill.int_Scalar", 2.0),
        ("index_fill.int_Tensor", real()),
    )
    return sample(target, real(*shape), dim, rows, value)


@case("index_put")
def _index_put(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    first = d.index(len(shape))
    count = 1 + d.index(len(shape) - first)
    # Without repeats among the positions, so that what is written last does not matter.
    rows = torch.randperm(shape[first])[: 1 + d.index(shape[first])]
    indices = [None] * first + [rows] + [below(size, len(rows)) for size in shape[first + 1 : first + count]]
    written = (*shape[:first], len(rows), *shape[first + count :])
    return sample("index_put.default", real(*shape), indices, real(*d.broadcast(written)), d.one_of(False, True))


@case("diagonal", "diagonal_scatter")
def _diagonal(d: Draw) -> Sample:
    shape = d.shape(2, 3)
    dims = d.one_of((0, 1), (-2, -1), (len(shape) - 1, 0))
    whole = real(*shape)
    if d.one_of(True, False):
        return sample("diagonal.default", whole, d.one_of(0, 1), *dims)
    return sample("diagonal_scatter.default", whole, real(*whole.diagonal(0, *dims).shape), 0, *dims)


each(("triu", "tril"), lambda d, rule: sample(f"{rule}.default", real(*d.shape(2, 3)), d.one_of(0, 1, -1)))


def _numbers(*shape: int) -> torch.Tensor:
    return torch.complex(real(*shape), real(*shape))


case("view_as_complex")(lambda d: sample("view_as_complex.default", real(*d.shape(), 2)))
each(("view_as_real", "real", "imag", "conj_physical"), lambda d, rule: sample(f"{rule}.default", _numbers(*d.shape())))
each(("complex", "polar"), lambda d, rule: sample(f"{rule}.default", *(real(*s) for s in [d.shape()] * 2)))
