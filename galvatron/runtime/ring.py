"""Ring attention: queries stay, keys and values travel round the ranks of an axis that shards the sequence.

Every rank holds a slice of the queries, keys and values. In `axis.size` rounds it sees every slice of keys and values,
merges the partial softmaxes exactly, in at least 32 bits, and passes the slice on while it computes (Liu, Zaharia,
Abbeel, "Ring Attention with Blockwise Transformers", 2023). In the backward the slices travel once more with their
gradients. In folded slices (`runtime.slices`) a causal mask gives every rank the same work: pieces of the sequence in
the future of a piece of queries are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from galvatron.errors import GalvatronError
from galvatron.runtime import comm
from galvatron.runtime.comm import now
from galvatron.runtime.mesh import Axis
from galvatron.runtime.spmd import wide


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    axis: Axis,
    size: int,
    folded: bool = False,
) -> Tensor:
    """Attention over a sequence that is sharded on an axis.

    Args:
        query: [..., heads, rows / axis size, width], this rank's rows.
        key, value: [..., key heads, columns / axis size, width], this rank's columns.
        attn_mask: boolean or added to the scores, broadcastable to [..., heads, rows / axis size, columns]: this rank's
            rows and all columns, in the order of the whole sequence.
        size: columns of the whole sequence.
        folded: whether the slices are.

    Returns:
        [..., heads, rows / axis size, width].
    """
    if dropout_p:
        raise GalvatronError("ring attention has no dropout; set the attention dropout to 0")
    if query.size(-3) % key.size(-3) or (not enable_gqa and key.size(-3) not in (1, query.size(-3))):
        raise GalvatronError(f"{query.size(-3)} query heads cannot share {key.size(-3)} key heads")
    scale = 1 / math.sqrt(query.size(-1)) if scale is None else scale
    groups = query.size(-3) // key.size(-3)
    # Query heads that share a key head lie beside each other: [..., key heads, groups, rows, width].
    grouped = query.unflatten(-3, (key.size(-3), groups))
    mask = _grouped_mask(attn_mask, key.size(-3), groups)
    blocks = partial(_blocks, axis, 2 if folded else 1, is_causal)
    out: Tensor = _Ring.apply(grouped, key.unsqueeze(-3), value.unsqueeze(-3), mask, blocks, scale, axis)  # type: ignore[assignment]  # apply is untyped in torch
    return out.flatten(-4, -3)


def _grouped_mask(mask: Tensor | None, heads: int, groups: int) -> Tensor | None:
    if mask is None or mask.dim() < 3:
        return mask
    return mask.unflatten(-3, (heads, groups)) if mask.size(-3) > 1 else mask.unsqueeze(-3)


@dataclass(frozen=True)
class _Block:
    """A part of the scores: rows of the local queries, columns of the slice at hand, and their columns in the whole."""

    rows: slice
    columns: slice
    whole_columns: slice
    triangular: bool


Blocks = Callable[[int, int, int], Iterator[_Block]]
"""The blocks against the keys of a rank, given the numbers of local rows and columns."""


def _blocks(axis: Axis, pieces: int, causal: bool, owner: int, rows: int, columns: int) -> Iterator[_Block]:
    """The blocks of this rank's queries against the keys of rank `owner` that are not wholly masked."""
    last = 2 * axis.size - 1
    height, width = rows // pieces, columns // pieces
    own = (axis.index, last - axis.index)[:pieces]
    theirs = (owner, last - owner)[:pieces]
    for i, row in enumerate(own):
        for j, column in enumerate(theirs):
            if causal and column > row:
                continue
            yield _Block(
                slice(i * height, (i + 1) * height),
                slice(j * width, (j + 1) * width),
                slice(column * width, (column + 1) * width),
                causal and column == row,
            )


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, block: _Block, scale: float) -> Tensor:
    scores = wide(torch.matmul(query[..., block.rows, :] * scale, key[..., block.columns, :].transpose(-2, -1)))
    if mask is not None:
        part = mask[..., block.whole_columns]
        part = part[..., block.rows, :] if part.size(-2) > 1 else part
        scores = scores.masked_fill(~part, -math.inf) if part.dtype == torch.bool else scores + part
    if block.triangular:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return scores


class _Travel:
    """Sends a tensor to the next rank of the ring and receives the previous rank's, while the rank computes."""

    def __init__(self, axis: Axis, sent: Tensor) -> None:
        self._received = torch.empty_like(sent)
        after, before = (axis.index + 1) % axis.size, (axis.index - 1) % axis.size
        self._handle = comm.exchange(sent, self._received, axis.group, after, before)

    def wait(self) -> Tensor:
        self._handle.wait()
        return self._received


