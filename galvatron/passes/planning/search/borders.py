"""Where a choice has to remember whether a stage has begun: between layers that hold the same parameter.

What a layer pays for a parameter that an earlier one holds too depends on whether both are in one stage. So each
strategy is there once for every answer: a *memory* is a number whose bits say of one span each, from behind the earlier
layer to the later one, whether a stage has begun in it. Spans that do not overlap share a bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from galvatron.costs.model import LayerCost


@dataclass(frozen=True)
class Borders:
    """What a layer remembers of the borders before it.

    Attributes:
        stages: of the pipeline.
        bits: how many spans there are at most at one layer.
        spans: by layer, the earlier layers with spans to it or beyond, each with its bit.
    """

    stages: int
    bits: int
    spans: tuple[dict[int, int], ...]

    @staticmethod
    def of(repeated: Sequence[Sequence[int]], stages: int) -> Borders:
        """
        Args:
            repeated: for each layer the earlier ones that it repeats a parameter of.
        """
        count = len(repeated)
        ends: dict[int, int] = {}
        for layer, earlier in enumerate(repeated):
            for first in earlier:
                if 1 < stages <= first + count - layer:  # else they are in one stage in no division, or in the only one
                    ends[first] = max(ends.get(first, 0), layer)
        spans: list[dict[int, int]] = [{} for _ in range(count)]
        for first, last in sorted(ends.items()):
            taken = spans[first + 1].values()
            bit = next(b for b in range(count) if b not in taken)
            for layer in range(first + 1, last + 1):
                spans[layer][first] = bit
        return Borders(stages, max((bit + 1 for at in spans for bit in at.values()), default=0), tuple(spans))

    @property
    def memories(self) -> range:
        """All memories."""
        return range(2**self.bits)

    def possible(self, layer: int, memory: int) -> bool:
        """Whether a layer may have a memory."""
        return not memory & ~self._open(layer)

    def going(self, layer: int, memory: int) -> int:
        """The memory of a layer in the stage of the one before it, which has a memory."""
        kept = sum(1 << bit for first, bit in self.spans[layer].items() if first < layer - 1)
        return memory & kept

    def entering(self, layer: int) -> int:
        """The memory of the first layer of a stage."""
        return self._open(layer)

    def moving(self, layer: int) -> tuple[int, int]:
        """What `going` and `entering` depend on."""
        return self.going(layer, -1), self._open(layer)

    def settled(self, cost: LayerCost, layer: int, memory: int) -> LayerCost:
        """The cost of a layer that has a memory."""

        def here(earlier: int) -> bool:
            bit = self.spans[layer].get(earlier)
            return self.stages == 1 if bit is None else not memory >> bit & 1

        return cost.beside(here)

    def _open(self, layer: int) -> int:
        return sum(1 << bit for bit in self.spans[layer].values())
