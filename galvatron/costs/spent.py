"""What the computations of a layer, and of a stage, spend their seconds on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from galvatron.costs.model import LayerCost


@dataclass(frozen=True)
class Spent:
    """What a computation of a stage spends its seconds on, by the kinds of a `StageReport`. Those that are not hidden
    add up to what it takes, with the message that it waits for."""

    transfer_s: float = 0.0
    compute_s: float = 0.0
    host_s: float = 0.0
    awaited_s: float = 0.0
    gather_s: float = 0.0
    reduce_s: float = 0.0
    gather_hidden_s: float = 0.0
    reduce_hidden_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Of those that are not hidden."""
        return sum(getattr(self, f.name) for f in fields(self) if not f.name.endswith("_hidden_s"))

    @staticmethod
    def together(parts: Iterable[Spent]) -> Spent:
        """What several spend one after the other."""
        parts = tuple(parts)
        return Spent(**{f.name: float(sum(getattr(part, f.name) for part in parts)) for f in fields(Spent)})


def forward(cost: LayerCost, conversion_s: float = 0.0) -> Spent:
    """Of the forward of a layer, after a conversion of its inputs."""
    exposed_s = cost.exposed_s[0]
    return Spent(
        compute_s=cost.forward_s,
        host_s=cost.forward_pass_s - cost.forward_s - cost.forward_communication_s,
        awaited_s=cost.forward_communication_s + conversion_s,
        gather_s=exposed_s,
        gather_hidden_s=cost.forward_gather_s - exposed_s,
    )


def backward_input(cost: LayerCost, conversion_s: float = 0.0) -> Spent:
    """Of its backward but for `weight_s`, the same."""
    exposed_s, beside_s = cost.exposed_s[1], cost.backward_gather_s + cost.reduce_s
    share = cost.reduce_s / beside_s if beside_s else 0.0
    return Spent(
        compute_s=cost.backward_s - cost.weight_s,
        host_s=cost.backward_pass_s - cost.backward_s - cost.backward_communication_s,
        awaited_s=cost.backward_communication_s + conversion_s,
        gather_s=exposed_s * (1 - share),
        reduce_s=exposed_s * share,
        gather_hidden_s=cost.backward_gather_s - exposed_s * (1 - share),
        reduce_hidden_s=cost.reduce_s - exposed_s * share,
    )
