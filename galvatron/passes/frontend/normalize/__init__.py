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
from galvatron.passes.base import Pass
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
from galvatron.rewriting import Formula, Function, RewriteRule, numbered, rewritten

_COPIES = "alias clone contiguous lift_fresh_copy lift_fresh detach_copy alias_copy resolve_conj resolve_neg"
_VIEWS = (
    "view _unsafe_view view_as reshape_as flatten.using_ints unflatten.int squeeze squeeze.dim squeeze.dims view_copy"
)
_ZEROS = "zeros zeros_like new_zeros zero empty.memory_format empty_like empty_permuted new_empty new_empty_strided"


def _each(ops: str, arguments: str) -> tuple[str, ...]:
    return tuple(f"{op}({arguments})" for op in ops.split())


RULES: tuple[RewriteRule, ...] = (
    Function(canonical_arguments),
    # ops that do nothing
    Formula(_each(_COPIES, "x, ..."), "x"),
    Formula(("_to_copy(x, ...)", "reshape(x, _)", "expand(x, _)", "slice.Tensor(x, _, _, _)"), "x"),
    Formula("permute(x, order)", "x", same_order),
    Formula("transpose.int(x, dim, dim)", "x"),
    Formula(("x + 0", "x - 0", "x * 1", "x / 1", "x ** 1"), "x"),
    Formula(_each("bitwise_and.Tensor logical_and", "x, full(_, True, ...)"), "x", repeatable=True),
    Formula("detach(x)", "x", no_gradient),
    Formula(("dropout(x, 0, _)", "dropout(x, _, False)"), "x"),
    Function(inactive_dropout_with_mask, "native_dropout"),
    Function(dropout_without_mask, "native_dropout"),
    Function(batch_norm_without_saved_statistics, "_native_batch_norm_legit_no_training"),
    Function(cat_with_nothing, "cat"),
    Formula(
        (
            "where.self(all(isfinite(x)), x, clamp(x, low, high))",
            "where.self(any(isinf(x)), clamp(x, low, high), x)",
        ),
        "clamp(x, low, high)",
        changes_nothing_finite,
    ),
    # other names of the same op
    Formula(_each(_VIEWS, "x, ..."), "reshape(x, size)", as_result),
    Formula(_each("expand_as expand_copy", "x, ..."), "expand(x, size)", as_result),
    Function(broadcast, "broadcast_tensors"),
    Formula(("t(x)", "mT(x)"), "permute(x, order)", swapped),
    Formula("numpy_T(x)", "permute(x, order)", reversed_dims),
    Formula(_each("movedim.int movedim.intlist", "x, source, destination"), "permute(x, order)", moved),
    Formula(_each("swapaxes swapdims", "x, a, b"), "transpose.int(x, a, b)"),
    Function(chunks_as_split, "chunk"),
    Formula("narrow(x, dim, start, length)", "slice.Tensor(x, dim, start, end)", to_end),
    Formula("repeat_interleave.self_int(x, times, dim, output_size=_)", "repeat_interleave.self_int(x, times, dim)"),
    Formula(_each("concat concatenate", "parts, dim"), "cat(parts, dim)"),
    Formula(_each("ones ones_like new_ones", "..."), "full(size, value, dtype=dtype)", filled_with(1)),
    Formula(_each(_ZEROS, "..."), "full(size, value, dtype=dtype)", filled_with(0)),
    Formula(
        (
            "full_like(_, value, ...)",
            "new_full(_, _, value, ...)",
            "scalar_tensor(value, ...)",
            "fill.Scalar(_, value)",
        ),
        "full(size, value, dtype=dtype)",
        filled_with(),
    ),
    Formula("__and__.Tensor(x, y)", "bitwise_and.Tensor(x, y)"),
    Formula("__or__.Tensor(x, y)", "bitwise_or.Tensor(x, y)"),
    Formula("__xor__.Tensor(x, y)", "bitwise_xor.Tensor(x, y)"),
    Formula(_each("_conj conj _conj_physical", "x"), "conj_physical(x)"),
    Formula("_neg_view(x)", "neg(x)"),
    Formula(_each("divide.Tensor true_divide.Tensor", "x, y"), "x / y"),
    Formula("multiply.Tensor(x, y)", "x * y"),
    Formula("subtract.Tensor(x, y, alpha=alpha)", "sub.Tensor(x, y, alpha=alpha)"),
    Formula(
        (
            "sum(x, dtype=dtype)",
            "sum.dim_IntList(x, None, keepdim, dtype=dtype)",
            "sum.dim_IntList(x, [], keepdim, dtype=dtype)",
        ),
        "sum.dim_IntList(x, dims, keepdim, dtype=dtype)",
        all_dims,
    ),
    # writes into parts of a tensor
    Formula(("copy(_, x, ...)", "fill.Tensor(_, x)"), "expand(_to_copy(x, dtype=dtype), size)", as_result),
    Function(slice_written, "slice_scatter"),
    Function(element_written, "select_scatter"),
    Function(mask_written, "index_put"),
    Function(samples_written, "index_put"),
    Function(joined, "cat"),
    Function(part_of_joined, "slice.Tensor"),
    Function(element_of_joined, "select.int"),
    # means over the batch
    Function(batch_mean, "mean mean.dim"),
    Function(loss_without_total_weight, "nll_loss_forward nll_loss2d_forward"),
    Function(mean_of_targets, "cross_entropy_loss nll_loss nll_loss_nd nll_loss2d"),
    Function(
        mean_of_elements, "mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss hinge_embedding_loss kl_div"
    ),
    Function(mean_of_elements, "binary_cross_entropy binary_cross_entropy_with_logits"),
    Function(mean_of_elements, "poisson_nll_loss margin_ranking_loss"),
    Function(mean_of_samples, "cosine_embedding_loss triplet_margin_loss multi_margin_loss multilabel_margin_loss"),
    Function(mean_of_alignments, "ctc_loss.Tensor"),
    Function(refuse_mean, "nll_loss_forward nll_loss2d_forward ctc_loss.IntList"),
    # indexing by ranges
    Function(whole_range_index, "index.Tensor"),
    Function(batched_index, "index.Tensor"),
)
"""Every rewrite, in the order in which they are tried at an op."""


@dataclass(frozen=True)
class Normalize(Pass):
    """One spelling per computation; means over the batch become sums divided by counts."""

    name = "normalize"
    needs = Form.CAPTURED
    leaves = Form.CAPTURED

    def run(self, program: Program) -> Program:
        return program.with_graph(numbered(normalized(program.required_graph, program.trainable)))


def normalized(graph: Graph, trainable: Iterable[str]) -> Graph:
    """The graph with one spelling per computation; `trainable` names the state that gradients flow to."""
    return with_shared_beginnings(rewritten(graph, RULES, trainable))
