"""Sample calls of products, sums, norms, look-ups and losses."""

from __future__ import annotations

from typing import Any

import torch

from tests.partition.samples import POINTWISE, Draw, Sample, below, case, constant, each, positive, real, sample

# products


@case("linear")
def _linear(d: Draw) -> Sample:
    (k, n), lead = (d.size(), d.size()), d.shape(0, 2)
    bias = [real(n)] if d.one_of(True, False) else []
    return sample("linear.default", real(*lead, k), real(n, k), *bias)


@case("mm")
def _mm(d: Draw) -> Sample:
    m, k, n = d.shape(3, 3)
    return sample("mm.default", real(m, k), real(k, n))


@case("bmm")
def _bmm(d: Draw) -> Sample:
    b, m, k, n = d.shape(4, 4)
    return sample("bmm.default", real(b, m, k), real(b, k, n))


@case("galvatron::grouped_linear")
def _grouped_linear(d: Draw) -> Sample:
    t, k, n, e = d.shape(4, 4)
    return sample("galvatron.grouped_linear.default", real(t, k), real(e, n, k), below(e, t))


@case("addmm")
def _addmm(d: Draw) -> Sample:
    m, k, n = d.shape(3, 3)
    bias = real(*d.one_of((n,), (m, n), (1, n), (m, 1)))
    return sample("addmm.default", bias, real(m, k), real(k, n), beta=d.one_of(1, 2), alpha=d.one_of(1, 0.5))


@case("baddbmm")
def _baddbmm(d: Draw) -> Sample:
    b, m, k, n = d.shape(4, 4)
    return sample("baddbmm.default", real(*d.broadcast((b, m, n))), real(b, m, k), real(b, k, n))


@case("matmul")
def _matmul(d: Draw) -> Sample:
    m, k, n, b, c = d.shape(5, 5)
    left, right = d.one_of(
        ((k,), (k,)), ((m, k), (k,)), ((k,), (k, n)), ((m, k), (k, n)), ((k,), (b, k, n)), ((b, m, k), (k,)),
        ((b, m, k), (k, n)), ((b, m, k), (b, k, n)), ((c, b, m, k), (b, k, n)), ((b, m, k), (1, k, n)),
    )  # fmt: skip
    return sample("matmul.default", real(*left), real(*right))


@case("mul", "div.Tensor")
def _mul(d: Draw) -> Sample:
    shape = d.shape()
    left, right = d.one_of((shape, d.broadcast(shape)), (d.broadcast(shape), shape))
    other = d.one_of(positive(*right), 2.0)
    return sample(d.one_of("mul.Tensor", "div.Tensor"), real(*left), other)


