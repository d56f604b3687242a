"""The cost model that plans are judged by: what one layer costs under one strategy, and what lies between two layers.

`CostModel` is the interface the search and `estimate` see. `galvatron.costs.sharded` implements it by walking
the sharded graphs; tests use tables.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from galvatron.costs.memory import Memory
from galvatron.costs.timeline import MicroBatchTimes
from galvatron.ir.plan import Ties
from galvatron.ir.strategy import Strategy


@dataclass(frozen=True)
class Repeated:
    """A parameter that an earlier layer holds too: what this layer does not pay when both are on one device.

    That is `backward_communication_s` per micro-batch, since the parameter is whole until both backwards are done. On
    different pipeline ranks both pay, and `across_s` per step for the sum of their gradients on top.
    """

    layer: int
    backward_communication_s: float
    sync_s: float
    update_s: float
    across_s: float
    state: Memory = Memory()
    late_bytes: float = 0.0
    update_bytes: float = 0.0


@dataclass(frozen=True)
class LayerCost:
    """One layer under one strategy, on each device.

    Per micro-batch: seconds of compute and of collectives, forward and backward, those of its parameters included;
    `weight_s`, the part of `backward_s` that no other layer waits for: products that are gradients of weights;
    `saved_bytes`, activations kept from forward to backward; `extra`, the memory in use above that at the worst moment
    while the layer runs. Per step: `sync_s` of gradient synchronisation, `update_s` of the optimizer and, of the last
    layer, `epilogue_s` of the end of the loss that runs on all micro-batches at once; `update_bytes`, what the update
    takes beside all state. Always: `state` of parameters, gradients, optimizer state and buffers, of which `late_bytes`
    are gradients that are there only from the backward of the first micro-batch on.
    """

    forward_s: float
    backward_s: float
    weight_s: float = 0.0
    forward_communication_s: float = 0.0
    backward_communication_s: float = 0.0
    saved_bytes: float = 0.0
    extra: Memory = Memory()
    state: Memory = Memory()
    late_bytes: float = 0.0
    update_bytes: float = 0.0
    sync_s: float = 0.0
    update_s: float = 0.0
    epilogue_s: float = 0.0
    repeated: tuple[Repeated, ...] = ()

    def on_stage(self, begin: int) -> LayerCost:
        """The same with its repeated parameters settled, for a stage that begins at layer `begin`."""
        return self.beside(lambda layer: layer >= begin)

    def beside(self, here: Callable[[int], bool]) -> LayerCost:
        """The same with its repeated parameters settled: `here` says which layers before it are on the same device."""
        if not self.repeated:
            return self
        together = [parameter for parameter in self.repeated if here(parameter.layer)]
        apart = [parameter for parameter in self.repeated if not here(parameter.layer)]
        return replace(
            self,
            backward_communication_s=self.backward_communication_s - sum(p.backward_communication_s for p in together),
            sync_s=self.sync_s - sum(p.sync_s for p in together) + sum(p.across_s for p in apart),
            update_s=self.update_s - sum(p.update_s for p in together),
            state=self.state - sum((p.state for p in together), Memory()),
            late_bytes=self.late_bytes - sum(p.late_bytes for p in together),
            update_bytes=self.update_bytes - sum(p.update_bytes for p in together),
            repeated=(),
        )

    @property
    def state_bytes(self) -> float:
        """Bytes of state."""
        return self.state.total

    @property
    def extra_bytes(self) -> float:
        """Bytes in use beside state and what is kept for the backward."""
        return self.extra.total

    @property
    def compute_s(self) -> float:
        """Seconds of computing one micro-batch, forward and backward."""
        return self.forward_s + self.backward_s

    @property
    def communication_s(self) -> float:
        """Seconds of the collectives of one micro-batch, forward and backward."""
        return self.forward_communication_s + self.backward_communication_s

    @property
    def micro_batch_s(self) -> float:
        """Seconds of one micro-batch, forward and backward, collectives included."""
        return self.compute_s + self.communication_s

    @property
    def times(self) -> MicroBatchTimes:
        """The seconds of one micro-batch by what is computed."""
        forward_s = self.forward_s + self.forward_communication_s
        return MicroBatchTimes(forward_s, self.micro_batch_s - forward_s - self.weight_s, self.weight_s)

    @property
    def step_s(self) -> float:
        """Seconds that are spent once per step."""
        return self.sync_s + self.update_s + self.epilogue_s


class CostModel(Protocol):
    """Costs of the layers of one program on one cluster.

    Layers are counted as in a plan. `micro_batch` is the number of samples of one micro-batch of the whole stage, of
    which a data-parallel shard has its part.

    What a layer costs depends on its own strategy, and on whether parameters that it shares with others are kept whole
    or in parts, which `ties` says (`galvatron.ir.ties`).
    """

    def tied(self) -> Mapping[str, tuple[int, ...]]:
        """The layers of each tie, by its name."""
        ...

    def kinds(self) -> tuple[Hashable, ...]:
        """One key per layer; layers with equal keys cost the same, and so does entering them."""
        ...

    def layer(self, index: int, strategy: Strategy, micro_batch: int, ties: Ties) -> LayerCost:
        """What a layer costs."""
        ...

    def conversion_s(self, index: int, before: Strategy, after: Strategy, micro_batch: int) -> float:
        """Seconds per micro-batch, forward and backward, of bringing every value that is alive when layer `index`
        begins from the layout of one strategy to that of another; 0 for equal strategies."""
        ...

    def boundary_bytes(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        """Bytes per device of the values alive between layers `index - 1` and `index`."""
        ...

    def transfer_s(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        """Seconds to send those values to the next stage and their gradients back."""
        ...

    def shared_bytes(self, strategy: Strategy, micro_batch: int, ties: Ties) -> float:
        """Bytes per device and micro-batch of values without a gradient that the layers of a stage keep together."""
        ...
