"""The values between layers: which are alive there, how a strategy lays them out, and what it takes to move them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import cached_property

from galvatron.costs.columns import firsts
from galvatron.costs.conversions import Conversions
from galvatron.errors import StrategyError
from galvatron.ir.graph import Value
from galvatron.ir.layout import Axis
from galvatron.ir.plan import Ties
from galvatron.ir.program import Layer, LayerClass, Program
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import evaluate
from galvatron.partition import Partitioner

Crossing = tuple[int, str, str, str]
"""A value at a border: its producer by index, which of the outputs of that, the class of its next consumer, and which
input of that."""


class Borders:
    """The borders of the layers of a plan, by the index of the layer behind each.

    What crosses one is the same however shared parameters are kept.

    Args:
        held: what runs with each layer, first itself.
    """

    def __init__(
        self, program: Program, held: Sequence[tuple[Layer, ...]], partitioner: Partitioner, conversions: Conversions
    ) -> None:
        self._program, self._held, self._partitioner = program, held, partitioner
        self._conversions = conversions
        self._ties: Ties = tuple((tie.name, None) for tie in partitioner.ties)
        self._made: dict[Hashable, tuple[int | None, ...]] = {}
        self._read: dict[Hashable, tuple[int | None, ...]] = {}
        self._sent: dict[Hashable, list[tuple[float, bool]]] = {}

    def key(self, index: int) -> Hashable:
        """Equal for borders that the same values cross."""
        return tuple(
            (self._held[producer][0].cls, output, consumer, formal)
            for producer, output, consumer, formal in self._crossing[index]
        )

    def conversion_s(self, index: int, before: Strategy, after: Strategy, micro_batch: int) -> float:
        """Seconds per micro-batch of bringing all values from the layout of one strategy to that of another."""
        border, batch = self._firsts[index], micro_batch / before.sample_shards
        ends = zip(self._places_made(border, before), self._places_read(border, after), strict=True)
        return sum(
            self._conversions.seconds(made, read, batch, differentiable=differentiable)
            for (made, read), differentiable in zip(ends, self._differentiable[border], strict=True)
            if made is not None and read is not None
        )

    def sent(self, index: int, strategy: Strategy, micro_batch: int) -> list[tuple[float, bool]]:
        """Bytes per device of each value, and whether it has a gradient."""
        border = self._firsts[index]
        key = border, strategy.axes, micro_batch
        if key not in self._sent:
            batch = micro_batch // strategy.sample_shards
            values = (self._sent_value(*crossing[:2], strategy) for crossing in self._crossing[border])
            sizes = (float(evaluate(value.type.bytes, batch)) for value in values)
            self._sent[key] = list(zip(sizes, self._differentiable[border], strict=True))
        return self._sent[key]

    def _sent_value(self, producer: int, output: str, strategy: Strategy) -> Value:
        """A result of a layer as a device has it under a strategy: all of it, where the layer cannot have that."""
        made = self._output(producer, output, strategy)
        return self._program.class_of[self._held[producer][0].cls].graph.values[output] if made is None else made[0]

    def _places_made(self, border: int, strategy: Strategy) -> tuple[int | None, ...]:
        """How values lie where layers make them; None where these cannot have the strategy."""
        key = border, strategy.axes
        if (places := self._made.get(key)) is None:
            outputs = (self._output(producer, output, strategy) for producer, output, *_ in self._crossing[border])
            places = self._made[key] = tuple(output and self._conversions.place(*output) for output in outputs)
        return places

    def _places_read(self, border: int, strategy: Strategy) -> tuple[int | None, ...]:
        """How values lie where layers read them; None where these cannot have the strategy."""
        key = border, strategy.axes
        if (places := self._read.get(key)) is None:
            inputs = ((self._sharded(cls, strategy), formal) for *_, cls, formal in self._crossing[border])
            places = self._read[key] = tuple(
                cls and self._conversions.place(cls.graph.values[formal], cls.mesh) for cls, formal in inputs
            )
        return places

    def _output(self, producer: int, output: str, strategy: Strategy) -> tuple[Value, tuple[Axis, ...]] | None:
        """A result of a layer under a strategy, with the mesh it is on; None where the layer cannot have that."""
        cls = self._held[producer][0].cls
        sharded = self._sharded(cls, strategy)
        if sharded is None:
            return None
        position = self._program.class_of[cls].graph.outputs.index(output)
        return sharded.graph.values[sharded.graph.outputs[position]], sharded.mesh

    def _sharded(self, cls: str, strategy: Strategy) -> LayerClass | None:
        try:
            return self._partitioner.shard(cls, strategy, self._ties)
        except StrategyError:
            return None

    @cached_property
    def _crossing(self) -> tuple[tuple[Crossing, ...], ...]:
        """Per border before each layer, and after the last, the values alive there."""
        made: dict[str, tuple[int, str]] = {}
        uses: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
        for i, layer in ((index, layer) for index, layers in enumerate(self._held) for layer in layers):
            graph = self._program.class_of[layer.cls].graph
            for name, value in zip(layer.operands, graph.inputs, strict=True):
                uses[name].append((i, layer.cls, value.name))
            made.update((name, (i, output)) for name, output in zip(layer.results, graph.outputs, strict=True))
        return tuple(
            tuple(
                (*made[name], *next(use[1:] for use in places if use[0] >= border))
                for name, places in uses.items()
                if name in made and made[name][0] < border <= places[-1][0]
            )
            for border in range(len(self._held) + 1)
        )

    @cached_property
    def _firsts(self) -> tuple[int, ...]:
        """For each border the first one that the same values cross."""
        return firsts(map(self.key, range(len(self._held) + 1)))

    @cached_property
    def _differentiable(self) -> tuple[tuple[bool, ...], ...]:
        """Per border, which of the values have a gradient."""
        return tuple(
            tuple(self._has_gradient(producer, output) for producer, output, *_ in crossing)
            for crossing in self._crossing
        )

    def _has_gradient(self, producer: int, output: str) -> bool:
        layer = self._held[producer][0]
        outputs = self._program.class_of[layer.cls].graph.outputs
        return self._partitioner.differentiable(layer.results[outputs.index(output)])
