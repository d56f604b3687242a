"""Layer classes timed by themselves, and what the cost model makes of that."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from dataclasses import replace

import pytest
import torch

from galvatron.calibration import layers
from galvatron.calibration.alone import Alone
from galvatron.calibration.cases import LayerCase, common_strategies, layer_cases
from galvatron.calibration.layers import measure_layers
from galvatron.costs.estimate import estimate_plan
from galvatron.costs.sharded import ShardedCostModel
from galvatron.ir.cluster import Cluster
from galvatron.ir.device import Measured
from galvatron.ir.plan import Plan
from galvatron.ir.planned import resolve
from galvatron.ir.program import Program
from galvatron.ir.text import parse_program, print_program
from galvatron.profiler.clusters import cluster_of
from galvatron.profiler.document import print_profiles, read_profiles
from galvatron.profiler.profile import LayerTime
from galvatron.runtime.mesh import World
from tests.parity.harness import costed
from tests.profiler.profiles import PROFILE, TINY
from tests.ranks import run_ranks

ALONE = World(0, 1, torch.device("cpu"))
FOUR = Cluster.parse("a100-80g:1x4")


def program() -> Program:
    return costed("gpt")[0]


def planned(text: str) -> Plan:
    return resolve(program(), text, 16, 4)


def test_strategies_that_leave_the_same_to_a_rank_are_timed_once() -> None:
    assert list(map(str, common_strategies(FOUR))) == [
        "dp1-tp1", "dp4-tp1", "dp1-tp2", "dp2-tp2", "dp1-tp4",
    ]  # fmt: skip
    cases = layer_cases(program(), FOUR)
    names = [case.name for case in cases]
    assert len({case.local.fingerprint for case in cases}) == len(names)
    assert "block under dp1-tp1" in names and "block under dp4-tp1" not in names
    assert all(case.samples[0] == 1 and max(case.samples) == program().batch_size for case in cases)


def test_a_plan_says_what_is_timed() -> None:
    cases = layer_cases(program(), FOUR, [planned("m4/dp2-tp2-recompute")])
    assert [case.name for case in cases] == [f"{cls} under dp2-tp2-recompute" for cls in ("embedding", "block", "head")]
    assert {case.samples for case in cases} == {(1, 2)}


@pytest.mark.parametrize(
    "strategy",
    [
        "dp4",
        "tp4",
        "tp4+sp",
        "ulysses4",
        "cp4",
        "dp2-tp2-recompute",
        "tp4-recompute=selective",
        "dp4-recompute=attention",
    ],
)
def test_what_a_stage_runs_of_a_class_runs_by_itself(strategy: str) -> None:
    for case in layer_cases(program(), FOUR, [planned(f"m4/{strategy}")]):
        alone = Alone(case, case.samples[-1], ALONE.device)
        assert alone.differentiates
        gradients = alone.both(*alone.values)
        assert isinstance(gradients, tuple)
        trained = [value for value in alone.values if value.requires_grad]
        assert [g.shape for g in gradients] == [v.shape for v in trained]


def times(seconds: dict[str, float], case: str = "block under dp2-tp2") -> tuple[LayerTime, ...]:
    """Made-up times of a class, in proportion to the samples."""
    (found,) = (c for c in layer_cases(program(), FOUR, [planned("m4/dp2-tp2")]) if c.name == case)
    return tuple(
        LayerTime(case, found.local.fingerprint, how, samples, samples * each, 0.1, 3)
        for how, each in seconds.items()
        for samples in (1, 2)
    )


def measured(classes: tuple[LayerTime, ...]) -> Cluster:
    layers = cluster_of(replace(PROFILE, classes=classes)).device.measured.layers
    return replace(FOUR, device=replace(FOUR.device, measured=Measured(layers=layers)))


def test_measured_times_take_the_place_of_kernels(caplog: pytest.LogCaptureFixture) -> None:
    cluster = measured(times({"forward": 1.0, "backward": 10.0}))
    plain, model = ShardedCostModel(program(), FOUR), ShardedCostModel(program(), cluster)
    plan = planned("m4/dp2-tp2")
    strategy, ties = plan.strategies[0], plan.ties
    before, after = (m.layer(1, strategy, 4, ties) for m in (plain, model))
    assert after.forward_s == pytest.approx(2.0)
    assert after.backward_s == pytest.approx(20.0, rel=1e-3)  # and adding up gradients, which is priced
    assert after.weight_s / 20.0 == pytest.approx(before.weight_s / before.backward_s, rel=0.2)
    same = [f.name for f in dataclasses.fields(before) if f.name not in ("forward_s", "backward_s", "weight_s")]
    assert [getattr(before, name) for name in same] == [getattr(after, name) for name in same]
    with caplog.at_level(logging.INFO, "galvatron"):
        assert model.layer(0, strategy, 4, ties) == plain.layer(0, strategy, 4, ties)
    assert "embedding@dp2-tp2 is priced by its kernels: no measured layer computes" in caplog.text


def test_a_program_keeps_them_in_its_text() -> None:
    costs = replace(program(), cluster=measured(times({"forward": 1.0, "backward": 2.0})))
    again = parse_program(print_program(costs))
    assert again.cluster == costs.cluster
    plan = planned("m4/dp2-tp2")
    assert estimate_plan(again, plan)[0] == estimate_plan(costs, plan)[0] > 4 * 3 * 2 * 2


def test_times_are_kept_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    cases = layer_cases(program(), FOUR, [planned("m4/dp2-tp2")])
    found = measure_layers(ALONE, cases, replace(TINY, total_s=60.0), lambda what, share: told.append(share))
    assert found.left_out == () and told == sorted(told)
    assert len(found.profile.classes) == 2 * sum(len(case.samples) for case in cases)
    assert all(0 < time.seconds < 10 and math.isfinite(time.spread) for time in found.profile.classes)
    (again,) = read_profiles(print_profiles([found.profile]))
    assert [time.key for time in again.classes] == [time.key for time in found.profile.classes]
    later = replace(found.profile, classes=found.profile.classes[:1])
    assert len(found.profile.updated(later).classes) == len(found.profile.classes)


def test_what_is_not_timed_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = layer_cases(program(), FOUR, [planned("m4/dp2-tp2")])
    late = measure_layers(ALONE, cases, replace(TINY, total_s=0.0))
    assert not late.profile.classes and {reason for _, reason in late.left_out} == {"there was no time left of 0 s"}
    slow = measure_layers(ALONE, cases, replace(TINY, total_s=60.0, longest_s=0.0))
    assert [what for what, _ in slow.left_out] == [f"{case.name}, 2 samples" for case in cases]
    monkeypatch.setattr(layers, "ROOM", 0.0)
    large = measure_layers(ALONE, cases, replace(TINY, total_s=60.0))
    assert {reason for _, reason in large.left_out} == {"it takes more than half of the memory"}


def test_a_class_that_cannot_run_by_itself_is_named_and_others_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = layer_cases(program(), FOUR, [planned("m4/dp2-tp2")])
    first = cases[0].local.cls.name

    def one_is_broken(case: LayerCase, samples: int, device: torch.device) -> Alone:
        if case.local.cls.name == first:
            raise RuntimeError("out of luck")
        return Alone(case, samples, device)

    monkeypatch.setattr(layers, "Alone", one_is_broken)
    found = measure_layers(ALONE, cases, replace(TINY, total_s=60.0))
    ((name, reason),) = found.unfit
    assert name == cases[0].name and re.fullmatch(r"it cannot be run by itself on \d+ samples: out of luck", reason)
    assert {time.name for time in found.profile.classes} == {case.name for case in cases[1:]}


def two_ranks(world: World) -> str:
    cases = layer_cases(program(), FOUR, [planned("m4/dp2-tp2")])
    return print_profiles([measure_layers(world, cases, replace(TINY, total_s=60.0)).profile])


def test_ranks_measure_together() -> None:
    first, second = run_ranks(two_ranks, 2, timeout=120)
    assert first == second
    (profile,) = read_profiles(first)
    assert profile.environment.devices_per_node == 2 and len(profile.classes) == 12
