"""`normalize`: one spelling per computation, and means over the batch as sums and counts.

After it, sizes are written out, dims count from the front, defaults are left out, every view is a `reshape`, what does
nothing is gone, each loss is a sum divided by a count, and equal computations of masks and positions happen once. The
table `RULES` says what is done to which op; a rule is a function with one docstring.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from galvatron.ir.graph import Graph
from galvatron.ir.ops.targets import of_aten
from galvatron.ir.program import Form, Program
from galvatron.passes.base import Pass
from galvatron.passes.normalize.arguments import canonical_arguments
from galvatron.passes.normalize.identities import (
    batch_norm_without_saved_statistics,
    broadcast,
    cat_with_nothing,
    chunks_as_split,
    conjunction_with_true,
    dropout_without_mask,
    expanded,
    explicit_dims,
    filled_with,
    full_slice,
    identity,
    identity_if_same_type,
    identity_permutation,
    inactive_dropout,
    narrowed,
    neutral_element,
    permuted,
    pointless_detach,
    renamed_to,
    reshaped,
)
from galvatron.passes.normalize.indexing import batched_index, whole_range_index
from galvatron.passes.normalize.losses import (
    batch_mean,
    loss_without_total_weight,
    mean_of_elements,
    mean_of_samples,
    mean_of_targets,
    refuse_mean,
)
from galvatron.passes.normalize.rewriter import Rewrite, rewrite
from galvatron.passes.normalize.sharing import numbered, without_repeats
from galvatron.passes.normalize.writes import (
    copied,
    element_of_joined,
    element_written,
    filled,
    joined,
    mask_written,
    part_of_joined,
    samples_written,
    slice_written,
)


def _table(*rows: tuple[Rewrite, str]) -> dict[str, tuple[Rewrite, ...]]:
    """Rules by target, in the order of the rows; targets are written without `aten.` and `.default`."""
    table: dict[str, tuple[Rewrite, ...]] = {}
    for rule, targets in rows:
        for short in targets.split():
            target = of_aten(short)
            table[target] = (*table.get(target, ()), rule)
    return table


RULES = _table(
    # ops that do nothing
    (identity, "alias clone contiguous lift_fresh_copy lift_fresh detach_copy alias_copy resolve_conj resolve_neg"),
    (identity_if_same_type, "_to_copy reshape expand"),
    (full_slice, "slice.Tensor"),
    (identity_permutation, "permute transpose.int"),
    (neutral_element(0), "add.Tensor sub.Tensor"),
    (neutral_element(1), "mul.Tensor div.Tensor pow.Tensor_Scalar"),
    (conjunction_with_true, "bitwise_and.Tensor logical_and"),
    (cat_with_nothing, "cat"),
    (pointless_detach, "detach"),
    (inactive_dropout, "dropout native_dropout feature_dropout alpha_dropout feature_alpha_dropout"),
    (dropout_without_mask, "native_dropout"),
    (batch_norm_without_saved_statistics, "_native_batch_norm_legit_no_training"),
    # other names of the same op
    (reshaped, "view _unsafe_view view_as reshape_as flatten.using_ints unflatten.int"),
    (reshaped, "squeeze squeeze.dim squeeze.dims view_copy _reshape_alias"),
    (expanded, "expand_as expand_copy"),
    (broadcast, "broadcast_tensors"),
    (permuted, "t mT numpy_T movedim.int movedim.intlist"),
    (chunks_as_split, "chunk"),
    (narrowed, "narrow"),
    (filled_with(1), "ones ones_like new_ones"),
    (filled_with(0), "zeros zeros_like new_zeros zero"),
    (filled_with(0), "empty.memory_format empty_like empty_strided empty_permuted new_empty new_empty_strided"),
    (filled_with(), "full_like new_full scalar_tensor"),
    (renamed_to("aten.bitwise_and.Tensor"), "__and__.Tensor"),
    (renamed_to("aten.bitwise_or.Tensor"), "__or__.Tensor"),
    (renamed_to("aten.bitwise_xor.Tensor"), "__xor__.Tensor"),
    (renamed_to("aten.conj_physical.default"), "_conj conj _conj_physical"),
    (renamed_to("aten.neg.default"), "_neg_view"),
    (renamed_to("aten.cat.default"), "concat concatenate"),
    (renamed_to("aten.div.Tensor"), "divide.Tensor true_divide.Tensor"),
    (renamed_to("aten.mul.Tensor"), "multiply.Tensor"),
    (renamed_to("aten.sub.Tensor"), "subtract.Tensor"),
    (renamed_to("aten.transpose.int"), "swapaxes swapdims"),
    (explicit_dims, "sum sum.dim_IntList"),
    # writes into parts of a tensor
    (copied, "copy"),
    (filled, "fill.Scalar fill.Tensor"),
    (slice_written, "slice_scatter"),
    (element_written, "select_scatter"),
    (mask_written, "index_put"),
    (samples_written, "index_put"),
    (joined, "cat"),
    (part_of_joined, "slice.Tensor"),
    (element_of_joined, "select.int"),
    # means over the batch
    (batch_mean, "mean mean.dim"),
    (loss_without_total_weight, "nll_loss_forward nll_loss2d_forward"),
    (mean_of_targets, "cross_entropy_loss nll_loss nll_loss_nd nll_loss2d"),
    (mean_of_elements, "mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss hinge_embedding_loss kl_div"),
    (mean_of_elements, "binary_cross_entropy binary_cross_entropy_with_logits poisson_nll_loss margin_ranking_loss"),
    (mean_of_samples, "cosine_embedding_loss triplet_margin_loss multi_margin_loss multilabel_margin_loss"),
    (refuse_mean, "nll_loss_forward nll_loss2d_forward ctc_loss.IntList ctc_loss.Tensor"),
    # indexing by ranges
    (whole_range_index, "index.Tensor"),
    (batched_index, "index.Tensor"),
)


@dataclass(frozen=True)
class Normalize(Pass):
    """One spelling per computation; means over the batch become sums divided by counts."""

    name = "normalize"
    needs = Form.CAPTURED
    leaves = Form.CAPTURED
    numerics = "reorders"

    def run(self, program: Program) -> Program:
        assert program.graph is not None
        trainable = frozenset(state.name for state in program.state if state.trainable)
        graph = program.graph
        while (simpler := _simplified(graph, trainable)) != graph:
            graph = simpler
        return replace(program, graph=graph, output=graph.outputs[0])


def _simplified(graph: Graph, trainable: frozenset[str]) -> Graph:
    return numbered(without_repeats(rewrite(graph, RULES, canonical_arguments, trainable), trainable))
