"""`fuse`: several ops that one op can do are that op, and what every sample has in common is computed once.

`FUSIONS` is the table of rewrites: patterns, what takes their place, and the condition under which both are equal to
rounding; `samples` computes masks for one sample where they are equal for all. Then follow those of `normalize`, and
both again, since what these remove may stand between two ops of a pattern.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from galvatron.ir.program import Form, Program
from galvatron.passes.base import Pass, PassResult
from galvatron.passes.frontend.fuse.conditions import (
    adds_bias,
    composed_order,
    exact_cast,
    grouped_heads,
    half_precision_norm,
    is_causal,
    is_neutral,
    is_norm_weight,
    last_dim,
    masked_scores,
    rounds_no_more,
    same_dtype_softmax,
    scores,
    selects_all,
)
from galvatron.passes.frontend.fuse.experts import looked_up_matrices, put_back
from galvatron.passes.frontend.fuse.samples import read_for_one_sample
from galvatron.passes.frontend.fuse.turns import turns_as_one
from galvatron.passes.frontend.normalize import normalized
from galvatron.passes.frontend.normalize.identities import as_result
from galvatron.passes.frontend.results import rewriting_result
from galvatron.rewriting import Formula, Function, RewriteRule, Rewrites, numbered, rewritten

_RAW_SCORES = ("q @ k", "(q @ k) * scale", "(q @ k) / divisor")
_MASKED_SCORES = (*(f"{s} + mask" for s in _RAW_SCORES), *(f"where.ScalarOther(mask, {s}, -inf)" for s in _RAW_SCORES))
_HIDDEN_SCORES = tuple(f"masked_fill.Scalar({s}, hidden, -inf)" for s in _RAW_SCORES)
_KEYS = "reshape(expand(unsqueeze(k, 2), expanded), _)"
_VALUES = "reshape(expand(unsqueeze(v, 2), expanded), _)"

FUSIONS: dict[str, RewriteRule] = {
    "samples": Function(read_for_one_sample),
    # casts and views
    "type-as": Formula("type_as(x, y)", "_to_copy(x, dtype=dtype)", as_result),
    "cast-of-cast": Formula("_to_copy(_to_copy(x, dtype=wide), dtype=narrow)", "_to_copy(x, dtype=narrow)", exact_cast),
    "view-of-view": Formula(("reshape(reshape(x, _), shape)", "reshape(unsqueeze(x, _), shape)"), "reshape(x, shape)"),
    "order-of-order": Formula(
        (
            "transpose.int(transpose.int(x, a, b), c, d)",
            "transpose.int(permute(x, inner), c, d)",
            "permute(transpose.int(x, a, b), outer)",
            "permute(permute(x, inner), outer)",
        ),
        "permute(x, order)",
        composed_order,
        repeatable=True,
    ),
    "softmax-dtype": Formula("softmax.int(x, dim, dtype)", "softmax.int(x, dim)", same_dtype_softmax),
    # activations
    "silu": Formula("x * sigmoid(x)", "silu(x)", rounds_no_more),
    "gelu-tanh": Formula(
        (
            "x * 0.5 * (tanh((x + x ** 3 * 0.044715) * 0.7978845608028654) + 1)",
            "x * 0.5 * (tanh(x * 0.7978845608028654 * (x * 0.044715 * x + 1)) + 1)",
            "x * (tanh((x + x ** 3 * 0.044715) * 0.7978845608028654) + 1) * 0.5",
        ),
        'gelu(x, approximate="tanh")',
        rounds_no_more,
    ),
    "gelu": Formula(
        ("x * 0.5 * (erf(x / 1.4142135623730951) + 1)", "x * (erf(x / 1.4142135623730951) + 1) * 0.5"),
        "gelu(x)",
        rounds_no_more,
    ),
    # linear and norms
    "linear-bias": Formula("linear(x, w) + b", "linear(x, w, b)", adds_bias),
    "rms-norm": Formula(
        ("x * rsqrt(mean.dim(x ** 2, dims, True) + eps)", "x * rsqrt(mean.dim(x * x, dims, True) + eps)"),
        "rms_norm(x, shape, None, eps)",
        last_dim,
    ),
    "rms-norm-weight": Formula("rms_norm(x, shape, None, eps) * w", "rms_norm(x, shape, w, eps)", is_norm_weight),
    "rms-norm-cast": Formula(
        "_to_copy(rms_norm(_to_copy(x, dtype=wide), shape, None, eps), dtype=narrow)",
        "rms_norm(x, shape, None, eps)",
        half_precision_norm,
    ),
    # masks
    "selected-all": Formula(
        ("where.ScalarOther(mask, x, _)", "where.self(mask, x, _)"), "expand(x, size)", selects_all
    ),
    "and-true": Formula(("bitwise_and.Tensor(mask, x)", "logical_and(mask, x)"), "expand(x, size)", selects_all),
    "unmasked": Formula(
        "scaled_dot_product_attention(q, k, v, mask, p, scale=scale, enable_gqa=grouped)",
        "scaled_dot_product_attention(q, k, v, None, p, scale=scale, enable_gqa=grouped)",
        is_neutral,
    ),
    "causal": Formula(
        "scaled_dot_product_attention(q, k, v, mask, p, scale=scale, enable_gqa=grouped)",
        "scaled_dot_product_attention(q, k, v, None, p, True, scale=scale, enable_gqa=grouped)",
        is_causal,
    ),
    # attention
    "attention": Formula(
        tuple(f"softmax.int({s}, 3) @ v" for s in (*_RAW_SCORES, *_MASKED_SCORES)),
        "scaled_dot_product_attention(q, transpose.int(k, 2, 3), v, mask, scale=scale)",
        scores,
    ),
    "masked-attention": Formula(
        tuple(f"softmax.int({s}, 3) @ v" for s in _HIDDEN_SCORES),
        "scaled_dot_product_attention(q, transpose.int(k, 2, 3), v, reshape(~hidden, shape), scale=scale)",
        masked_scores,
    ),
    "grouped-query-attention": Formula(
        f"scaled_dot_product_attention(q, {_KEYS}, {_VALUES}, None, p, causal, scale=scale)",
        "scaled_dot_product_attention(q, k, v, None, p, causal, scale=scale, enable_gqa=True)",
        grouped_heads,
    ),
    # experts
    "looked-up-matrices": Function(looked_up_matrices, "bmm matmul"),
    "put-back": Function(put_back, "index.Tensor"),
    "turns": Function(turns_as_one, "add.Tensor"),
}
"""Every rewrite by its name, in the order in which they are tried at an op."""


@dataclass(frozen=True)
class Fuse(Pass):
    """Replaces patterns of ops by the one op that computes the same, and masks by what attention knows by itself.

    `rewrites` is how many rewrites are done, those of `normalize` among them, to find one that is wrong; None is all.
    """

    name = "fuse"
    needs = Form.CAPTURED
    leaves = Form.CAPTURED

    rewrites: int | None = None

    def result(self, program: Program) -> PassResult:
        before, rewrites = program.required_graph, Rewrites(self.rewrites)
        graph = before
        while (fused := rewritten(graph, FUSIONS, program.trainable, rewrites)) != graph:
            graph = normalized(fused, program.trainable, rewrites)
        if graph == before:
            return PassResult(program)
        read = {value.name for value in graph.state}
        kept = tuple(state for state in program.state if state.kind != "constant" or state.name in read)
        fused_program = replace(program.with_graph(numbered(graph)), state=kept)
        return rewriting_result(fused_program, before, graph, rewrites)
