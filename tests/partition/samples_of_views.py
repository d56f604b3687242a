"""Sample calls of views, and of what takes tensors apart and puts them together."""

from __future__ import annotations

from math import prod

import torch

from tests.partition.samples import Draw, Sample, case, each, real, sample


def _views(d: Draw, rule: str) -> Sample:
    """A random cut of the elements, of which the operand and the result each join some neighbours."""
    cut = d.shape(1, 5)

    def joined() -> list[int]:
        dims = [cut[0]]
        for size in cut[1:]:
            if d.one_of(True, False):
                dims[-1] *= size
            else:
                dims.append(size)
        return dims

    return sample(f"{rule}.default", real(*joined()), joined())


each(("view", "reshape"), _views)


@case("view.dtype")
def _reinterpreted(d: Draw) -> Sample:
    return sample("view.dtype", real(*d.shape(1, 3)), d.one_of(torch.int64, torch.int32))


@case("view", "reshape")
def _incommensurable(d: Draw) -> Sample:
    shape, result = d.one_of(
        ((4, 6), (6, 4)), ((2, 3, 4), (4, 3, 2)), ((6, 2), (4, 3)), ((12, 2, 3), (12, 6)), ((8,), (2, 4))
    )
    lead = d.shape(0, 1)
    return sample("reshape.default", real(*lead, *shape), (*lead, *result))


@case("expand")
def _expand(d: Draw) -> Sample:
    shape = d.shape()
    return sample("expand.default", real(*d.broadcast(shape)), shape)


@case("squeeze")
def _squeeze(d: Draw) -> Sample:
    shape = (*d.shape(0, 2), 1, *d.shape(0, 1))
    dim = shape.index(1)
    return d.one_of(sample("squeeze.dim", real(*shape), dim), sample("squeeze.dims", real(*shape), [dim]))


@case("unsqueeze")
def _unsqueeze(d: Draw) -> Sample:
    shape = d.shape()
    return sample("unsqueeze.default", real(*shape), d.index(len(shape) + 1))


@case("flatten")
def _flatten(d: Draw) -> Sample:
    shape = d.shape(1, 4)
    start = d.index(len(shape))
    return sample("flatten.using_ints", real(*shape), start, start + d.index(len(shape) - start))


@case("unflatten")
def _unflatten(d: Draw) -> Sample:
    lead, parts, tail = d.shape(0, 1), d.shape(2, 2), d.shape(0, 1)
    return sample("unflatten.int", real(*lead, prod(parts), *tail), len(lead), parts)


@case("permute")
def _permute(d: Draw) -> Sample:
    a, b, c = d.shape(3, 3)
    return sample("permute.default", real(a, b, c), d.one_of([1, 0, 2], [2, 0, 1], [1, 2, 0]))


@case("transpose")
def _transpose(d: Draw) -> Sample:
    return sample("transpose.int", real(*d.shape(3, 3)), d.index(3), d.index(3))


each(("t", "numpy_T"), lambda d, rule: sample(f"{rule}.default", real(*d.shape(1, 2))))


@case("split")
def _split(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    parts, size = d.one_of(1, 2, 3), shape[dim]
    whole = (*shape[:dim], size * parts, *shape[dim + 1 :])
    return d.one_of(sample("split.Tensor", real(*whole), size, dim), sample("split.Tensor", real(*shape), 2, dim))


@case("split_with_sizes")
def _split_with_sizes(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim, other = d.index(len(shape)), d.size()
    sizes = d.one_of([shape[dim]] * 3, [shape[dim], other])
    whole = (*shape[:dim], sum(sizes), *shape[dim + 1 :])
    return sample("split_with_sizes.default", real(*whole), sizes, dim)


@case("chunk")
def _chunk(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    return sample("chunk.default", real(*shape), d.one_of(1, 2, 3), d.index(len(shape)))


@case("slice")
def _slice(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    start = d.index(shape[dim])
    return sample("slice.Tensor", real(*shape), dim, start, start + 1 + d.index(shape[dim] - start), d.one_of(1, 2))


@case("select")
def _select(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    return sample("select.int", real(*shape), dim, d.index(shape[dim]))


@case("narrow")
def _narrow(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    return sample("narrow.default", real(*shape), dim := d.index(len(shape)), 0, 1 + d.index(shape[dim]))


@case("unbind")
def _unbind(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    return sample("unbind.int", real(*shape), d.index(len(shape)))


@case("cat")
def _cat(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim, other = d.index(len(shape)), d.size()
    return sample("cat.default", [real(*shape), real(*shape[:dim], other, *shape[dim + 1 :])], dim)


@case("stack")
def _stack(d: Draw) -> Sample:
    shape = d.shape()
    return sample("stack.default", [real(*shape) for _ in range(d.one_of(1, 2, 3))], d.index(len(shape) + 1))


each(
    ("pad", "constant_pad_nd"),
    lambda d, rule: sample(f"{rule}.default", real(*d.shape(2, 3)), d.one_of([0, 1], [1, -1, 0, 0], [0, 0, 2, 0])),
)
