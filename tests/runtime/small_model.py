"""A small causal language model, and its stages written by hand for dp x tp x pp as generated code would be.

It has what the runtime must get right: a head tied to the embedding (on different stages with a pipeline), a value of
the first stage that the last layers add again (a skip across the border), a boolean and an integer value that cross the
border without a gradient, a fused projection sharded by factors, and parameters whose gradient is a partial sum on tp.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galvatron import runtime as rt
from galvatron.schedules import Schedule

VOCABULARY, WIDTH, HEADS, LENGTH, BLOCKS = 23, 16, 4, 6, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor, skip: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.down(F.gelu(self.up(x))) + skip


class Model(nn.Module):
    """Returns the mean loss over labels that are not -100."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.full((WIDTH,), 0.5))
        self.pooler = nn.Linear(WIDTH, 2)  # in the model, not in the program

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = skip = self.embedding(ids)
        mask = causal_mask(ids)
        for block in self.blocks:
            x = block(x, skip, mask)
        logits = self.head(x * self.scale)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def causal_mask(ids: Tensor) -> Tensor:
    """(batch, 1, sequence, sequence): attend to earlier tokens other than 0, and to oneself."""
    earlier = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    itself = torch.eye(LENGTH, dtype=torch.bool)
    return (earlier & (ids != 0)[:, None, None, :]) | itself


def batch(samples: int, seed: int = 0) -> dict[str, Tensor]:
    """Ragged: later samples have fewer labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (samples, LENGTH), generator=generator)
    labels = torch.randint(VOCABULARY, (samples, LENGTH), generator=generator)
    for row in range(samples):
        labels[row, : row % LENGTH] = -100
    return {"ids": ids, "labels": labels}


def block_function(
    tp: rt.Axis | None, x, skip, mask, norm, norm_bias, qkv, out, out_bias, up, up_bias, down, down_bias
) -> Tensor:
    shared = rt.copy(x, tp) if tp else x
    normed = F.layer_norm(shared, (WIDTH,), norm, norm_bias)
    q, k, v = (t.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for t in F.linear(normed, qkv).chunk(3, -1))
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    projected = F.linear(attended, out)
    x = x + (rt.all_reduce(projected, tp, grad="identity") if tp else projected) + out_bias
    inner = F.gelu(F.linear(rt.copy(x, tp) if tp else x, up, up_bias))
    lowered = F.linear(inner, down)
    return x + (rt.all_reduce(lowered, tp, grad="identity") if tp else lowered) + down_bias + skip


def head_function(x, labels, count, scale, weight):
    logits = F.linear(x * scale, weight)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum") / count


def make_mesh(world: rt.World, pp: int, dp: int, tp: int, schedule: str = "1f1b") -> rt.Mesh:
    """The mesh of this rank for a schedule, which says how many stages there are."""
    holders = Schedule.parse(schedule).holders(pp)
    axes = [(size, stride) for size, stride in ((dp, tp), (tp, 1)) if size > 1]
    return rt.build_mesh(world, [axes] * len(holders), holders)


def make_stages(
    mesh: rt.Mesh, dp: int, tp: int, dtype: torch.dtype = torch.float64, before: Callable[[int], None] | None = None
) -> list[rt.Stage]:
    """The hand-written stages of this rank. `before(stage index)` is called at each forward, to make it fail."""
    return [_make_stage(mesh, index, dp, tp, dtype, before) for index in mesh.stages]


def _make_stage(
    mesh: rt.Mesh, index: int, dp: int, tp: int, dtype: torch.dtype, before: Callable[[int], None] | None
) -> rt.Stage:
    count = len(mesh.holders)
    per_stage = BLOCKS // count
    axis_dp = mesh.axis(dp, stride=tp) if dp > 1 else None
    axis_tp = mesh.axis(tp, stride=1) if tp > 1 else None
    summed: dict = {axis_dp: rt.Summed()} if axis_dp else {}
    batch_split: dict = {axis_dp: rt.Sharded(0)} if axis_dp else {}

    def on_tp(placement) -> dict:
        return {**summed, axis_tp: placement} if axis_tp else summed

    class HandWritten(rt.Stage):
        def __init__(self) -> None:
            super().__init__(mesh)
            self._declare_tied()
            for number in range(index * per_stage, (index + 1) * per_stage):
                self._declare_block(f"blocks.{number}", f"block_{number}")
            if self.index == 0:
                self.batch("ids", "ids", batch_split)
            else:
                for name in ("x", "skip"):
                    self.receives(name, lambda n: (n // dp, LENGTH, WIDTH), dtype)
                self.receives("mask", lambda n: (n // dp, 1, LENGTH, LENGTH), torch.bool)
                self.receives("numbers", lambda n: (n // dp, LENGTH), torch.int64)
            if self.index == self.count - 1:
                self.state("scale", (WIDTH,), dtype, {}, kind="buffer")
                self.layer("head", head_function, state=("scale", "embedding.weight"))
                self.batch("labels", "labels", batch_split)
                self.batch("labels", "all_labels", {}, whole=True)
                self.loss(sum_over=(axis_dp,) if axis_dp else ())
            else:
                for name in ("x", "skip"):
                    self.sends(name, lambda n: (n // dp, LENGTH, WIDTH), dtype)
                self.sends("mask", lambda n: (n // dp, 1, LENGTH, LENGTH), torch.bool)
                self.sends("numbers", lambda n: (n // dp, LENGTH), torch.int64)

        def _declare_tied(self) -> None:
            if self.index in (0, self.count - 1):
                self.state("embedding.weight", (VOCABULARY, WIDTH), dtype, summed)

        def _declare_block(self, path: str, name: str) -> None:
            state = {
                "norm.weight": ((WIDTH,), on_tp(rt.Summed())),
                "norm.bias": ((WIDTH,), on_tp(rt.Summed())),
                "qkv.weight": ((3 * WIDTH, WIDTH), on_tp(rt.Sharded(0, outer=3))),
                "out.weight": ((WIDTH, WIDTH), on_tp(rt.Sharded(1))),
                "out.bias": ((WIDTH,), summed),
                "up.weight": ((4 * WIDTH, WIDTH), on_tp(rt.Sharded(0))),
                "up.bias": ((4 * WIDTH,), on_tp(rt.Sharded(0))),
                "down.weight": ((WIDTH, 4 * WIDTH), on_tp(rt.Sharded(1))),
                "down.bias": ((WIDTH,), summed),
            }
            for suffix, (shape, placements) in state.items():
                self.state(f"{path}.{suffix}", shape, dtype, placements)
            self.layer(name, partial(block_function, axis_tp), state=[f"{path}.{suffix}" for suffix in state])

        def step(self, all_labels: Tensor | None = None):
            return {} if all_labels is None else {"count": (all_labels != -100).sum()}

        def forward(self, *received: Tensor, ids: Any = None, labels: Any = None, count: Any = None):
            if before is not None:
                before(self.index)
            if self.index == 0:
                x = skip = F.embedding(ids, self.table("embedding.weight")["embedding.weight"])
                mask, numbers = causal_mask(ids), ids
            else:
                x, skip, mask, numbers = received
                assert torch.equal(mask, causal_mask(numbers))
            for number in range(self.index * per_stage, (self.index + 1) * per_stage):
                x = self.layers[f"block_{number}"](x, skip, mask)
            if self.index == self.count - 1:
                return self.layers["head"](x, labels, count)
            return x.transpose(0, 1).contiguous().transpose(0, 1), skip, mask, numbers

    HandWritten.index, HandWritten.count = index, count
    return HandWritten()
