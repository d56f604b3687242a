"""Costs that are kept on disk are those that a model tells anew, and are found for the same question only."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from galvatron.costs.columns import taken
from galvatron.costs.estimate import cost_model
from galvatron.costs.kept import KeptCosts, kept_costs, make_room, strategy_told, told
from galvatron.costs.kept_classes import class_costs
from galvatron.costs.model import CostModel
from galvatron.costs.sharded import ShardedCostModel
from galvatron.costs.sheets import sealed, written
from galvatron.ir.cluster import Cluster
from galvatron.ir.cost import ClassCost
from galvatron.ir.program import Form, Program
from galvatron.ir.strategy import Strategy
from tests.parity.harness import costed

MICRO_BATCH = 8
STRATEGIES = tuple(map(Strategy.parse, ("dp2-tp2", "dp2-tp2-zero3", "tp4-recompute", "tp2+sp-dp2", "dp4-zero2")[::2]))
TIED = "shared"


def kept_of(model: CostModel, name: str, folder: Path) -> KeptCosts:
    """The costs of a model that are kept under a name."""
    return KeptCosts(lambda: model, len(model.kinds()), name, folder)


def known_of(model: CostModel, name: str, folder: Path) -> KeptCosts:
    """The same where everything is known: nobody needs the model, which takes longer to make than a file to read."""

    def make() -> CostModel:
        raise AssertionError("a model is made of what is known")

    return KeptCosts(make, len(model.kinds()), name, folder)


@pytest.fixture
def program() -> Program:
    return replace(costed(TIED)[0], cluster=Cluster.parse("a100-80g:1x4"))


def answers(model: CostModel, strategies: Sequence[Strategy] = STRATEGIES) -> list[object]:
    """All that a model says."""
    told: list[object] = [model.kinds(), dict(model.tied())]
    for whole in (True, False):
        ties = tuple((name, None if whole else Strategy.parse("dp2-tp2")) for name in model.tied())
        told += [model.shared_bytes(strategy, MICRO_BATCH, ties) for strategy in strategies]
        for index in range(len(model.kinds())):
            many = model.under_each(index, strategies, MICRO_BATCH, ties)
            told += [taken(many, place) for place in range(len(strategies))]
            told += [model.layer(index, strategy, MICRO_BATCH, ties) for strategy in strategies]
    for index in range(1, len(model.kinds())):
        told += model.conversions_s(index, strategies[1:], strategies, MICRO_BATCH).tolist()
        told += [model.conversion_s(index, strategies[0], after, MICRO_BATCH) for after in strategies]
        told += [model.boundary_bytes(index, strategy, MICRO_BATCH) for strategy in strategies]
        told += [model.transfer_s(index, strategy, MICRO_BATCH) for strategy in strategies]
    return told


def test_they_are_what_a_model_tells_anew(program: Program, tmp_path: Path) -> None:
    plain = ShardedCostModel(program, program.required_cluster)
    first = kept_of(plain, "name", tmp_path)
    assert answers(first, STRATEGIES[:2]) == answers(plain, STRATEGIES[:2])
    first.save()
    more = kept_of(plain, "name", tmp_path)
    assert answers(more) == answers(plain)
    more.save()
    again = known_of(plain, "name", tmp_path)
    assert answers(again) == answers(plain)
    assert "np." not in repr(answers(again)), "plain numbers, as texts of plans need"


def test_searches_and_estimates_find_them_in_the_folder(program: Program, tmp_path: Path) -> None:
    def files(asked: Program) -> set[str]:
        with kept_costs(tmp_path):
            model = cost_model(asked)
            model.shared_bytes(STRATEGIES[0], MICRO_BATCH, tuple((name, None) for name in model.tied()))
        return {path.name for path in (tmp_path / "costs").iterdir()}

    assert len(files(program)) == 1
    assert len(files(program)) == 1
    slower = program.required_cluster
    level = replace(slower.levels[0], bytes_per_s=slower.levels[0].bytes_per_s / 2)
    others = (
        replace(program, cluster=replace(slower, levels=(level,))),
        replace(program, batch_size=program.batch_size * 2),
        replace(program, inductor=True),
        replace(program, classes=tuple(replace(cls, name=f"{cls.name}x") for cls in program.classes),
                layers=tuple(replace(layer, cls=f"{layer.cls}x") for layer in program.layers)),
    )  # fmt: skip
    for number, other in enumerate(others, 2):
        assert len(files(other)) == number


@pytest.mark.parametrize("at", ["first line", "strategy", "last number", "cut", "other name", "empty"])
def test_a_damaged_file_is_told_and_written_anew(
    at: str, program: Program, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, name = ShardedCostModel(program, program.required_cluster), "name"
    kept = kept_of(plain, name, tmp_path)
    sent = kept.boundary_bytes(1, STRATEGIES[0], MICRO_BATCH)
    kept.save()
    path = next(tmp_path.iterdir())
    data = bytearray(path.read_bytes())
    places = {"first line": 3, "strategy": data.index(b"none"), "last number": len(data) - 1}
    if at in places:
        data[places[at]] ^= 1
    path.write_bytes(b"" if at == "empty" else data[:-8] if at == "cut" else data)
    if at == "other name":
        name = "other"
        path.rename(tmp_path / "other.costs")
    with caplog.at_level(logging.INFO, logger="galvatron"):
        other = kept_of(plain, name, tmp_path)
    assert "are told anew" in caplog.text
    assert other.boundary_bytes(1, STRATEGIES[0], MICRO_BATCH) == sent
    other.save()
    assert known_of(plain, name, tmp_path).boundary_bytes(1, STRATEGIES[0], MICRO_BATCH) == sent


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"kinds": [0, 0], "tied": {}, "strategies": []},
        {"kinds": [0, 2, 2], "tied": {}, "strategies": []},
        {"kinds": [0, 0, True], "tied": {}, "strategies": []},
        {"kinds": [0, 1, 2], "tied": {"a": [0, 3]}, "strategies": []},
        {"kinds": [0, 1, 2], "tied": [], "strategies": []},
        {"kinds": [0, 1, 2], "tied": {}, "strategies": [1]},
        {"kinds": [0, 1, 2], "tied": {}, "strategies": "none"},
        {"kinds": [0, 1, 2], "tied": {}, "strategies": ["[]"]},
    ],
)
def test_a_file_that_tells_something_else_is_as_none(
    told: dict[str, object], program: Program, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = ShardedCostModel(program, program.required_cluster)
    (tmp_path / "name.costs").write_bytes(written("name", told, {}))
    with caplog.at_level(logging.INFO, logger="galvatron"):
        kept = KeptCosts(lambda: plain, 3, "name", tmp_path)
    assert "are told anew" in caplog.text
    assert (kept.kinds(), kept.tied()) == (plain.kinds(), plain.tied())


@pytest.mark.parametrize(
    "damage", ["", "checksum", '["1", "1", "1", "1"]', '["-1", "1", "1", "1", "1"]', '["C"]', "{}", "1"]
)
def test_what_classes_cost_is_kept(damage: str, program: Program, tmp_path: Path) -> None:
    clustered = replace(program, form=Form.CLUSTERED, classes=tuple(replace(cls, cost=None) for cls in program.classes))
    found = tuple(cls.cost for cls in program.classes)
    times: list[int] = []

    def find() -> tuple[ClassCost, ...]:
        times.append(1)
        return tuple(cost for cost in found if cost)

    assert class_costs(clustered, "cuda", find) == found
    assert times == [1], "nothing is kept where nobody says where"
    with kept_costs(tmp_path):
        assert class_costs(clustered, "cuda", find) == class_costs(clustered, "cuda", find) == found
        assert len(times) == 2
        class_costs(clustered, "cpu", find)
        assert len(times) == 3
        (path,) = sorted((tmp_path / "costs").iterdir())[:1]
        name = path.name.partition(".")[0]
        if damage:
            content = f"[{', '.join([damage] * len(found))}]".encode()
            path.write_bytes(b"x" + path.read_bytes() if damage == "checksum" else sealed(name, content))
        for kind in ("cpu", "cuda"):
            assert class_costs(clustered, kind, find) == found
        assert len(times) == 3 + bool(damage)


@pytest.mark.parametrize(
    "strategy", [Strategy(()), *map(Strategy.parse, ("dp1", "dp1-tp2+sp", "cp2-dp1-zero3-recompute"))]
)
def test_strategies_are_told_to_the_last_degree(strategy: Strategy) -> None:
    assert strategy_told(told(strategy)) == strategy


def test_what_was_used_least_recently_makes_room(tmp_path: Path) -> None:
    for age, name in enumerate("abc"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    make_room(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_columns_are_the_figures_of_each(program: Program) -> None:
    model = ShardedCostModel(program, program.required_cluster)
    ties = tuple((name, None) for name in model.tied())
    last = len(model.kinds()) - 1
    many = model.under_each(last, STRATEGIES, MICRO_BATCH, ties)
    assert many.repeated
    assert np.array_equal(many.state_bytes, [model.layer(last, s, MICRO_BATCH, ties).state_bytes for s in STRATEGIES])
