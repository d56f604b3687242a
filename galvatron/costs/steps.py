"""A predicted step, computation by computation: when each rank does what, what that time is spent on, and what the rank
has in use meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from galvatron.costs.memory import Memory
from galvatron.costs.objective import Setting, StageReport, times_of
from galvatron.costs.spent import Spent, backward_input, forward
from galvatron.costs.timeline import Played, played
from galvatron.schedules import Action, Kind


def spent(stage: StageReport) -> dict[Kind, Spent]:
    """What each kind of computation of a stage spends its seconds on."""
    first = Spent.together(forward(layer.cost, layer.conversion_s / 2) for layer in stage.layers)
    inputs = Spent.together(backward_input(layer.cost, layer.conversion_s / 2) for layer in stage.layers)
    weights = Spent(compute_s=float(sum(layer.cost.weight_s for layer in stage.layers)))
    message = Spent(transfer_s=stage.transfer_s / 2)
    return {
        Kind.FORWARD: Spent.together((message, first)),
        Kind.BACKWARD: Spent.together((message, inputs, weights)),
        Kind.BACKWARD_INPUT: Spent.together((message, inputs)),
        Kind.BACKWARD_WEIGHT: weights,
    }


@dataclass(frozen=True)
class Step:
    """A step of a plan, played through.

    Attributes:
        ranks: what each pipeline rank computes, and when.
        micro_batches: how many of them are played: all, or as many as show the order of many.
        predicted_s: of the whole step, as the search counts it.
        once_s: for each rank seconds behind the pipeline: exposed sums of gradients and new values, the optimizer, and
            the end of the loss.
    """

    ranks: tuple[Played, ...]
    micro_batches: int
    predicted_s: float
    once_s: tuple[float, ...]

    @property
    def pipeline_s(self) -> float:
        """Seconds until the last backward has ended."""
        return max(rank[-1][1].end_s for rank in self.ranks)

    @property
    def seconds(self) -> float:
        """What playing says of the step."""
        return self.pipeline_s + max(self.once_s)


def step_of(setting: Setting, stages: Sequence[StageReport], predicted_s: float, most: int = 200_000) -> Step:
    """The step of a plan that was estimated.

    Args:
        most: about how many computations are played. Where there are more, so many micro-batches fewer are played as
            the order repeats itself.
    """
    micro_batches, each = setting.micro_batches, 3 * len(stages)
    repetitions = micro_batches
    while micro_batches * each > most and repetitions > 1:
        repetitions //= 2
        micro_batches = setting.order.shorter(setting.pipeline_degree, setting.micro_batches, repetitions)
    ranks = played(
        setting.order,
        setting.pipeline_degree,
        micro_batches,
        [times_of(stage) for stage in stages],
        setting.pace,
        epilogue=setting.epilogue,
    )
    once_s = [0.0] * setting.pipeline_degree
    for holder, stage in zip(setting.holders, stages, strict=True):
        once_s[holder] += stage.step_s
    return Step(ranks, micro_batches, predicted_s, tuple(once_s))


@dataclass(frozen=True)
class Once:
    """Seconds of a pipeline rank that are spent once in a step, by the kinds of a `StageReport`.

    Attributes:
        exposed_s: behind the pipeline, in this order but for "epilogue", which comes first.
        hidden_s: beside the last computation, and the first ones.
    """

    exposed_s: Mapping[str, float]
    hidden_s: Mapping[str, float]

    @staticmethod
    def of(rank: int, setting: Setting, stages: Sequence[StageReport]) -> Once:
        """That of all stages that a pipeline rank holds."""
        own = [stage for stage, holder in zip(stages, setting.holders, strict=True) if holder == rank]
        return Once(
            {kind: float(sum(getattr(one, f"{kind}_s") for one in own)) for kind in _EXPOSED},
            {kind: float(sum(getattr(one, f"{kind}_hidden_s") for one in own)) for kind in ("sync", "publish")},
        )


_EXPOSED = ("sync", "publish", "update", "epilogue")


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a device of a pipeline rank over a step.

    Attributes:
        state: held all the time, with what libraries keep.
        activations: what micro-batches in flight hold during each computation of the rank, in its order.
        kept: by stage, what a micro-batch holds from its forward to its backward.
        extra: what is in use beside both while the rank computes, when most is.
        update_bytes: what the update takes beside the state.
    """

    state: Memory
    activations: tuple[float, ...]
    kept: Mapping[int, float]
    extra: Memory
    update_bytes: float

    @property
    def peak_bytes(self) -> float:
        """When most is in use."""
        computing = max(self.activations) + self.extra.total
        return self.state.total + max(computing, self.update_bytes)


def memory_over(step: Step, setting: Setting, stages: Sequence[StageReport]) -> tuple[RankMemory, ...]:
    """What each rank has in use over a step."""
    found: list[RankMemory] = []
    for rank, order in enumerate(step.ranks):
        own = {i: stage for i, stage in enumerate(stages) if setting.holders[i] == rank}
        kept = {i: stage.activation_bytes / stage.in_flight for i, stage in own.items()}
        state = Memory(fixed=max(stage.fixed_bytes for stage in own.values()))
        found.append(
            RankMemory(
                state=sum((stage.state for stage in own.values()), state),
                activations=tuple(_during([action for action, _ in order], kept)),
                kept=kept,
                extra=max((stage.extra for stage in own.values()), key=lambda extra: extra.total),
                update_bytes=sum(stage.update_bytes for stage in own.values()),
            )
        )
    return tuple(found)


def _during(order: Sequence[Action], kept: Mapping[int, float]) -> Iterable[float]:
    """Bytes of activations during each computation."""
    held: Counter[int] = Counter()
    for action in order:
        if action.kind is Kind.FORWARD:
            held[action.stage] += 1
        yield sum(count * kept[stage] for stage, count in held.items())
        if action.releases:
            held[action.stage] -= 1
