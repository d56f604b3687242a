"""The cost model that plans are judged by: what one layer costs under one strategy, and what lies between two layers.

`CostModel` is the interface the search and `estimate` see. `galvatron.costs.sharded` implements it by walking
the sharded graphs; tests use tables.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from galvatron.costs.columns import stacked
from galvatron.costs.memory import Memory
from galvatron.costs.timeline import MicroBatchTimes
from galvatron.ir.arrays import larger
from galvatron.ir.contention import Contention
from galvatron.ir.plan import Ties
from galvatron.ir.strategy import Strategy
from galvatron.ir.zero import BUCKET_BYTES


@dataclass(frozen=True)
class Repeated:
    """A parameter that an earlier layer holds too: what this layer does not pay when both are on one device.

    That is `backward_gather_s` and `reduce_s` per micro-batch, since the parameter is whole until both backwards are
    done, and per step the rest. On different pipeline ranks both pay, and `across_s` per step for the sum of their
    gradients on top.
    """

    layer: int
    backward_gather_s: float
    reduce_s: float
    sync_s: float
    publish_s: float
    bucket_bytes: float
    update_s: float
    across_s: float
    state: Memory = Memory()
    late_bytes: float = 0.0
    update_bytes: float = 0.0

    @staticmethod
    def of(many: Sequence[Repeated]) -> Repeated:
        """Many of one layer as one of arrays."""
        return replace(stacked(many), layer=many[0].layer)


@dataclass(frozen=True)
class LayerCost:
    """One layer under one strategy, on each device.

    Per micro-batch: seconds of compute, and of collectives that are waited for where they begin, forward and backward;
    `weight_s`, the part of `backward_s` that no other layer waits for: products that are gradients of weights;
    `forward_host_s` and `backward_host_s`, what the process takes to launch all that, so that a pass takes no less;
    `saved_bytes`, activations kept from forward to backward; `extra`, the memory in use above that at the worst moment
    while the layer runs. Beside that (`galvatron.ir.zero`) run per micro-batch `forward_gather_s` and
    `backward_gather_s` of values and `reduce_s` of sums of gradients, and per step `sync_s` of sums, beside the last
    backward, and `publish_s` of gathers of new values, beside the next forward; `contention` says what they cost each
    other.

    Per step: `start_s`, what the first sum takes longer than as a part of a bucket; `across_s` of sums over stages;
    `update_s` of the optimizer and of what follows for state from sums over the batch, and `update_bytes` that the
    optimizer takes beside all state; of the last layer, `epilogue_s` of the end of the loss that runs on all
    micro-batches at once. Always: `state` of parameters, gradients, optimizer state and buffers, of which `late_bytes`
    are gradients that are there only from the first backward on; `bucket_bytes`, those of values whose gradients are
    summed in buckets.

    What runs beside a layer is taken to begin with it, and to be waited for by the end of it. In a run of equal layers
    each is as long as what really is beside it, which is of a neighbour, and the layers at both ends of a stage, that
    compute little, show what nothing hides; a layer with time to spare does not hide what another one has too much of.

    Each figure may be an array: of many layers, or of many strategies of one (`LayerCost.of`).
    """

    forward_s: float
    backward_s: float
    weight_s: float = 0.0
    forward_communication_s: float = 0.0
    backward_communication_s: float = 0.0
    forward_host_s: float = 0.0
    backward_host_s: float = 0.0
    forward_gather_s: float = 0.0
    backward_gather_s: float = 0.0
    reduce_s: float = 0.0
    saved_bytes: float = 0.0
    extra: Memory = Memory()
    state: Memory = Memory()
    late_bytes: float = 0.0
    update_bytes: float = 0.0
    bucket_bytes: float = 0.0
    sync_s: float = 0.0
    publish_s: float = 0.0
    start_s: float = 0.0
    across_s: float = 0.0
    update_s: float = 0.0
    epilogue_s: float = 0.0
    contention: Contention = Contention()
    repeated: tuple[Repeated, ...] = ()

    @staticmethod
    def of(costs: Sequence[LayerCost]) -> LayerCost:
        """Many as one of arrays; all repeat parameters of the same layers."""
        repeated = zip(*(cost.repeated for cost in costs), strict=True)
        return replace(stacked(costs), repeated=tuple(map(Repeated.of, repeated)))

    def on_stage(self, begin: int) -> LayerCost:
        """The same with its repeated parameters settled, for a stage that begins at layer `begin`."""
        return self.beside(lambda layer: layer >= begin)

    def beside(self, here: Callable[[int], bool]) -> LayerCost:
        """The same with its repeated parameters settled: `here` says which layers before it are on the same device."""
        if not self.repeated:
            return self
        together = [parameter for parameter in self.repeated if here(parameter.layer)]
        apart = [parameter for parameter in self.repeated if not here(parameter.layer)]
        taken = {name: larger(0.0, getattr(self, name) - sum(getattr(p, name) for p in together)) for name in _TAKEN}
        across_s = self.across_s + sum(p.across_s for p in apart)
        state = self.state - sum((p.state for p in together), Memory())
        return replace(self, **taken, state=state, across_s=across_s, repeated=())

    def turned(self, share: float) -> LayerCost:
        """The same as the last layer of all, where in so large a share of the micro-batches the values that the forward
        has gathered are still there for the backward."""

        def kept(cost: Any) -> Any:
            return replace(cost, backward_gather_s=(1 - share) * cost.backward_gather_s)

        return replace(kept(self), repeated=tuple(map(kept, self.repeated)))

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
    def forward_pass_s(self) -> float:
        """Seconds of a forward with nothing beside it."""
        return larger(self.forward_s + self.forward_communication_s, self.forward_host_s)

    @property
    def backward_pass_s(self) -> float:
        """Seconds of a backward with nothing beside it."""
        return larger(self.backward_s + self.backward_communication_s, self.backward_host_s)

    @property
    def host_s(self) -> float:
        """Seconds per micro-batch in which the device waits for the process."""
        awaited_s = self.forward_communication_s + self.backward_communication_s
        return self.forward_pass_s + self.backward_pass_s - self.compute_s - awaited_s

    @property
    def beside_s(self) -> float:
        """Seconds by which gathers and sums lengthen a micro-batch, forward and backward."""
        return self.exposed_s[0] + self.exposed_s[1]

    @property
    def exposed_s(self) -> tuple[float, float]:
        """Seconds by which gathers and sums lengthen a forward and a backward."""
        exposed_s = self.contention.exposed_s
        gathered_s = self.backward_gather_s + self.reduce_s
        return exposed_s(self.forward_pass_s, self.forward_gather_s), exposed_s(self.backward_pass_s, gathered_s)

    @property
    def communication_s(self) -> float:
        """Seconds of a micro-batch that are spent on collectives, forward and backward."""
        return self.forward_communication_s + self.backward_communication_s + self.beside_s

    @property
    def micro_batch_s(self) -> float:
        """Seconds of one micro-batch, forward and backward, with all that is waited for."""
        return self.times.micro_batch_s

    @property
    def times(self) -> MicroBatchTimes:
        """The seconds of one micro-batch by what is computed."""
        forward_s, backward_s = self.exposed_s
        backward_s += self.backward_pass_s
        return MicroBatchTimes(forward_s + self.forward_pass_s, backward_s - self.weight_s, self.weight_s)

    def exposed(self, front: Front) -> Exposed:
        """What sums and new values lengthen a step by, where so much of the first bucket is still to come.

        The first bucket of a stage is the last one to be summed: its layers' backward is over before it begins, and its
        new values are waited for by the first of them. Later ones run beside the layers that they are of, or others.
        """
        within = front.share(self.bucket_bytes)

        def lengthens(alone_s: float, pass_s: float, beside_s: float) -> float:
            together_s = self.contention.together_s
            return within * alone_s + (1 - within) * (
                together_s(pass_s, beside_s + alone_s) - together_s(pass_s, beside_s)
            )

        sync_s = lengthens(self.sync_s, self.backward_pass_s, self.backward_gather_s + self.reduce_s)
        return Exposed(
            sync_s=sync_s + front.begins(self.bucket_bytes) * self.start_s,
            publish_s=lengthens(self.publish_s, self.forward_pass_s, self.forward_gather_s),
        )

    @property
    def once_s(self) -> float:
        """Seconds that are spent once per step, beside sums and new values."""
        return self.across_s + self.update_s + self.epilogue_s


_TAKEN = (
    "backward_gather_s", "reduce_s", "sync_s", "publish_s", "bucket_bytes", "update_s", "late_bytes", "update_bytes",
)  # fmt: skip
"""Of a layer's cost, what a repeated parameter takes off."""


