"""Any plan: random strategies per layer, stage boundaries, micro-batches and labels on random transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st

from galvatron.errors import StrategyError
from galvatron.ir.plan import Plan
from galvatron.ir.planned import tied_layers
from galvatron.ir.strategy import RECOMPUTE, Strategy
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies
from galvatron.schedules import SCHEDULES, Schedule
from tests.parity.cases import Case
from tests.parity.harness import check_program, costed, layer_count, subject, with_plan

ROLES = ("dp", "tp", "tp+sp", "ulysses", "cp")
MODELS = [*(f"random-{seed}" for seed in range(24)), "gpt", "llama", "skips", "weighted", "shared"]
FEW_MODELS = MODELS[20:]
"""For the examples of every run, which share captures with each other and with other tests."""
COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
}


@st.composite
def plans(draw: st.DrawFn, model: str, roles: Sequence[str] = ROLES) -> Plan:
    """A plan that the model's layers allow, on 2 to 4 ranks. Layers that share parameters are mostly alike, and keep
    them whole all the same or in parts."""
    layers = layer_count(model)
    world_size = draw(st.sampled_from([4, 4, 4, 3, 2]))
    degree = draw(st.sampled_from([d for d in range(1, world_size + 1) if world_size % d == 0 and d <= layers]))
    names = [*SCHEDULES, "interleaved3"] if degree > 1 else ["gpipe", "1f1b"]
    schedule = draw(st.sampled_from([s for s in map(Schedule.parse, names) if degree * s.stages_per_rank <= layers]))
    stages = degree * schedule.stages_per_rank
    cuts = sorted(
        draw(st.sets(st.integers(1, layers - 1), min_size=stages - 1, max_size=stages - 1)) if stages > 1 else []
    )
    devices = world_size // degree
    space = EnumerateStrategies(roles=tuple(roles), zero=(0, 1, 2, 3), recompute=RECOMPUTE, heuristics=False)
    leaves = space.leaves_of(devices)
    choice = st.sampled_from(list(leaves))
    strategies = draw(st.lists(choice, min_size=layers, max_size=layers))
    ties: dict[str, Strategy | None] = {}
    for name, sharing in tied_layers(costed(model)[0]).items():
        ties[name] = kept = draw(st.sampled_from([None, strategies[sharing[0]].keeping]))
        for index in sharing if kept is not None or draw(st.booleans()) else ():
            strategies[index] = strategies[sharing[0]]
    micro_batches = draw(st.sampled_from([m for m in range(1, degree + 3) if schedule.allows(degree, m)]))
    return Plan(
        fingerprint=costed(model)[0].fingerprint,
        # Some models treat a single sample unlike several, and programs of several refuse it.
        global_batch_size=micro_batches * devices * draw(st.integers(1 if micro_batches * devices > 1 else 2, 2)),
        world_size=world_size,
        micro_batches=micro_batches,
        schedule=str(schedule),
        ties=tuple(ties.items()),
        stages=tuple(tuple(strategies[a:b]) for a, b in zip([0, *cuts], [*cuts, layers], strict=True)),
    )


def one_example(data: st.DataObject, models: Sequence[str], roles: Sequence[str] = ROLES) -> None:
    model = data.draw(st.sampled_from(models), label="model")
    plan = data.draw(plans(model, roles), label="plan")
    overlap = "ep" in roles and data.draw(st.booleans(), label="overlap")
    program = with_plan(costed(model)[0], plan, overlap=overlap)
    size = program.batch_size
    seed = data.draw(st.integers(0, 9), label="seed of the batch")
    ignored: list[int] = []
    if "targets" in subject(model).batch(size, seed):
        # Whole samples without labels, but never all.
        flags = data.draw(st.lists(st.booleans(), min_size=size, max_size=size), label="ignored samples")
        ignored = [index for index, all_ignored in enumerate(flags[1:]) if all_ignored]
    case = Case(model, program, seed, ignored)
    try:
        check_program(model, program, case.batch)
    except StrategyError as error:
        # A sequence that does not divide over the ranks of its axis is refused, by a message that says so.
        if "does not divide" in str(error):
            reject()
        raise AssertionError(f"see {case.keep()}") from error
    except Exception as error:
        raise AssertionError(f"see {case.keep()}") from error


@settings(max_examples=12, derandomize=True, phases=(Phase.generate,), **COMMON)
@given(st.data())
def test_random_plan_equals_eager(data: st.DataObject) -> None:
    one_example(data, FEW_MODELS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=200, phases=(Phase.reuse, Phase.generate, Phase.shrink), **COMMON)
@given(st.data())
def test_many_random_plans_equal_eager(data: st.DataObject) -> None:
    one_example(data, MODELS)