def _packed(*tensors: Tensor) -> Tensor:
    """The tensors as one flat tensor, so that they travel as one message."""
    return torch.cat([t.reshape(-1) for t in tensors])


def _unpacked(flat: Tensor, *like: Tensor) -> tuple[Tensor, ...]:
    """The parts of a flat tensor, as views, with the shapes of the tensors that were packed."""
    parts = flat.split([t.numel() for t in like])
    return tuple(part.view(t.shape) for part, t in zip(parts, like, strict=True))


class _Ring(torch.autograd.Function):
    """[..., key heads, groups, rows, width] queries against [..., key heads, 1, columns, width] keys and values."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        blocks: Blocks,
        scale: float,
        axis: Axis,
    ) -> Tensor:
        out = wide(query.new_zeros((*query.shape[:-1], value.size(-1))))
        logsum = out.new_full(query.shape[:-1], -math.inf)
        held = _packed(key, value)
        for turn in range(axis.size):
            travel = _Travel(axis, held) if turn + 1 < axis.size else None
            keys, values = _unpacked(held, key, value)
            for block in blocks((axis.index - turn) % axis.size, query.size(-2), key.size(-2)):
                scores = _scores(query, keys, mask, block, scale)
                _merge(out[..., block.rows, :], logsum[..., block.rows], scores, values[..., block.columns, :])
            held = travel.wait() if travel is not None else held
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, mask, out, logsum)
        ctx.blocks, ctx.scale, ctx.axis, ctx.place = blocks, scale, axis, now.place
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, out, logsum = ctx.saved_tensors
        (gradient,) = gradients
        axis, scale = ctx.axis, ctx.scale
        now.place = ctx.place
        weight = (wide(gradient) * out).sum(-1, keepdim=True)
        query_gradient = torch.zeros_like(wide(query))
        mask_gradient = torch.zeros_like(mask) if mask is not None and ctx.needs_input_grad[3] else None
        held = _packed(key, value, torch.zeros_like(key), torch.zeros_like(value))
        for turn in range(axis.size):
            keys, values, key_gradient, value_gradient = _unpacked(held, key, value, key, value)
            for block in ctx.blocks((axis.index - turn) % axis.size, query.size(-2), key.size(-2)):
                rows, columns = block.rows, block.columns
                softmax = _softmax(_scores(query, keys, mask, block, scale), logsum[..., rows])
                from_above = gradient[..., rows, :]
                probabilities = softmax.to(query.dtype)
                value_gradient[..., columns, :] += _summed(probabilities.transpose(-2, -1) @ from_above, values)
                scores = softmax * (from_above @ values[..., columns, :].transpose(-2, -1) - weight[..., rows, :])
                if mask_gradient is not None:
                    part = mask_gradient[..., rows, :] if mask_gradient.size(-2) > 1 else mask_gradient
                    part[..., block.whole_columns] += scores.sum_to_size(part[..., block.whole_columns].shape)
                scores = scores.to(query.dtype)
                query_gradient[..., rows, :] += scores @ keys[..., columns, :] * scale
                key_gradient[..., columns, :] += _summed(scores.transpose(-2, -1) @ query[..., rows, :] * scale, keys)
            # After the last turn the gradient of each slice, no longer the slice, is one rank short of home.
            last = turn + 1 == axis.size
            held = _Travel(axis, held[held.numel() // 2 :] if last else held).wait()
        now.place = None
        return query_gradient.to(query.dtype), *_unpacked(held, key, value), mask_gradient, None, None, None


def _merge(out: Tensor, logsum: Tensor, scores: Tensor, values: Tensor) -> None:
    """Adds a block of columns to a running softmax average, in place."""
    block_logsum = scores.logsumexp(-1)
    total = torch.logaddexp(logsum, block_logsum)
    # A row that has seen no column yet keeps weight zero.
    shift = total.masked_fill(total == -math.inf, 0.0).unsqueeze(-1)
    out.mul_((logsum.unsqueeze(-1) - shift).exp()).add_((scores - shift).exp().to(values.dtype) @ values)
    logsum.copy_(total)


def _softmax(scores: Tensor, logsum: Tensor) -> Tensor:
    return (scores - logsum.masked_fill(logsum == -math.inf, 0.0).unsqueeze(-1)).exp()


def _summed(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of keys or values, summed over the query heads that share them."""
    return gradient.sum(-3, keepdim=True) if gradient.size(-3) != like.size(-3) else gradient
