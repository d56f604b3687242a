"""Losses, by their `reduction`: a sum, each term, or a mean, which is left whole."""

from __future__ import annotations

from functools import partial

from galvatron.ir.layout import REPLICATE
from galvatron.ir.ops import shapes
from galvatron.ir.ops.arguments import Ref
from galvatron.ir.ops.call import Call, DimsFunction, by_line, of_rank, whole
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.operator import OnSlices, Operator, alike


def _loss(line: str, elementwise: str) -> DimsFunction:
    """A loss whose `reduction` argument is 2 (sum) or 0 (none); a mean is left whole."""

    def rule(call: Call) -> OpDims:
        if call["reduction"] == 1:
            return whole(call)
        return by_line(call, line if call["reduction"] == 2 else elementwise)

    return rule


def _cross_entropy(call: Call) -> OpDims:
    rank = len(call.shape("self"))
    if rank == 1:
        return whole(call)
    # Class indices without class weights may be looked up in a sharded vocabulary.
    indices = len(call.shape("target")) < rank
    v = "v^" if indices and rank == 2 and not isinstance(call["weight"], Ref) else "v!"
    target = "n d*" if indices else "n v! d*"
    return _loss(f"n {v} d*, {target}, {v}? -> ", f"n {v} d*, {target}, {v}? -> n d*")(call)


_likelihood = of_rank(2, "self", _loss("n v! d*, n d*, v!? -> ", "n v! d*, n d*, v!? -> n d*"))

_loss_of_pairs = partial(Operator, _loss("b*, b* -> ", "b*, b* -> b*"))

OPERATORS: dict[str, Operator] = {
    "cross_entropy_loss": Operator(
        _cross_entropy,
        written="F.cross_entropy(self, target, weight=, reduction=, ignore_index=, label_smoothing=)",
        shapes=shapes.loss_of_classes,
        dtype="same",
        short="loss",
        on_slices=OnSlices(REPLICATE, forward=(("all_reduce", 1), ("all_reduce", 3))),
        indices="target",
        probabilities=True,
        special=("ignore_index",),
        padded=range(1),
        moves="softmax",
    ),
    **alike("nll_loss nll_loss2d", Operator(_likelihood, indices="target", special=("ignore_index",))),
    "nll_loss_nd": Operator(
        _likelihood,
        written="F.nll_loss(self, target, weight=, reduction=, ignore_index=)",
        indices="target",
        special=("ignore_index",),
    ),
    "mse_loss": _loss_of_pairs(written="F.mse_loss(self, target, reduction=)"),
    "l1_loss": _loss_of_pairs(written="F.l1_loss(self, target, reduction=)"),
    **alike("smooth_l1_loss huber_loss kl_div poisson_nll_loss", _loss_of_pairs()),
    **alike("soft_margin_loss hinge_embedding_loss", _loss_of_pairs(signs="target")),
    "binary_cross_entropy": Operator(_loss("b*, b*, b*? -> ", "b*, b*, b*? -> b*")),
    "binary_cross_entropy_with_logits": Operator(
        _loss("b*, b*, b*?, b*? -> ", "b*, b*, b*?, b*? -> b*"),
        written="F.binary_cross_entropy_with_logits(self, target, weight=, pos_weight=, reduction=)",
    ),
    "margin_ranking_loss": Operator(_loss("b*, b*, b* -> ", "b*, b*, b* -> b*"), signs="target"),
    "cosine_embedding_loss": Operator(_loss("b* d!, b* d!, b* -> ", "b* d!, b* d!, b* -> b*"), signs="target"),
    "triplet_margin_loss": Operator(_loss("b* d!, b* d!, b* d! -> ", "b* d!, b* d!, b* d! -> b*")),
    "multi_margin_loss": Operator(
        of_rank(2, "self", _loss("n v!, n, 1, 1, v!? -> ", "n v!, n, 1, 1, v!? -> n")), indices="target"
    ),
    "multilabel_margin_loss": Operator(
        of_rank(2, "self", _loss("n v!, n v! -> ", "n v!, n v! -> n")), indices="target", negative=True
    ),
    "ctc_loss.Tensor": Operator(of_rank(2, "targets", _loss("t! n c!, n s!, n, n -> ", "t! n c!, n s!, n, n -> n"))),
}
