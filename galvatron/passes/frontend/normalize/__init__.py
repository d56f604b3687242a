"""`normalize`: one spelling per computation, and means over the batch as sums and counts.

After it, sizes are written out, dims count from the front, defaults are left out, every view is a `reshape`, what does
nothing is gone, each loss is a sum divided by a count, and equal computations of masks and positions happen once. The
table `RULES` says what is done to which op, `galvatron.rewriting` how to read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from galvatron.ir.graph import Graph
from galvatron.ir.program import Form, Program
from galvatron.passes.base import Pass, PassResult
from galvatron.passes.frontend.normalize.arguments import canonical_arguments
from galvatron.passes.frontend.normalize.beginnings import with_shared_beginnings
from galvatron.passes.frontend.normalize.identities import (
    all_dims,
    as_result,
    batch_norm_without_saved_statistics,
    broadcast,
    cat_with_nothing,
    changes_nothing_finite,
    chunks_as_split,
    dropout_without_mask,
    filled_with,
    inactive_dropout_with_mask,
    moved,
    no_gradient,
    reversed_dims,
    same_order,
    swapped,
    to_end,
)
from galvatron.passes.frontend.normalize.indexing import batched_index, whole_range_index
from galvatron.passes.frontend.normalize.losses import (
    batch_mean,
    loss_without_total_weight,
    mean_of_alignments,
    mean_of_elements,
    mean_of_samples,
    mean_of_targets,
    refuse_mean,
)
from galvatron.passes.frontend.normalize.writes import (
    element_of_joined,
    element_written,
    joined,
    mask_written,
    part_of_joined,
    samples_written,
    slice_written,
)
from galvatron.passes.frontend.results import rewriting_result
from galvatron.rewriting import Formula, Function, RewriteRule, Rewrites, numbered, rewritten

_COPIES = "alias clone contiguous lift_fresh_copy lift_fresh detach_copy alias_copy resolve_conj resolve_neg"
_VIEWS = (
    "view _unsafe_view view_as reshape_as flatten.using_ints unflatten.int squeeze squeeze.dim squeeze.dims view_copy"
)
_ZEROS = "zeros zeros_like new_zeros zero empty.memory_format empty_like empty_permuted new_empty new_empty_strided"
_LOSSES_OF_ELEMENTS = (
    "mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss hinge_embedding_loss kl_div binary_cross_entropy "
    "binary_cross_entropy_with_logits poisson_nll_loss margin_ranking_loss"
)


def _each(ops: str, arguments: str) -> tuple[str, ...]:
    return tuple(f"{op}({arguments})" for op in ops.split())


RULES: dict[str, RewriteRule] = {
    "canonical-arguments": Function(canonical_arguments),
    # ops that do nothing
    "copy": Formula(_each(_COPIES, "x, ..."), "x"),
    "same-type-and-shape": Formula(
        ("_to_copy(x, ...)", "reshape(x, _)", "expand(x, _)", "slice.Tensor(x, _, _, _)"), "x"
    ),
    "same-order": Formula("permute(x, order)", "x", same_order),
    "same-dims": Formula("transpose.int(x, dim, dim)", "x"),
    "neutral-number": Formula(("x + 0", "x - 0", "x * 1", "x / 1", "x ** 1"), "x"),
    "and-with-true": Formula(_each("bitwise_and.Tensor logical_and", "x, full(_, True, ...)"), "x", repeatable=True),
    "detach": Formula("detach(x)", "x", no_gradient),
    "inactive-dropout": Formula(("dropout(x, 0, _)", "dropout(x, _, False)"), "x"),
    "inactive-dropout-with-mask": Function(inactive_dropout_with_mask, "native_dropout"),
    "dropout-without-mask": Function(dropout_without_mask, "native_dropout"),
    "batch-norm-without-statistics": Function(
        batch_norm_without_saved_statistics, "_native_batch_norm_legit_no_training"
    ),
    "cat-with-nothing": Function(cat_with_nothing, "cat"),
    "clamp": Formula(
        (
            "where.self(all(isfinite(x)), x, clamp(x, low, high))",
            "where.self(any(isinf(x)), clamp(x, low, high), x)",
        ),
        "clamp(x, low, high)",
        changes_nothing_finite,
    ),
    # other names of the same op
    "view": Formula(_each(_VIEWS, "x, ..."), "reshape(x, size)", as_result),
    "expand": Formula(_each("expand_as expand_copy", "x, ..."), "expand(x, size)", as_result),
    "broadcast": Function(broadcast, "broadcast_tensors"),
    "swap": Formula(("t(x)", "mT(x)"), "permute(x, order)", swapped),
    "reverse": Formula("numpy_T(x)", "permute(x, order)", reversed_dims),
    "move": Formula(_each("movedim.int movedim.intlist", "x, source, destination"), "permute(x, order)", moved),
    "swap-dims": Formula(_each("swapaxes swapdims", "x, a, b"), "transpose.int(x, a, b)"),
    "chunk": Function(chunks_as_split, "chunk"),
    "narrow": Formula("narrow(x, dim, start, length)", "slice.Tensor(x, dim, start, end)", to_end),
    "repeat-interleave": Formula(
        "repeat_interleave.self_int(x, times, dim, output_size=_)", "repeat_interleave.self_int(x, times, dim)"
    ),
    "concat": Formula(_each("concat concatenate", "parts, dim"), "cat(parts, dim)"),
    "ones": Formula(_each("ones ones_like new_ones", "..."), "full(size, value, dtype=dtype)", filled_with(1)),
    "zeros": Formula(_each(_ZEROS, "..."), "full(size, value, dtype=dtype)", filled_with(0)),
    "full": Formula(
        (
            "full_like(_, value, ...)",
            "new_full(_, _, value, ...)",
            "scalar_tensor(value, ...)",
            "fill.Scalar(_, value)",
        ),
        "full(size, value, dtype=dtype)",
        filled_with(),
    ),
    "and": Formula("__and__.Tensor(x, y)", "bitwise_and.Tensor(x, y)"),
    "or": Formula("__or__.Tensor(x, y)", "bitwise_or.Tensor(x, y)"),
    "xor": Formula("__xor__.Tensor(x, y)", "bitwise_xor.Tensor(x, y)"),
    "conj": Formula(_each("_conj conj _conj_physical", "x"), "conj_physical(x)"),
    "neg": Formula("_neg_view(x)", "neg(x)"),
    "divide": Formula(_each("divide.Tensor true_divide.Tensor", "x, y"), "x / y"),
    "multiply": Formula("multiply.Tensor(x, y)", "x * y"),
    "subtract": Formula("subtract.Tensor(x, y, alpha=alpha)", "sub.Tensor(x, y, alpha=alpha)"),
    "sum": Formula(
        (
            "sum(x, dtype=dtype)",
            "sum.dim_IntList(x, None, keepdim, dtype=dtype)",
            "sum.dim_IntList(x, [], keepdim, dtype=dtype)",
        ),
        "sum.dim_IntList(x, dims, keepdim, dtype=dtype)",
        all_dims,
    ),
    # writes into parts of a tensor
    "fill": Formula(("copy(_, x, ...)", "fill.Tensor(_, x)"), "expand(_to_copy(x, dtype=dtype), size)", as_result),
    "slice-written": Function(slice_written, "slice_scatter"),
    "element-written": Function(element_written, "select_scatter"),
    "mask-written": Function(mask_written, "index_put"),
    "samples-written": Function(samples_written, "index_put"),
    "joined": Function(joined, "cat"),
    "part-of-joined": Function(part_of_joined, "slice.Tensor"),
    "element-of-joined": Function(element_of_joined, "select.int"),
    # means over the batch
    "batch-mean": Function(batch_mean, "mean mean.dim"),
    "loss-without-total-weight": Function(loss_without_total_weight, "nll_loss_forward nll_loss2d_forward"),
    "mean-of-targets": Function(mean_of_targets, "cross_entropy_loss nll_loss nll_loss_nd nll_loss2d"),
    "mean-of-elements": Function(mean_of_elements, _LOSSES_OF_ELEMENTS),
    "mean-of-samples": Function(
        mean_of_samples, "cosine_embedding_loss triplet_margin_loss multi_margin_loss multilabel_margin_loss"
    ),
    "mean-of-alignments": Function(mean_of_alignments, "ctc_loss.Tensor"),
    "refuse-mean": Function(refuse_mean, "nll_loss_forward nll_loss2d_forward ctc_loss.IntList"),
    # indexing by ranges
    "whole-range-index": Function(whole_range_index, "index.Tensor"),
    "batched-index": Function(batched_index, "index.Tensor"),
}
"""Every rewrite by its name, in the order in which they are tried at an op."""


@dataclass(frozen=True)
class Normalize(Pass):
    """One spelling per computation; means over the batch become sums divided by counts.

    `rewrites` is how many rewrites are done, to find one that is wrong; None is all. What comes after takes for granted
    that all are.
    """

    name = "normalize"
    needs = Form.CAPTURED
    leaves = Form.CAPTURED

    rewrites: int | None = None

    def result(self, program: Program) -> PassResult:
        graph, rewrites = program.required_graph, Rewrites(self.rewrites)
        simpler = normalized(graph, program.trainable, rewrites)
        return rewriting_result(program.with_graph(numbered(simpler)), graph, simpler, rewrites)


def normalized(graph: Graph, trainable: Iterable[str], rewrites: Rewrites | None = None) -> Graph:
    """The graph with one spelling per computation; see `rewritten`."""
    return with_shared_beginnings(rewritten(graph, RULES, trainable, rewrites))
