"""When a rewrite is right: each function is the `where` of rows of the table, and gives the names that they need."""

from __future__ import annotations

from galvatron.ir.graph import Const
from galvatron.ir.types import TensorType
from galvatron.passes.frontend.fuse.constants import facts
from galvatron.rewriting import Match, Meanings

_HALF = ("f16", "bf16")
_HOLDS_EXACTLY = {
    "f64": {"f64", "f32", "f16", "bf16", "i32", "i16", "i8", "u8", "bool"},
    "f32": {"f32", "f16", "bf16", "i16", "i8", "u8", "bool"},
    "i64": {"i64", "i32", "i16", "i8", "u8", "bool"},
    "i32": {"i32", "i16", "i8", "u8", "bool"},
}
"""Element type → the types all of whose values it has."""


def rounds_no_more(match: Match) -> Meanings:
    """The result is of real numbers. In 16 bits the model rounds after each op, while one op computes in 32 bits and
    rounds once: it is nearer to what both mean."""
    return {} if match.type.dtype in ("f32", "f64", *_HALF) else None


def _keeps_precision(match: Match) -> bool:
    """The result has 32 or 64 bits. In 16 bits attention that is written out stays so: its scores may be too large for
    these, and the model may look at them."""
    return match.type.dtype in ("f32", "f64")


def exact_cast(match: Match) -> Meanings:
    """The type in between has every value of the first one."""
    wide = match["wide"]
    assert isinstance(wide, Const)
    return {} if match.type_of("x").dtype in _HOLDS_EXACTLY.get(wide.name, ()) else None


def same_dtype_softmax(match: Match) -> Meanings:
    """The type asked for is the operand's."""
    return {} if match["dtype"] == Const("dtype", match.type_of("x").dtype) else None


def composed_order(match: Match) -> Meanings:
    """One reordering of dims after another."""
    rank = len(match.type.shape)
    inner = _order(match, rank, "inner", "a", "b")
    outer = _order(match, rank, "outer", "c", "d")
    return {"order": tuple(inner[i] for i in outer)}


def _order(match: Match, rank: int, dims: str, first: str, second: str) -> list[int]:
    if dims in match.names:
        order = match[dims]
        assert isinstance(order, tuple)
        return [int(i) for i in order]  # type: ignore[arg-type]  # dims
    a, b = match[first], match[second]
    assert isinstance(a, int) and isinstance(b, int)
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return order


def adds_bias(match: Match) -> Meanings:
    """A vector with a number for each output feature."""
    fits = match.is_tensor("b") and match.type_of("b") == TensorType(match.type.dtype, match.type.shape[-1:])
    return rounds_no_more(match) if fits else None


def last_dim(match: Match) -> Meanings:
    """The mean is over the last dim, and `eps` is a number."""
    shape = match.type_of("x").shape
    fits = match["dims"] == (len(shape) - 1,) and isinstance(shape[-1], int) and not match.is_tensor("eps")
    return {"shape": shape[-1:]} if fits and rounds_no_more(match) is not None else None


def is_norm_weight(match: Match) -> Meanings:
    """A parameter of the normalised shape."""
    fits = match.is_state("w") and match.type_of("w") == TensorType(match.type.dtype, tuple(match["shape"]))  # type: ignore[arg-type]
    return rounds_no_more(match) if fits else None


def half_precision_norm(match: Match) -> Meanings:
    """`rms_norm` of 16 bits computes in 32 and rounds once, as the model does."""
    fits = match.type.dtype in _HALF and match.type_of("x").dtype == match.type.dtype
    return {} if fits and match["wide"] == Const("dtype", "f32") else None


def is_neutral(match: Match) -> Meanings:
    """The mask is a constant that masks nothing."""
    return {} if facts(match, "mask").neutral else None


def selects_all(match: Match) -> Meanings:
    """A condition that is a constant and true everywhere leaves `x` as it is, up to its broadcast shape."""
    fits = match.is_tensor("x") and match.type_of("x").dtype == match.type.dtype
    return {"size": match.type.shape} if fits and facts(match, "mask").neutral else None


def is_causal(match: Match) -> Meanings:
    """The mask is a constant that hides the future and nothing else. It can be had back: `full(n, n, True).tril()`."""
    return {} if facts(match, "mask").causal else None


def scores(match: Match) -> Meanings:
    """Scores of heads, scaled and masked by what attention takes as scale and mask."""
    scale = _scale(match)
    mask = match.names.get("mask")
    if scale is None or not _is_attention(match):
        return None
    if mask is not None:
        if not match.is_tensor("mask") or len(match.type_of("mask").shape) != 4:
            return None
        if match.type_of("mask").dtype not in ("bool", match.type.dtype):
            return None
    return {"scale": scale, "mask": mask}


def masked_scores(match: Match) -> Meanings:
    """As `scores`; the mask that hides them gets four dims."""
    scale = _scale(match)
    if scale is None or not _is_attention(match) or match.type_of("hidden").dtype != "bool":
        return None
    shape = match.type_of("hidden").shape
    return {"scale": scale, "shape": (1,) * (4 - len(shape)) + shape}


def _scale(match: Match) -> float | None:
    scale, divisor = match.names.get("scale", 1.0), match.names.get("divisor", 1.0)
    if isinstance(scale, (int, float)) and isinstance(divisor, (int, float)):
        return float(scale / divisor)
    return None


def _is_attention(match: Match) -> bool:
    q, k, v = (match.type_of(name) for name in "qkv")
    alike = len(q.shape) == len(k.shape) == len(v.shape) == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2]
    return alike and q.dtype == k.dtype == v.dtype and _keeps_precision(match)


def grouped_heads(match: Match) -> Meanings:
    """Keys and values are expanded from heads to the queries' heads, each to several in a row.

    Not under a mask: no fast kernel of CUDA takes both grouped heads and a mask.
    """
    k, v = match.type_of("k").shape, match.type_of("v").shape
    heads = match.type_of("q").shape[1]
    if len(k) != 4 or k[:3] != v[:3] or not isinstance(heads, int) or not isinstance(k[1], int) or heads % k[1]:
        return None
    return {} if match["expanded"] == (k[0], k[1], heads // k[1], *k[2:]) and k == v else None
