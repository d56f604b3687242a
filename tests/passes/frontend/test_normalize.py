"""Each rewrite of `normalize`: what it leaves, and that it computes the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from galvatron.errors import CaptureError, PassError
from galvatron.ir.capture import capture_graph
from galvatron.ir.graph import Graph, Op, Ref
from galvatron.ir.types import BATCH, simplify_dim
from galvatron.passes.frontend.normalize import Normalize
from tests import models
from tests.marks import TORCH

SEQUENCE, CLASSES = 6, 5


class Net(nn.Module):
    """One weight; `forward` is the function it is given, of the weight and the batch."""

    def __init__(self, forward: Callable[..., torch.Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(CLASSES, CLASSES, dtype=dtype))
        self.register_buffer("classes", torch.rand(CLASSES, dtype=dtype))
        self.function = forward

    def forward(self, x: torch.Tensor, y: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.function(x @ self.weight, y, labels, self.classes)


def batch_of(size: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """x, y: [B, S, C]; labels: [B, S], some of them -100."""
    generator = torch.Generator().manual_seed(size)
    x, y = (torch.rand(size, SEQUENCE, CLASSES, generator=generator, dtype=dtype) for _ in range(2))
    labels = torch.randint(0, CLASSES, (size, SEQUENCE), generator=generator)
    ignored = torch.rand(size, SEQUENCE, generator=generator) < 0.3
    return {"x": x, "y": y, "labels": labels.masked_fill(ignored, -100)}


@dataclass(frozen=True)
class Normalized:
    """The normalised graph of a forward."""

    graph: Graph

    @property
    def targets(self) -> list[str]:
        return [op.target.removeprefix("aten.").removesuffix(".default") for op in self.graph.ops]

    def op(self, name: str) -> Op:
        (op,) = (op for op in self.graph.ops if op.target.split(".")[1] == name)
        return op


def normalized(
    forward: Callable[..., torch.Tensor],
    dtype: torch.dtype = torch.float64,
    tolerance: float = 1e-12,
    train: bool = True,
) -> Normalized:
    """The normalised graph of a forward, after checking that it equals eager at two batch sizes."""
    net = Net(forward, dtype).train(train)
    captured = capture_graph(net, batch_of(4, dtype))
    program = Normalize().run(captured.program)
    assert program.graph is not None
    assert Normalize().run(program) == program
    for size in (4, 3):
        batch = batch_of(size, dtype)
        values = models.tensors_of(program, net, batch, captured.constants)
        actual = models.loss_and_gradients(models.run(program.graph, values, size), net)
        models.assert_close(actual, models.loss_and_gradients(net(**batch), net), tolerance)
    return Normalized(program.graph)


# Writes into parts of a tensor.


WRITES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "halves": lambda h: _written(h.new_empty(h.shape), lambda y: (y[:, :2].copy_(h[:, 4:]), y[:, 2:].copy_(h[:, :4]))),
    "columns": lambda h: _written(h.clone(), lambda y: (y[:, 0].fill_(2.0), y[:, -2].mul_(3.0), y[..., 1:-1].add_(1))),
    "other type": lambda h: _written(torch.zeros(h.shape, dtype=torch.float32), lambda y: y[:, 1:3].copy_(h[:, :2])),
    "view": lambda h: _written(h.clone(), lambda y: y.transpose(0, 1).flatten(2)[1].copy_(h[:, 0])),
    "mask": lambda h: _written(h.clone(), lambda y: (y.masked_fill_(h > 1, 0.0), y.__setitem__(h < 0, 1.0))),
    "mask of rows": lambda h: _written(h.clone(), lambda y: y.__setitem__((slice(None), torch.arange(6) > 3), 0.0)),
    "per sample": lambda h: _written(
        h.clone(), lambda y: y.__setitem__((torch.arange(h.shape[0]), h.sum(-1).argmax(-1)), h[:, 0])
    ),
    "scalar tensor": lambda h: _written(h.clone(), lambda y: y[:, 1].fill_(h.detach().sum())),
}


def _written(y: torch.Tensor, write: Callable[[torch.Tensor], Any]) -> torch.Tensor:
    write(y)
    return y


@pytest.mark.parametrize("name", WRITES)
def test_writes_are_concatenations_and_choices(name: str) -> None:
    result = normalized(lambda h, y, labels, w: (WRITES[name](h) * y).sum())
    writes = {"copy", "fill", "slice_scatter", "select_scatter", "index_put", "new_empty", "empty_like"}
    assert writes.isdisjoint(op.target.split(".")[1] for op in result.graph.ops)


def test_writes_with_gaps_stay() -> None:
    result = normalized(lambda h, y, labels, w: _written(y.clone(), lambda y: y[:, ::2].copy_(h[:, :3])).sum())
    assert "slice_scatter" in result.targets


def test_memory_that_is_overwritten_leaves_no_trace() -> None:
    result = normalized(lambda h, y, labels, w: WRITES["halves"](h).square().sum())
    assert "full" not in result.targets


def test_a_loop_that_fills_a_tensor_is_one_concatenation() -> None:
    def filled(h: torch.Tensor) -> torch.Tensor:
        states = torch.empty_like(h)
        for step in range(SEQUENCE):
            states[:, step] = h[:, step] + (states[:, step - 1].tanh() if step else 0)
        return states

    result = normalized(lambda h, y, labels, w: (filled(h) * y).sum())
    assert result.targets.count("cat") == 1 and "full" not in result.targets


def test_a_loop_that_reads_all_that_it_has_filled_adds_to_one_concatenation() -> None:
    def solved(h: torch.Tensor) -> torch.Tensor:
        for step in range(1, SEQUENCE):
            h[:, step] = h[:, step] + h[:, :step].clone().cumsum(1)[:, -1]
        return h

    result = normalized(lambda h, y, labels, w: (solved(h.clone()) * y).sum())
    joined = [op.args[0] for op in result.graph.ops if op.target == "aten.cat.default"]
    assert len(joined) == SEQUENCE - 1 and all(isinstance(parts, tuple) and len(parts) == 2 for parts in joined)


# Means over the batch.


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": lambda h, y, labels, w: F.cross_entropy(h.flatten(0, 1), labels.flatten()),
    "cross_entropy-2d": lambda h, y, labels, w: F.cross_entropy(h.transpose(1, 2), labels),
    "cross_entropy-ignore": lambda h, y, labels, w: F.cross_entropy(
        h.flatten(0, 1), labels.flatten().clamp_min(0), ignore_index=0
    ),
    "cross_entropy-weight": lambda h, y, labels, w: F.cross_entropy(h.flatten(0, 1), labels.flatten(), weight=w),
    "cross_entropy-smoothing": lambda h, y, labels, w: F.cross_entropy(
        h.flatten(0, 1), labels.flatten(), label_smoothing=0.1
    ),
    "cross_entropy-smoothing-weight": lambda h, y, labels, w: F.cross_entropy(
        h.flatten(0, 1), labels.flatten(), weight=w, label_smoothing=0.1
    ),
    "cross_entropy-probabilities": lambda h, y, labels, w: F.cross_entropy(
        h.flatten(0, 1), y.flatten(0, 1).softmax(-1)
    ),
    "cross_entropy-probabilities-2d": lambda h, y, labels, w: F.cross_entropy(
        h.transpose(1, 2), y.softmax(-1).transpose(1, 2), weight=w, label_smoothing=0.1
    ),
    "nll": lambda h, y, labels, w: F.nll_loss(h.log_softmax(-1).flatten(0, 1), labels.flatten(), weight=w),
    "nll-2d": lambda h, y, labels, w: F.nll_loss(h.log_softmax(-1).transpose(1, 2), labels),
    "mse": lambda h, y, labels, w: F.mse_loss(h, y),
    "l1": lambda h, y, labels, w: F.l1_loss(h, y),
    "smooth_l1": lambda h, y, labels, w: F.smooth_l1_loss(h, y, beta=0.3),
    "huber": lambda h, y, labels, w: F.huber_loss(h, y, delta=0.3),
    "bce": lambda h, y, labels, w: F.binary_cross_entropy(h.sigmoid(), y, weight=w),
    "bce-logits": lambda h, y, labels, w: F.binary_cross_entropy_with_logits(h, y, weight=w, pos_weight=w),
    "kl": lambda h, y, labels, w: F.kl_div(h.log_softmax(-1), y.softmax(-1)),
    "kl-batchmean": lambda h, y, labels, w: F.kl_div(
        h.log_softmax(-1), y.log(), reduction="batchmean", log_target=True
    ),
    "soft_margin": lambda h, y, labels, w: F.soft_margin_loss(h, y.sign()),
    "hinge": lambda h, y, labels, w: F.hinge_embedding_loss(h, y.sign()),
    "poisson": lambda h, y, labels, w: F.poisson_nll_loss(h, y),
    "margin_ranking": lambda h, y, labels, w: F.margin_ranking_loss(h, y, (y - 0.5).sign(), margin=0.1),
    "cosine": lambda h, y, labels, w: F.cosine_embedding_loss(h[:, 0], y[:, 0], y[:, 0, 0].sign()),
    "triplet": lambda h, y, labels, w: F.triplet_margin_loss(h, y, h.flip(1)),
    "multi_margin": lambda h, y, labels, w: F.multi_margin_loss(h[:, 0], labels[:, 0].clamp_min(0), weight=w),
    "multilabel_margin": lambda h, y, labels, w: F.multilabel_margin_loss(h[:, 0], labels[:, :CLASSES].clamp_min(-1)),
    "mean": lambda h, y, labels, w: h.square().mean(),
    "mean-dims": lambda h, y, labels, w: h.square().mean((0, 2)).max(),
    "mean-keepdim": lambda h, y, labels, w: (h - h.mean(0, keepdim=True)).square().sum(),
    "mean-flattened": lambda h, y, labels, w: h.square().reshape(-1, CLASSES).mean(0).max(),
}


UNTRACEABLE = ("cross_entropy-probabilities", "cross_entropy-probabilities-2d", "bce") if TORCH < (2, 12) else ()
"""What torch itself cannot trace for every batch size, and so is refused: it asks for the size as a number."""


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", LOSSES)
def test_mean_is_sum_over_count(name: str) -> None:
    if name in UNTRACEABLE:
        with pytest.raises(CaptureError, match="test_normalize.py"):
            normalized(LOSSES[name])
        return
    graph = normalized(LOSSES[name]).graph
    for op in graph.ops:
        assert op.get("reduction") != 1, op
        if op.target.startswith("aten.mean"):
            assert "B" not in {str(s) for v in _reduced_sizes(op, graph) for s in v.free_symbols}


def _reduced_sizes(op: Op, graph: Graph) -> list[Any]:
    shape = graph.values[op.operands[0]].type.shape
    dims = op.args[1] if len(op.args) > 1 else range(len(shape))
    return [shape[d] for d in dims if not isinstance(shape[d], int)]  # type: ignore[index,union-attr]  # a tuple of dims


def test_count_reads_only_targets() -> None:
    result = normalized(LOSSES["cross_entropy"])
    count = result.op("div").args[1]
    assert isinstance(count, Ref)
    assert sorted(result.targets[-5:]) == [
        "_to_copy",
        "cross_entropy_loss",
        "div.Tensor",
        "ne.Scalar",
        "sum.dim_IntList",
    ]
    producers, pending = result.graph.producers, [count.name]
    while pending:
        name = pending.pop()
        pending += producers[name].operands if name in producers else []
        assert name in producers or name == "labels"


def test_count_of_elements_is_a_number_in_the_batch_size() -> None:
    assert normalized(LOSSES["mse"]).op("div").args[1] == simplify_dim(SEQUENCE * CLASSES * BATCH)


def test_mean_over_features_stays() -> None:
    assert "mean.dim" in normalized(lambda h, y, labels, w: (h - h.mean(-1, keepdim=True)).square().sum()).targets


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_counts_and_sums_of_half_precision_are_in_single(dtype: torch.dtype, tolerance: float) -> None:
    for name in ("cross_entropy", "mse", "mean"):
        result = normalized(LOSSES[name], dtype, tolerance)
        quotient = next(op for op in result.graph.ops if op.target == "aten.div.Tensor")
        assert quotient.result.type.dtype == "f32"


def test_loss_that_cannot_be_split_is_refused() -> None:
    captured = capture_graph(Net(LOSSES["nll-2d"], torch.float64), batch_of(4)).program
    assert captured.graph is not None
    *ops, loss = captured.graph.ops
    scores, labels = loss.args[:2]
    ctc = replace(loss, target="aten.ctc_loss.IntList", args=(scores, labels, (1, 1), (1, 1)))
    with pytest.raises(
        PassError, match=r"test_normalize.py:\d+: `\"nll-2d\": .*averages in a way that cannot be split"
    ):
        Normalize().run(replace(captured, graph=replace(captured.graph, ops=(*ops, ctc))))


# Indexing.


def test_indexing_each_sample_by_the_same_positions_skips_the_batch() -> None:
    def forward(h: torch.Tensor, y: torch.Tensor, labels: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        samples = torch.arange(h.shape[0])[:, None, None]
        return h[samples, torch.tensor([[[2, 0], [1, 1]]])].square().sum()

    result = normalized(forward)
    indices = result.op("index").args[1]
    assert isinstance(indices, tuple)
    assert indices[0] is None and len(indices) == 2


def test_indexing_by_whole_ranges_is_a_reshape() -> None:
    def forward(h: torch.Tensor, y: torch.Tensor, labels: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        samples, positions = torch.arange(h.shape[0])[:, None, None], torch.arange(SEQUENCE)[None, :, None]
        return h[samples, positions].square().sum()

    assert "index.Tensor" not in normalized(forward).targets


@pytest.mark.parametrize("last", [lambda labels: (labels > 0).sum(-1) - 1, lambda labels: labels.argmax(-1)])
def test_indexing_by_a_position_per_sample_is_a_gather(last: Callable[[torch.Tensor], torch.Tensor]) -> None:
    def forward(h: torch.Tensor, y: torch.Tensor, labels: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return h[torch.arange(h.shape[0]), last(labels)].square().sum()

    result = normalized(forward)
    assert "index.Tensor" not in result.targets
    assert result.op("gather").result.type.shape == (BATCH, 1, CLASSES)


def test_other_indexing_stays() -> None:
    def forward(h: torch.Tensor, y: torch.Tensor, labels: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return h[torch.arange(h.shape[0]).flip(0), 0].mul(torch.arange(h.shape[0])[:, None]).sum()

    assert "index.Tensor" in normalized(forward).targets


# What does nothing, and what is said twice.


def nothing(h: torch.Tensor, y: torch.Tensor, labels: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    h = (h.clone() + 0) * 1.0 / 1
    h = h.contiguous().to(torch.float64).expand(-1, -1, -1).view(h.shape)[:, :, :]
    h = h.permute(0, 1, 2).transpose(1, -2)
    h = F.dropout(F.dropout(h, 0.0, True), 0.5, False)
    h = h.masked_fill(torch.ones((), dtype=torch.bool) & (y.detach() > 2), 0.0)
    return h.detach().sum() + h.sum()


def test_what_does_nothing_is_dropped() -> None:
    targets = normalized(nothing).targets
    assert targets[:1] + targets[-5:] == [
        "matmul",
        "masked_fill.Scalar",
        "detach",
        *["sum.dim_IntList"] * 2,
        "add.Tensor",
    ]
    assert set(targets[1:-5]) <= {"gt.Scalar"}


def test_empty_parts_of_cat_are_dropped() -> None:
    def forward(h: torch.Tensor, y: torch.Tensor, labels: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        empty = torch.tensor([], dtype=h.dtype)
        return torch.cat([torch.cat([empty, h], dim=-2), h[:, :0], y], dim=-2).sum()

    result = normalized(forward)
    assert result.targets == ["matmul", "cat", "sum.dim_IntList"]
    assert result.op("cat").operands == ("matmul", "y")


def test_a_size_without_dims_is_written() -> None:
    result = normalized(lambda h, y, labels, w: h.sum((0, 1, 2), keepdim=True).squeeze() * 2)
    assert result.op("reshape").args[1] == ()


def test_views_are_reshapes_with_sizes() -> None:
    def forward(h: torch.Tensor, y: torch.Tensor, labels: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        h = h.transpose(1, 2).flatten(1).view(-1, 3, 10).unflatten(-1, (2, -1)).squeeze()
        return (h.expand(2, *h.shape).movedim(1, -1).mT[..., -4:-1] * h.unsqueeze(-1).mean()).sum()

    result = normalized(forward)
    assert not {"view", "flatten.using_ints", "unflatten.int", "squeeze", "movedim.int", "mT"} & set(result.targets)
    for op in result.graph.ops:
        if op.target in ("aten.reshape.default", "aten.expand.default"):
            assert op.args[1] == op.result.type.shape
        if op.target == "aten.slice.Tensor":
            assert all(not isinstance(a, int) or 0 <= a < 2**62 for a in op.args[1:])


def test_dims_count_from_the_front_and_are_always_there() -> None:
    def forward(h: torch.Tensor, y: torch.Tensor, labels: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        a, b = h.split([2, 3], -1)
        h = torch.cat([a, b], -1).softmax(-1).cumsum(-2).flip(-1).roll(1, -1)
        return torch.stack([h, h], -1).sum((-1, -2)).amax(-1).sum() + torch.cat([a, b.narrow(-1, 0, 2)]).sum()

    graph = normalized(forward).graph
    dims = {op.target: op.arguments for op in graph.ops}
    assert dims["aten.softmax.int"]["dim"] == 2
    assert dims["aten.cumsum.default"]["dim"] == 1
    assert dims["aten.flip.default"]["dims"] == (2,)
    assert dims["aten.stack.default"]["dim"] == 3
    assert dims["aten.cat.default"]["dim"] == 0
    assert dims["aten.amax.default"]["dim"] == (1,)


def test_dims_of_the_result_count_from_its_own_front() -> None:
    graph = normalized(lambda h, y, labels, w: (torch.diag_embed(h) * torch.diag_embed(y)).sum())
    assert [dict(op.kwargs) or op.args[1:] for op in graph.graph.ops if "diag" in op.target] == [(0, 2, 3)] * 2


def test_batch_norm_with_given_statistics_has_one_result() -> None:
    def forward(h: torch.Tensor, y: torch.Tensor, labels: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(h.transpose(1, 2), w, w, training=False).pow(2).sum()

    assert "batch_norm" in normalized(forward).targets


def test_active_dropout_stays_with_one_result() -> None:
    net = Net(lambda h, y, labels, w: F.dropout(F.dropout(h, 0.5, True), 0.5, True).sum(), torch.float64)
    graph = Normalize().run(capture_graph(net, batch_of(4)).program).graph
    assert graph is not None
    dropouts = [op for op in graph.ops if "dropout" in op.target]
    assert [op.target for op in dropouts] == ["aten.dropout.default"] * 2
    assert all(len(op.results) == 1 for op in dropouts)


def test_equal_masks_are_computed_once_and_trained_values_as_often_as_written() -> None:
    def forward(h: torch.Tensor, y: torch.Tensor, labels: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            future = torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)
            h = (h @ h.transpose(1, 2)).masked_fill(future, float("-inf")).softmax(-1) @ (h.exp() + h.exp())
        return h.sum()

    targets = normalized(forward).targets
    assert [targets.count(t) for t in ("full", "triu", "exp")] == [1, 1, 4]


def test_random_numbers_are_drawn_as_often_as_written() -> None:
    net = Net(lambda h, y, labels, w: (h * (torch.rand(CLASSES) + torch.rand(CLASSES))).sum(), torch.float64)
    graph = Normalize().run(capture_graph(net, batch_of(4)).program).graph
    assert graph is not None
    assert [op.target for op in graph.ops].count("aten.rand.default") == 2


def test_values_are_numbered_in_order() -> None:
    graph = normalized(nothing).graph
    assert [op.result.name for op in graph.ops if op.target == "aten.sum.dim_IntList"] == ["sum_1", "sum_2"]