@dataclass(frozen=True)
class Exposed:
    """Seconds per step that nothing hides, of sums and of gathers of new values."""

    sync_s: float
    publish_s: float

    @property
    def seconds(self) -> float:
        """Both."""
        return self.sync_s + self.publish_s


@dataclass(frozen=True)
class Front:
    """How far a stage is from the end of its first bucket, when its layers are gone through in their order.

    `missing_bytes` is a number, or an array of many stages'.
    """

    missing_bytes: Any = float(BUCKET_BYTES)

    def share(self, added_bytes: float) -> Any:
        """What of a layer's bytes is in the first bucket."""
        some = np.not_equal(added_bytes, 0)
        return np.where(some, np.minimum(1.0, self.missing_bytes / np.where(some, added_bytes, 1.0)), 0.0)

    def begins(self, added_bytes: float) -> Any:
        """Whether a layer is the first one with any."""
        return np.multiply(self.missing_bytes == BUCKET_BYTES, np.not_equal(added_bytes, 0))

    def after(self, added_bytes: float) -> Front:
        """Behind such a layer."""
        return Front(np.maximum(0.0, self.missing_bytes - added_bytes))


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

    def under_each(self, index: int, strategies: Sequence[Strategy], micro_batch: int, ties: Ties) -> LayerCost:
        """What a layer costs under each of many strategies, as arrays."""
        return LayerCost.of([self.layer(index, strategy, micro_batch, ties) for strategy in strategies])

    def conversion_s(self, index: int, before: Strategy, after: Strategy, micro_batch: int) -> float:
        """Seconds per micro-batch, forward and backward, of bringing every value that is alive when layer `index`
        begins from the layout of one strategy to that of another; 0 for equal strategies."""
        ...

    def conversions_s(
        self, index: int, before: Sequence[Strategy], after: Sequence[Strategy], micro_batch: int
    ) -> np.ndarray:
        """The same from each of some strategies (rows) to each of others."""
        found = [[self.conversion_s(index, a, b, micro_batch) for b in after] for a in before]
        return np.array(found).reshape(len(before), len(after))

    def boundary_bytes(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        """Bytes per device of the values alive between layers `index - 1` and `index`."""
        ...

    def transfer_s(self, index: int, strategy: Strategy, micro_batch: int) -> float:
        """Seconds to send those values to the next stage and their gradients back."""
        ...

    def shared_bytes(self, strategy: Strategy, micro_batch: int, ties: Ties) -> float:
        """Bytes per device and micro-batch of values without a gradient that the layers of a stage keep together."""
        ...