@case("convolution")
def _convolution(d: Draw) -> Sample:
    n, c, o = d.shape(3, 3)
    groups = d.one_of(1, c)
    bias = d.one_of(None, real(o * groups))
    transposed = d.one_of(False, True) if groups == 1 else False
    weight = real(c, o, 3) if transposed else real(o * groups, c // groups, 3)
    return sample("convolution.default", real(n, c, 5), weight, bias, [1], [1], [1], transposed, [0], groups)


def _convolution_nd(d: Draw, rule: str) -> Sample:
    n, c, o = d.shape(3, 3)
    spatial = int(rule[4])
    lead = d.one_of((n,), ())
    bias = d.one_of([], [real(o)])
    return sample(f"{rule}.default", real(*lead, c, *[4] * spatial), real(o, c, *[2] * spatial), *bias)


each(("conv1d", "conv2d", "conv3d"), _convolution_nd)


@case("scaled_dot_product_attention")
def _attention(d: Draw) -> Sample:
    b, h, q, k = d.shape(4, 4)
    groups = d.one_of(1, 2, 3)
    lead = d.one_of((b,), (b, 2), ()) if groups == 1 else (b,)
    heads = d.one_of(h, 1) if groups == 1 else h  # one for all queries needs no groups
    query, key, value = real(*lead, h * groups, q, 2), real(*lead, heads, k, 2), real(*lead, heads, k, 3)
    if d.one_of(True, False):
        kwargs = {"is_causal": True}
    else:
        # A row of False would have no value to attend to.
        full = (*lead, h * groups, q, k)
        mask = d.one_of(tuple(d.one_of(size, 1) for size in full), (q, k), (1, k), None)
        kwargs = {} if mask is None else {"attn_mask": d.one_of(real(*mask), torch.ones(mask, dtype=torch.bool))}
    return sample("scaled_dot_product_attention.default", query, key, value, **kwargs, enable_gqa=groups > 1)


# sums


@case("add", "sub")
def _add(d: Draw) -> Sample:
    shape = d.shape()
    left, right = d.one_of((shape, d.broadcast(shape)), (d.broadcast(shape), shape))
    other = d.one_of(real(*right), 2.0)
    return sample(d.one_of("add.Tensor", "sub.Tensor"), real(*left), other, **d.one_of({}, {"alpha": 2}))


each(("neg", "clone", "_to_copy", "detach"), lambda d, rule: sample(f"{rule}.default", real(*d.shape())))


@case("sum")
def _sum(d: Draw) -> Sample:
    shape = d.shape()
    x = d.one_of(real(*shape), below(4, *shape), below(2, *shape).bool())
    if not shape or d.one_of(True, False):
        return sample("sum.default", x)
    dims = d.one_of([d.index(len(shape))], list(range(len(shape))), [])
    return sample("sum.dim_IntList", x, dims, d.one_of(True, False))


# normalisation and lookup


@case("layer_norm")
def _layer_norm(d: Draw) -> Sample:
    lead, inner = d.shape(0, 2), d.one_of((4,), (2, 3))
    affine = d.one_of([], [real(*inner)], [real(*inner), real(*inner)], [None, real(*inner)])
    return sample("layer_norm.default", real(*lead, *inner), inner, *affine)


@case("rms_norm")
def _rms_norm(d: Draw) -> Sample:
    lead, inner = d.shape(0, 2), d.one_of((4,), (2, 3))
    return sample("rms_norm.default", real(*lead, *inner), inner, *d.one_of([], [real(*inner)]))


@case("embedding")
def _embedding(d: Draw) -> Sample:
    v, h = d.shape(2, 2)
    frequency = d.one_of(False, True)
    return sample("embedding.default", real(v, h), below(v, *d.shape(0, 2)), d.one_of(-1, 0), frequency)


@case("index")
def _index(d: Draw) -> Sample:
    x, i = d.shape(3, 3), d.shape(1, 2)
    first, second = below(x[0], *i), below(x[1], *d.broadcast(i))
    last = below(x[2], *d.broadcast(i))
    indices = d.one_of([first], [None, second], [first, second], [first, None, last], [None, second, last])
    return sample("index.Tensor", real(*x), indices)


@case("index_select")
def _index_select(d: Draw) -> Sample:
    shape = d.shape(1, 3)
    dim = d.index(len(shape))
    return sample("index_select.default", real(*shape), dim, below(shape[dim], d.size()))


# numbers


def _created(d: Draw, rule: str) -> Sample:
    shape = d.shape()
    size = [] if rule.endswith("_like") else [shape]
    self = [real(*shape)] if "_" in rule else []
    number = [2.0] if "full" in rule else []
    overload = "memory_format" if rule == "empty" else "default"
    return sample(f"{rule}.{overload}", *self, *size, *number, **d.one_of({}, {"dtype": torch.float64}))


each(
    ("full", "zeros", "ones", "empty", "new_zeros", "new_ones", "new_full", "full_like", "zeros_like", "ones_like"),
    _created,
)
each(("arange", "scalar_tensor"), lambda d, rule: sample(f"{rule}.default", d.size()))

# losses


def _loss_reduction(d: Draw) -> int:
    return d.one_of(0, 2, 2, 1)


@case("cross_entropy_loss")
def _cross_entropy(d: Draw) -> Sample:
    v, tail = d.one_of(2, 5, 6), d.shape(0, 1)
    lead = d.one_of((d.size(),), ()) if not tail else (d.size(),)
    labels = below(v, *lead, *tail)
    labels = torch.where(torch.rand(labels.shape) < 0.2, -100, labels)
    target = d.one_of(labels, positive(*lead, v, *tail))
    weight = d.one_of(None, constant(positive(v)))
    return sample(
        "cross_entropy_loss.default",
        real(*lead, v, *tail),
        target,
        weight,
        _loss_reduction(d),
        -100,
        d.one_of(0.0, 0.1),
    )


@case("nll_loss")
def _nll_loss(d: Draw) -> Sample:
    n, v = d.size(), d.one_of(2, 5)
    return sample(
        "nll_loss.default", real(n, v), below(v, n), d.one_of(None, constant(positive(v))), _loss_reduction(d), 0
    )


def _elementwise_loss(d: Draw, rule: str) -> Sample:
    shape = d.shape()
    return sample(f"{rule}.default", positive(*shape), positive(*shape), _loss_reduction(d))


each(("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div"), _elementwise_loss)


@case("binary_cross_entropy")
def _binary_cross_entropy(d: Draw) -> Sample:
    shape = d.shape()
    weight = d.one_of(None, constant(positive(*d.broadcast(shape))))
    return sample("binary_cross_entropy.default", positive(*shape), positive(*shape), weight, _loss_reduction(d))


@case("binary_cross_entropy_with_logits")
def _binary_cross_entropy_with_logits(d: Draw) -> Sample:
    shape = d.shape()
    weight, positive_weight = (d.one_of(None, constant(positive(*d.broadcast(shape)))) for _ in range(2))
    return sample(
        "binary_cross_entropy_with_logits.default",
        real(*shape), positive(*shape), weight, positive_weight, _loss_reduction(d),
    )  # fmt: skip


def _where_number(d: Draw, rule: str) -> Sample:
    shape = d.shape()
    chosen = (real(*d.broadcast(shape)), -1.0)
    return sample(rule, below(2, *shape).bool(), *(chosen if rule.endswith("Other") else chosen[::-1]))


each(("where.ScalarOther", "where.ScalarSelf"), _where_number)


# ops without a rule of their own


def _pointwise(target: str, *rest: Any) -> None:
    POINTWISE.append(lambda d: sample(target, positive(*d.shape()), *rest))


for _target in ("gelu.default", "silu.default", "tanh.default", "rsqrt.default", "relu.default", "exp.default",
                "cos.default", "sigmoid.default", "log.default"):  # fmt: skip
    _pointwise(_target)
_pointwise("pow.Tensor_Scalar", 2)
_pointwise("clamp.default", 0.3, 0.6)
_pointwise("ne.Scalar", 0)


@POINTWISE.append
def _where(d: Draw) -> Sample:
    shape = d.shape()
    condition = below(2, *d.broadcast(shape)).bool()
    return sample("where.self", condition, real(*shape), real(*d.broadcast(shape)))


@POINTWISE.append
def _binary(d: Draw) -> Sample:
    shape = d.shape()
    target = d.one_of("maximum.default", "pow.Tensor_Tensor", "le.Tensor", "div.Tensor_mode", "arctan2.default")
    kwargs = {"rounding_mode": "floor"} if target == "div.Tensor_mode" else {}
    return sample(target, positive(*shape), positive(*d.broadcast(shape)), **kwargs)


@POINTWISE.append
def _of_whole_numbers(d: Draw) -> Sample:
    shape = d.shape()
    target = d.one_of("floor_divide.default", "less.Tensor", "isclose.default", "__or__.Tensor", "multiply.Tensor")
    return sample(target, below(9, *shape), 1 + below(9, *d.broadcast(shape)))


@POINTWISE.append
def _masked_fill(d: Draw) -> Sample:
    shape = d.shape()
    return sample("masked_fill.Scalar", real(*shape), below(2, *d.broadcast(shape)).bool(), -1.0)
