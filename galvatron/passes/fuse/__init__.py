"""`fuse`: several ops that one op can do are that op, and what every sample has in common is computed once.

`samples` computes masks for one sample where they are equal for all. `FUSIONS` is the table of rewrites: patterns, what
takes their place, and the condition under which both are equal to rounding. `notation` says how to read a pattern.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from galvatron.ir.program import Form, Program
from galvatron.passes.base import Pass
from galvatron.passes.fuse.conditions import (
    adds_bias,
    casts_like,
    composed_order,
    exact_cast,
    grouped_heads,
    half_precision_norm,
    is_causal,
    is_neutral,
    is_norm_weight,
    keeps_precision,
    last_dim,
    masked_scores,
    same_dtype_softmax,
    scores,
    selects_all,
)
from galvatron.passes.fuse.rewriter import Fusion, fuse
from galvatron.passes.fuse.samples import computed_for_one_sample
from galvatron.passes.normalize import Normalize

_RAW_SCORES = ("q @ k", "(q @ k) * scale", "(q @ k) / divisor")
_MASKED_SCORES = (*(f"{s} + mask" for s in _RAW_SCORES), *(f"where.ScalarOther(mask, {s}, -inf)" for s in _RAW_SCORES))
_HIDDEN_SCORES = tuple(f"masked_fill.Scalar({s}, hidden, -inf)" for s in _RAW_SCORES)
_KEYS = "reshape(expand(unsqueeze(k, 2), expanded), _)"
_VALUES = "reshape(expand(unsqueeze(v, 2), expanded), _)"

FUSIONS = (
    # casts and views
    Fusion("type-as", "type_as(x, y)", "_to_copy(x, dtype=dtype)", casts_like),
    Fusion("cast-of-cast", "_to_copy(_to_copy(x, dtype=wide), dtype=narrow)", "_to_copy(x, dtype=narrow)", exact_cast),
    Fusion("view-of-view", ("reshape(reshape(x, _), shape)", "reshape(unsqueeze(x, _), shape)"), "reshape(x, shape)"),
    Fusion(
        "order-of-order",
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
    Fusion("softmax-dtype", "softmax.int(x, dim, dtype)", "softmax.int(x, dim)", same_dtype_softmax),
    # activations
    Fusion("silu", "x * sigmoid(x)", "silu(x)", keeps_precision),
    Fusion(
        "gelu-tanh",
        (
            "x * 0.5 * (tanh((x + x ** 3 * 0.044715) * 0.7978845608028654) + 1)",
            "x * 0.5 * (tanh(x * 0.7978845608028654 * (x * 0.044715 * x + 1)) + 1)",
            "x * (tanh((x + x ** 3 * 0.044715) * 0.7978845608028654) + 1) * 0.5",
        ),
        'gelu(x, approximate="tanh")',
        keeps_precision,
    ),
    Fusion(
        "gelu",
        ("x * 0.5 * (erf(x / 1.4142135623730951) + 1)", "x * (erf(x / 1.4142135623730951) + 1) * 0.5"),
        "gelu(x)",
        keeps_precision,
    ),
    # linear and norms
    Fusion("linear-bias", "linear(x, w) + b", "linear(x, w, b)", adds_bias),
    Fusion(
        "rms-norm",
        ("x * rsqrt(mean.dim(x ** 2, dims, True) + eps)", "x * rsqrt(mean.dim(x * x, dims, True) + eps)"),
        "rms_norm(x, shape, None, eps)",
        last_dim,
    ),
    Fusion("rms-norm-weight", "rms_norm(x, shape, None, eps) * w", "rms_norm(x, shape, w, eps)", is_norm_weight),
    Fusion(
        "rms-norm-cast",
        "_to_copy(rms_norm(_to_copy(x, dtype=wide), shape, None, eps), dtype=narrow)",
        "rms_norm(x, shape, None, eps)",
        half_precision_norm,
    ),
    # masks
    Fusion("selected-all", ("where.ScalarOther(mask, x, _)", "where.self(mask, x, _)"), "expand(x, size)", selects_all),
    Fusion("and-true", ("bitwise_and.Tensor(mask, x)", "logical_and(mask, x)"), "expand(x, size)", selects_all),
    Fusion(
        "unmasked",
        "scaled_dot_product_attention(q, k, v, mask, p, scale=scale, enable_gqa=grouped)",
        "scaled_dot_product_attention(q, k, v, None, p, scale=scale, enable_gqa=grouped)",
        is_neutral,
    ),
    Fusion(
        "causal",
        "scaled_dot_product_attention(q, k, v, mask, p, scale=scale, enable_gqa=grouped)",
        "scaled_dot_product_attention(q, k, v, None, p, True, scale=scale, enable_gqa=grouped)",
        is_causal,
    ),
    # attention
    Fusion(
        "attention",
        tuple(f"softmax.int({s}, 3) @ v" for s in (*_RAW_SCORES, *_MASKED_SCORES)),
        "scaled_dot_product_attention(q, transpose.int(k, 2, 3), v, mask, scale=scale)",
        scores,
    ),
    Fusion(
        "masked-attention",
        tuple(f"softmax.int({s}, 3) @ v" for s in _HIDDEN_SCORES),
        "scaled_dot_product_attention(q, transpose.int(k, 2, 3), v, reshape(~hidden, shape), scale=scale)",
        masked_scores,
    ),
    Fusion(
        "grouped-query-attention",
        f"scaled_dot_product_attention(q, {_KEYS}, {_VALUES}, None, p, causal, scale=scale)",
        "scaled_dot_product_attention(q, k, v, None, p, causal, scale=scale, enable_gqa=True)",
        grouped_heads,
    ),
)
"""Every rewrite, in the order in which they are tried at an op."""


@dataclass(frozen=True)
class Fuse(Pass):
    """Replaces patterns of ops by the one op that computes the same, and masks by what attention knows by itself."""

    name = "fuse"
    needs = Form.CAPTURED
    leaves = Form.CAPTURED

    def run(self, program: Program) -> Program:
        assert program.graph is not None
        graph = fuse(computed_for_one_sample(program.graph), FUSIONS)
        if graph == program.graph:
            return program
        program = Normalize().run(replace(program, graph=graph))
        assert program.graph is not None
        read = {value.name for value in program.graph.state}
        kept = tuple(state for state in program.state if state.kind != "constant" or state.name in read)
        # Again, until nothing changes: what normalising removed may have stood between two ops of a pattern.
        return self.run(replace(program, state=kept))
