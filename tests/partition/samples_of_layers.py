"""Sample calls of ops that are a layer by themselves, and of losses."""

from __future__ import annotations

import torch

from tests.partition.samples import Draw, Sample, below, case, constant, each, positive, real, sample

# convolutions in groups


def _grouped(d: Draw, rule: str) -> Sample:
    n, c, o = d.shape(3, 3)
    groups = d.one_of(2, 3)
    space = 1 if rule == "conv1d" else 2
    bias = d.one_of(None, real(o * groups))
    x, weight = real(n, c * groups, *[4] * space), real(o * groups, c, *[2] * space)
    one, none = [1] * space, [0] * space
    if rule == "convolution":
        return sample("convolution.default", x, weight, bias, one, none, one, False, none, groups)
    overload, padding = d.one_of(("default", one), ("padding", "same"))
    return sample(f"{rule}.{overload}", x, weight, bias, one, padding, one, groups)


each(("conv1d", "conv2d", "convolution"), _grouped)


def _transposed(d: Draw, rule: str) -> Sample:
    n, c, o = d.shape(3, 3)
    groups = d.one_of(1, 2, 3)
    space = int(rule[-2])
    bias = d.one_of(None, real(o * groups))
    x, weight = real(n, c * groups, *[3] * space), real(c * groups, o, *[2] * space)
    overload = "default" if space == 1 else "input"
    return sample(f"{rule}.{overload}", x, weight, bias, [2] * space, [0] * space, [0] * space, groups)


each(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed)

# pooling and resampling


def _pooled(d: Draw, rule: str) -> Sample:
    space = 1 if "1d" in rule else 2 if "2d" in rule else 3
    batched = rule != "max_pool1d" or True
    x = real(*d.shape(2, 2) if batched else d.shape(1, 1), *[4] * space)
    if rule.startswith("adaptive"):
        return sample(f"{rule}.default", x, [d.one_of(1, 2)] * space)
    if "pool" in rule:
        return sample(f"{rule}.default", x, [2] * space, [d.one_of(1, 2)] * space)
    aligned = [] if "nearest" in rule else [d.one_of(True, False)]
    return sample(f"{rule}.vec", x, None, *aligned, [2.0] * space)


each(
    ("max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "adaptive_max_pool1d", "max_pool2d", "max_pool2d_with_indices",
     "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool3d", "max_pool3d_with_indices", "avg_pool3d",
     "adaptive_avg_pool3d", "adaptive_max_pool3d", "upsample_nearest1d", "upsample_linear1d", "upsample_nearest2d",
     "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
     "upsample_nearest3d", "upsample_trilinear3d"), _pooled,
)  # fmt: skip


def _rearranged(d: Draw, rule: str) -> Sample:
    n, c = d.shape(2, 2)
    return {
        "pixel_shuffle": lambda: sample("pixel_shuffle.default", real(n, c * 4, 2, 3), 2),
        "pixel_unshuffle": lambda: sample("pixel_unshuffle.default", real(n, c, 2, 4), 2),
        "channel_shuffle": lambda: sample("channel_shuffle.default", real(n, 4, c), 2),
        "im2col": lambda: d.one_of(
            sample("im2col.default", real(n, c, 4, 3), [2, 2], [1, 1], [0, 0], [1, 1]),
            sample("im2col.default", real(c, 4, 3), [2, 2], [1, 1], [0, 0], [1, 1]),
        ),
        "col2im": lambda: sample("col2im.default", real(n, c * 4, 6), [4, 3], [2, 2], [1, 1], [0, 0], [1, 1]),
    }[rule]()


