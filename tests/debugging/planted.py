"""A small model, and passes with a bug each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch import Tensor, nn

import galvatron
from galvatron.ir.graph import Op
from galvatron.ir.layout import BROADCAST, REPLICATE
from galvatron.ir.ops import foreign
from galvatron.ir.ops.schemas import ADDED
from galvatron.ir.ops.table import OPERATORS
from galvatron.ir.program import LayerClass, Program
from galvatron.passes import FRONT_END, PASSES
from galvatron.passes.frontend.fuse import FUSIONS
from galvatron.passes.frontend.normalize import RULES
from galvatron.passes.lower.shard import Shard
from galvatron.passes.pipeline import Pipeline
from galvatron.rewriting import Formula

TO_LAYERS = Pipeline.of(FRONT_END)
SHARDING = Pipeline.parse(
    f"{TO_LAYERS},annotate-costs{{cluster=a100-80g:1x4}},use-plan{{plan=pp1/m1/1f1b/dp2-tp2}},shard,redistribute,"
    "split-stages"
)


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


@dataclass(frozen=True)
class WrongRule:
    """A rule of a pass that makes something else of what it matches.

    Attributes:
        pass_, name: of the pass and the rule.
        code: of the line of the model that it is wrong about.
    """

    pass_: str
    name: str
    rule: Formula
    code: str
    pipeline = TO_LAYERS

    @contextmanager
    def planted(self) -> Iterator[None]:
        with mock.patch.dict(RULES if self.pass_ == "normalize" else FUSIONS, {self.name: self.rule}):
            yield


@dataclass(frozen=True)
class WrongSharding:
    """A pass in the place of `shard` that does something to what that gives.

    Attributes:
        cls: the pass, by name.
        breaks: the rule of the verifier that is broken.
        what: whether a `value` or a `gradient` departs where the verifier is not asked.
    """

    cls: str
    breaks: str
    what: str
    pass_ = "shard"
    pipeline = SHARDING

    @contextmanager
    def planted(self) -> Iterator[None]:
        with mock.patch.dict(PASSES, {"shard": f"{__name__}:{self.cls}"}):
            yield


WRONG_RULES = {
    "a pattern of fuse": WrongRule("fuse", "silu", Formula("x * sigmoid(x)", "gelu(x)"), "h * torch.sigmoid(h)"),
    "an epsilon": WrongRule(
        "fuse",
        "rms-norm",
        Formula("x * rsqrt(mean.dim(x ** 2, dims, True) + eps)", "rms_norm(x, [8], None, 1e-5)"),
        "torch.rsqrt",
    ),
    "a slice": WrongRule(
        "normalize",
        "planted-slice",
        Formula("slice.Tensor(x, dim, 4, 8)", "slice.Tensor(x, dim, 3, 7)"),
        "turned.narrow(2, 4, 4)",
    ),
    "a dim of a view": WrongRule(
        "normalize",
        "planted-view",
        Formula("transpose.int(x, 1, 2)", "permute(x, [0, 1, 2])"),
        "torch.swapaxes(h, 1, 2)",
    ),
}
WRONG_SHARDINGS = {
    "a collective": WrongSharding("WithoutReduction", "collectives", "value"),
    "a group": WrongSharding("SmallGroup", "ops-on-slices", "gradient"),
}
BUGS: dict[str, WrongRule | WrongSharding] = {**WRONG_RULES, **WRONG_SHARDINGS}


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
