"""What there is to know of a captured model, as values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FoundClass:
    """Layers that share one class, in order.

    `kind` is `layer` for those that a plan gives a strategy to; `preamble`, `step`, `epilogue` and `closing` layers
    come with them. `parameters` counts the elements of one layer's parameters. `modules` has, for each layer, the
    modules or parameters of the model that are its own.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    parameters: int
    modules: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Tie:
    """Parameters that several layers share: their names, and the layers'."""

    parameters: tuple[str, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Draw:
    """Ops of one class of layers that draw random numbers, by the line of the model that they come from."""

    cls: str
    op: str
    count: int
    line: str


@dataclass(frozen=True)
class Samples:
    """What holds samples, and whether they are computed independently of each other.

    `inputs` have one row per sample, `others` are the same for all. `sizes` are the sizes of a batch that the program
    holds for, `lengths` the other sizes that may change from step to step, each with those it holds for. `epilogue`
    names the line from which on the loss needs the whole batch, which runs once per step; `coupled` the line that
    couples samples before that, so that there is one micro-batch only. Both are empty where nothing does.
    """

    inputs: tuple[str, ...]
    others: tuple[str, ...]
    sizes: str
    lengths: tuple[str, ...]
    epilogue: str
    coupled: str


@dataclass(frozen=True)
class LeftWhole:
    """Ops of one class that every rank of an axis computes whole, and why; `share` is their part of the class's time on
    one device."""

    role: str
    cls: str
    op: str
    why: str
    count: int
    share: float


@dataclass(frozen=True)
class RefusedRole:
    """A role that a class of layers cannot have on so many ranks."""

    role: str
    cls: str
    why: str


@dataclass(frozen=True)
class FoundPlan:
    """One strategy for all layers, as a shorthand that `compile` takes, and why it is refused; empty if it is not."""

    plan: str
    refused: str = ""


@dataclass(frozen=True)
class Run:
    """What the program computes of the example batch, beside what the model itself does.

    Attributes:
        skipped: why nothing was compared; empty if it was.
        loss, eager_loss: of the program, and of the model.
        compared: how many tensors were: the loss, each gradient, and each piece of state that forward writes.
        difference: of all, the relative one that is the least like rounding, and `where` it is; infinite where only one
            of the two is finite.
        tolerance: up to which it counts as rounding.
    """

    skipped: str = ""
    loss: float = 0.0
    eager_loss: float = 0.0
    compared: int = 0
    difference: float = 0.0
    where: str = ""
    tolerance: float = 0.0

    @property
    def differs(self) -> bool:
        return self.difference > self.tolerance


@dataclass(frozen=True)
class Found:
    """What there is to know of a captured model.

    Attributes:
        roles: every role on `degree` ranks, under which `whole` and `refused_roles` are said.
        plans: for so many `devices` and a batch of `global_batch_size` samples.
    """

    parameters: int
    classes: tuple[FoundClass, ...]
    samples: Samples
    draws: tuple[Draw, ...]
    ties: tuple[Tie, ...]
    degree: int
    roles: tuple[str, ...]
    whole: tuple[LeftWhole, ...]
    refused_roles: tuple[RefusedRole, ...]
    devices: int
    global_batch_size: int
    plans: tuple[FoundPlan, ...]