each(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col", "col2im"), _rearranged)


@case("grid_sampler")
def _grid_sampler(d: Draw) -> Sample:
    n, c, h, w = d.shape(4, 4)
    x, grid = d.one_of((real(n, c, 3, 4), real(n, h, w, 2)), (real(n, c, 3, 4, 2), real(n, 2, h, w, 3)))
    return sample("grid_sampler.default", x, grid, 0, d.one_of(0, 1), d.one_of(True, False))


# recurrent networks


def _recurrent(d: Draw, rule: str) -> Sample:
    n, first = d.size(), d.one_of(True, False)
    layers, ways = d.one_of(1, 2), d.one_of(1, 2)
    gates = {"lstm": 4, "gru": 3}.get(rule.split(".")[0], 1)
    states = [real(layers * ways, n, 4) for _ in range(2 if rule == "lstm.input" else 1)]
    parameters = []
    for layer in range(layers):
        inside = 3 if layer == 0 else 4 * ways
        for _ in range(ways):
            parameters += [real(gates * 4, inside), real(gates * 4, 4), real(gates * 4), real(gates * 4)]
    hidden = states if rule == "lstm.input" else states[0]
    x = real(*((n, 5) if first else (5, n)), 3)
    return sample(rule, x, hidden, parameters, True, layers, 0.0, True, ways == 2, first)


each(("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input"), _recurrent)


def _cell(d: Draw, rule: str) -> Sample:
    n = d.size()
    gates = {"lstm_cell": 4, "gru_cell": 3}.get(rule, 1)
    hidden = [real(n, 4), real(n, 4)] if rule == "lstm_cell" else real(n, 4)
    bias = d.one_of([], [real(gates * 4), real(gates * 4)])
    return sample(f"{rule}.default", real(n, 3), hidden, real(gates * 4, 3), real(gates * 4, 4), *bias)


each(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell)

# normalisation


def _norms(d: Draw, rule: str) -> Sample:
    n, c = d.shape(2, 2)
    x = real(n, c, *d.one_of((4,), (2, 3)))
    affine = d.one_of([None, None], [real(c), real(c)])
    statistics = [constant(real(c)), constant(positive(c))]
    return {
        "batch_norm": lambda: d.one_of(
            sample("batch_norm.default", x, *affine, *statistics, False, 0.1, 1e-5, False),
            sample("batch_norm.default", x, *affine, None, None, True, 0.1, 1e-5, False),
        ),
        "_native_batch_norm_legit_functional": lambda: sample(
            "_native_batch_norm_legit_functional.default", x, *affine, *statistics, True, 0.1, 1e-5
        ),
        "instance_norm": lambda: sample("instance_norm.default", x, *affine, None, None, True, 0.1, 1e-5, False),
        "group_norm": lambda: sample("group_norm.default", x, d.one_of(1, c), *affine),
    }[rule]()


each(("batch_norm", "_native_batch_norm_legit_functional", "instance_norm", "group_norm"), _norms)


# numbers


@case("new_empty")
def _new_empty(d: Draw) -> Sample:
    return sample("new_empty.default", real(), d.shape())


each(("empty_like",), lambda d, rule: sample(f"{rule}.default", real(*d.shape())))

# losses


def _reduction(d: Draw) -> int:
    return d.one_of(0, 2, 2, 1)


@case("nll_loss", "nll_loss_nd", "nll_loss2d")
def _likelihood(d: Draw) -> Sample:
    n, v = d.size(), d.one_of(2, 5)
    target, tail = d.one_of(("nll_loss_nd", ()), ("nll_loss_nd", d.shape(1, 2)), ("nll_loss2d", d.shape(2, 2)))
    weight = d.one_of(None, constant(positive(v)))
    return sample(f"{target}.default", real(n, v, *tail), below(v, n, *tail), weight, _reduction(d), 0)


def _signs(*shape: int) -> torch.Tensor:
    return below(2, *shape).double() * 2 - 1


def _losses(d: Draw, rule: str) -> Sample:
    shape, n, reduction = d.shape(), d.size(), _reduction(d)
    wide = (n, 3)
    classes = constant(positive(3))
    lengths = torch.full((n,), 5), torch.full((n,), 2)
    return {
        "soft_margin_loss": lambda: sample(
            "soft_margin_loss.default", real(*shape), constant(_signs(*shape)), reduction
        ),
        "hinge_embedding_loss": lambda: sample(
            "hinge_embedding_loss.default", real(*shape), constant(_signs(*shape)), 1.0, reduction
        ),
        "poisson_nll_loss": lambda: sample(
            "poisson_nll_loss.default", real(*shape), positive(*shape), True, False, 1e-8, reduction
        ),
        "margin_ranking_loss": lambda: sample(
            "margin_ranking_loss.default", real(*shape), real(*shape), constant(_signs(*shape)), 0.1, reduction
        ),
        "cosine_embedding_loss": lambda: sample(
            "cosine_embedding_loss.default", real(*wide), real(*wide), constant(_signs(n)), 0.1, reduction
        ),
        "triplet_margin_loss": lambda: sample(
            "triplet_margin_loss.default",
            real(*shape, 3),
            real(*shape, 3),
            real(*shape, 3),
            1.0,
            2.0,
            1e-6,
            d.one_of(True, False),
            reduction,
        ),
        "multi_margin_loss": lambda: sample(
            "multi_margin_loss.default", real(*wide), below(3, n), 1, 1.0, d.one_of(None, classes), reduction
        ),
        "multilabel_margin_loss": lambda: sample(
            "multilabel_margin_loss.default", real(*wide), below(3, n, 3), reduction
        ),
        "ctc_loss.Tensor": lambda: sample(
            "ctc_loss.Tensor", real(5, n, 4).log_softmax(-1), 1 + below(3, n, 2), *lengths, 0, reduction
        ),
    }[rule]()


each(
    (
        "soft_margin_loss",
        "hinge_embedding_loss",
        "poisson_nll_loss",
        "margin_ranking_loss",
        "cosine_embedding_loss",
        "triplet_margin_loss",
        "multi_margin_loss",
        "multilabel_margin_loss",
        "ctc_loss.Tensor",
    ),
    _losses,
)
