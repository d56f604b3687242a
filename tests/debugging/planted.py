"""A small model, and passes with a bug each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import galvatron
from galvatron.ir.graph import Op
from galvatron.ir.layout import BROADCAST, REPLICATE
from galvatron.ir.ops import foreign
from galvatron.ir.ops.schemas import ADDED
from galvatron.ir.ops.table import OPERATORS
from galvatron.ir.program import LayerClass, Program
from galvatron.passes.lower.shard import Shard


class Block(nn.Module):
    """A norm that is written out, a gate, and two views; width and length are equal, so that a wrong dim is valid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        h = self.up(h)
        h = self.down(h * torch.sigmoid(h))
        turned = torch.swapaxes(h, 1, 2)
        shifted = torch.cat([turned.narrow(2, 0, 4), turned.narrow(2, 4, 4).tanh()], -1)
        return x + torch.swapaxes(shifted, 1, 2)


class Net(nn.Module):
    def __init__(self, width: int = 8, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, 32)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def net() -> tuple[nn.Module, dict[str, Tensor]]:
    ids = torch.zeros(4, 8, dtype=torch.int64)
    return Net(), {"ids": ids, "labels": ids}


class Centred(nn.Module):
    """An operator of another library between two products, in equal blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.ups = nn.ModuleList(nn.Linear(8, 32) for _ in range(3))
        self.downs = nn.ModuleList(nn.Linear(32, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for up, down in zip(self.ups, self.downs, strict=True):
            x = x + down(torch.ops.galvatron_planted.centred(up(x)))
        return x.square().sum()


@contextmanager
def centred() -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
    """A model with an operator that takes a mean along its last dimension, registered as if that could be cut."""
    library = torch.library.Library("galvatron_planted", "DEF")
    library.define("centred(Tensor x) -> Tensor")
    library.impl("centred", lambda x: x - x.mean(-1, keepdim=True), "CompositeExplicitAutograd")
    torch.library.register_autograd(
        "galvatron_planted::centred", lambda ctx, g: g - g.mean(-1, keepdim=True), lib=library
    )
    target = "galvatron_planted.centred.default"
    try:
        galvatron.register_rule("galvatron_planted::centred", "b* k -> b* k")
        yield Centred(), {"x": torch.zeros(4, 8)}
    finally:
        library._destroy()
        ADDED.pop(target, None)
        OPERATORS.pop("galvatron_planted::centred", None)
        foreign.RULES.pop(target, None)


@dataclass(frozen=True)
class _WrongShard(Shard):
    """`shard`, and then something done to one class of which it can be done."""

    def run(self, program: Program) -> Program:
        sharded = super().run(program)
        for cls in sharded.classes:
            if cls.base and (wrong := self.broken(cls)) is not None:
                classes = tuple(wrong if one is cls else one for one in sharded.classes)
                return replace(sharded, classes=classes)
        return sharded

    @staticmethod
    def broken(sharded: LayerClass) -> LayerClass | None:
        raise NotImplementedError


def _edited(cls: LayerClass, edit: Callable[[Op], Op | None]) -> LayerClass | None:
    """The class with the first op edited that can be."""
    for place, op in enumerate(cls.graph.ops):
        if (wrong := edit(op)) is not None:
            ops = (*cls.graph.ops[:place], wrong, *cls.graph.ops[place + 1 :])
            return replace(cls, graph=replace(cls.graph, ops=ops))
    return None


@dataclass(frozen=True)
class WithoutReduction(_WrongShard):
    """Leaves a partial sum as it is, and calls it whole."""

    name = "shard"

    @staticmethod
    def broken(sharded: LayerClass) -> LayerClass | None:
        def edit(op: Op) -> Op | None:
            if op.target != "comm.all_reduce":
                return None
            return replace(op, target="comm.copy", kwargs=op.kwargs[:1])

        return _edited(sharded, edit)


@dataclass(frozen=True)
class SmallGroup(_WrongShard):
    """Says of a parameter that its gradient is the same on the ranks that have other samples."""

    name = "shard"

    @staticmethod
    def broken(sharded: LayerClass) -> LayerClass | None:
        for place, value in enumerate(sharded.graph.state):
            if value.layout and value.layout[0] == BROADCAST:
                wrong = replace(value, layout=(REPLICATE, *value.layout[1:]))
                state = (*sharded.graph.state[:place], wrong, *sharded.graph.state[place + 1 :])
                return replace(sharded, graph=replace(sharded.graph, state=state))
        return None
