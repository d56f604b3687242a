"""The predicted step as a timeline: what the cost model plays (`galvatron.costs.steps`), layer by layer.

A layer takes what it takes in its stage; on cores that ranks share its part of what the computation takes. Where in it
a collective stands the model does not say: those that are waited for are shown at its beginning, as are the gathers and
sums that run beside it. What is done once per step stands behind the pipeline, where the model counts it; what of that
is hidden, beside the last computation or the first one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from galvatron.costs.estimate import cost_model, estimate_plan, setting_of
from galvatron.costs.model import CostModel
from galvatron.costs.objective import LayerReport, Setting, StageReport, layer_cost
from galvatron.costs.spent import Spent, backward_input, forward
from galvatron.costs.steps import Once, RankMemory, Step, memory_over, step_of
from galvatron.costs.timeline import Played, Span
from galvatron.ir.limits import TIMELINE_EVENTS
from galvatron.ir.plan import Plan
from galvatron.ir.planned import in_pieces
from galvatron.ir.program import Program
from galvatron.ir.recompute import replays
from galvatron.schedules import Action, Kind
from galvatron.timelines import timeline as names
from galvatron.timelines.timeline import Level, Slice, Timeline, computation, in_turn, message, of_layer

_OF_LAYER, _OF_COMPUTATION = 5, 5
"""Events that a layer in a computation has at the most, and a computation besides."""


def predicted_timeline(
    program: Program, plan: Plan, model: CostModel | None = None, most: int = TIMELINE_EVENTS
) -> Timeline:
    """The step of a plan for a costed program on its cluster.

    Args:
        model: the costs to use; those of the sharded program when None.
        most: about how many events there may be: of longer steps fewer micro-batches are shown, in the same order.

    Raises:
        PlanError: the plan does not fit the program, the cluster or the batch.
    """
    model = model or cost_model(in_pieces(program, plan), plan.skew, overlap=plan.overlap)
    seconds, stages = estimate_plan(program, plan, model=model)
    setting = setting_of(program, plan)
    each = _OF_COMPUTATION + _OF_LAYER * max(len(stage.layers) for stage in stages)
    step = step_of(setting, stages, seconds, most=max(1, most // each))
    return _Predicted(program, setting, model, stages, step).timeline()


@dataclass(frozen=True)
class _Part:
    """A layer in a computation, and how long its forward is there once more."""

    layer: str
    spent: Spent
    recomputed_s: float = 0.0


class _Predicted:
    """A step that was played, and what its computations are made of."""

    def __init__(
        self, program: Program, setting: Setting, model: CostModel, stages: Sequence[StageReport], step: Step
    ) -> None:
        self._layers = [layer.name for layer in program.planned_layers]
        self._setting, self._stages, self._step = setting, stages, step
        self._parts = [self._of_stage(model, stage) for stage in stages]

    def timeline(self) -> Timeline:
        """See `predicted_timeline`."""
        memory = memory_over(self._step, self._setting, self._stages)
        slices: list[Slice] = []
        levels: list[Level] = []
        for rank, order in enumerate(self._step.ranks):
            slices += self._of_rank(rank, order)
            levels += self._levels(rank, order, memory[rank])
        about = {
            "played_s": self._step.seconds,
            "predicted_s": self._step.predicted_s,
            "micro_batches": self._setting.micro_batches,
            "micro_batches_shown": self._step.micro_batches,
        }
        ranks = tuple(range(len(self._step.ranks)))
        return Timeline(names.PREDICTED, ranks, 1, tuple(slices), tuple(levels), about)

    def _of_stage(self, model: CostModel, stage: StageReport) -> dict[Kind, list[_Part]]:
        """What each kind of computation of a stage is made of."""
        parts: dict[Kind, list[_Part]] = {Kind.FORWARD: [], Kind.BACKWARD: [], Kind.BACKWARD_INPUT: []}
        for own in stage.layers:
            parts[Kind.FORWARD].append(_Part(self._layers[own.index], forward(own.cost, own.conversion_s / 2)))
        for own in reversed(stage.layers):
            inputs = backward_input(own.cost, own.conversion_s / 2)
            both = replace(inputs, compute_s=inputs.compute_s + own.cost.weight_s)
            again_s = self._recomputed_s(model, own)
            for kind, spent in ((Kind.BACKWARD, both), (Kind.BACKWARD_INPUT, inputs)):
                parts[kind].append(_Part(self._layers[own.index], spent, again_s))
        return parts

    def _recomputed_s(self, model: CostModel, own: LayerReport) -> float:
        """What the backward of a layer takes longer than if nothing were recomputed in it."""
        if not replays(own.strategy.recompute):
            return 0.0
        kept = layer_cost(model, self._setting, own.index, replace(own.strategy, recompute="none"))
        return max(0.0, float(own.cost.backward_pass_s - kept.backward_pass_s))

    def _of_rank(self, rank: int, order: Played) -> Iterator[Slice]:
        beside: dict[str, list[Slice]] = {track: [] for track in names.TRACKS}
        for action, span in order:
            yield Slice(
                rank,
                names.COMPUTE,
                computation(action.kind, action.stage, action.micro_batch),
                span.computing_s,
                span.end_s - span.computing_s,
                args={"stage": action.stage, "micro_batch": action.micro_batch},
            )
            for one in self._inside(rank, action, span):
                if one.track == names.COMPUTE:
                    yield one
                else:
                    beside[one.track].append(one)
        for one in self._once(rank, order):
            if one.track in (names.COMPUTE, names.STEPS):
                yield one
            else:
                beside[one.track].append(one)
        for own in beside.values():
            yield from in_turn(own)

    def _inside(self, rank: int, action: Action, span: Span) -> Iterator[Slice]:
        """The message that a computation waits for, its layers, and what is sent for these."""
        args = {"stage": action.stage, "micro_batch": action.micro_batch}
        if span.computing_s > span.begin_s:
            name = _message(action)
            seconds = span.computing_s - span.begin_s
            yield Slice(rank, names.PIPELINE, name, span.begin_s, seconds, seconds, args)
        parts = self._parts[action.stage].get(action.kind, [])
        whole_s = sum(part.spent.seconds for part in parts)
        scale = (span.end_s - span.computing_s) / whole_s if whole_s else 0.0
        what = "forward" if action.kind is Kind.FORWARD else "backward"
        at_s = span.computing_s
        for part in parts:
            yield from _of_part(rank, what, part, at_s, scale, {**args, "layer": part.layer})
            at_s += scale * part.spent.seconds

    def _once(self, rank: int, order: Played) -> Iterator[Slice]:
        """What is done once per step."""
        once = Once.of(rank, self._setting, self._stages)
        yield Slice(rank, names.STEPS, names.STEP, 0.0, self._step.seconds)
        last = order[-1][1]
        hidden_s = min(once.hidden_s["sync"], last.end_s)
        yield from _some(Slice(rank, names.GRADIENTS, names.GRADIENTS, last.end_s - hidden_s, hidden_s, 0.0))
        yield from _some(Slice(rank, names.PARAMETERS, names.PARAMETERS, 0.0, once.hidden_s["publish"], 0.0))
        at_s = self._step.pipeline_s
        for kind, track, name in (
            ("epilogue", names.COMPUTE, names.EPILOGUE),
            ("sync", names.GRADIENTS, names.GRADIENTS),
            ("update", names.COMPUTE, names.OPTIMIZER),
            ("publish", names.PARAMETERS, names.PARAMETERS),
        ):
            seconds = once.exposed_s[kind]
            yield from _some(Slice(rank, track, name, at_s, seconds, None if track == names.COMPUTE else seconds))
            at_s += seconds

    def _levels(self, rank: int, order: Played, memory: RankMemory) -> Iterator[Level]:
        for (_, span), held in zip(order, memory.activations, strict=True):
            bytes_of = {"state": memory.state.total, "activations": held, "working": memory.extra.total}
            yield Level(rank, span.computing_s, bytes_of)
        idle = {"state": memory.state.total, "activations": 0.0, "working": memory.update_bytes}
        yield Level(rank, self._step.pipeline_s, idle)


def _message(action: Action) -> str:
    """The message before a computation: what it reads, or in a backward what it makes, which the model counts there."""
    if action.kind is Kind.FORWARD:
        return message("values", action.stage - 1, action.micro_batch)
    return message("gradients", action.stage, action.micro_batch)


def _of_part(
    rank: int, what: str, part: _Part, begin_s: float, scale: float, args: dict[str, str | int | float]
) -> Iterator[Slice]:
    """A layer in a computation, and what is sent for it."""
    spent = part.spent
    launching = {names.LAUNCHING: scale * spent.host_s * 1e6} if spent.host_s else {}
    whole = Slice(
        rank, names.COMPUTE, of_layer(what, part.layer), begin_s, scale * spent.seconds, args={**args, **launching}
    )
    yield from _some(whole)
    again_s = min(part.recomputed_s, spent.seconds) * scale
    yield from _some(Slice(rank, names.COMPUTE, of_layer("recompute", part.layer), begin_s, again_s, args=args))
    for track, name, exposed_s, hidden_s in (
        (names.LAYERS, of_layer(what, part.layer), spent.awaited_s, 0.0),
        (names.PARAMETERS, names.PARAMETERS, spent.gather_s, spent.gather_hidden_s),
        (names.GRADIENTS, names.GRADIENTS, spent.reduce_s, spent.reduce_hidden_s),
    ):
        seconds = scale * (exposed_s + hidden_s)
        yield from _some(Slice(rank, track, name, begin_s, seconds, scale * exposed_s, args))


def _some(one: Slice) -> Iterator[Slice]:
    """The slice, if it takes any time."""
    if one.seconds > 0:
        yield one
