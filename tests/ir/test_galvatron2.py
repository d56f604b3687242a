"""Plans of Galvatron-2: what they mean, round trips, and what neither can say of the other."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.errors import ParseError, PlanError
from galvatron.ir.plan import Plan
from galvatron.ir.planned import fitted
from galvatron.ir.program import Program
from galvatron.ir.strategy import Strategy
from tests.ir.programs import clustered, costed

REAL = Path("/work/shared/data/galvatron2/galvatron_config_llama2-7b_1nodes_8gpus_per_node_36GB_bf16.json")
CONFIG: dict[str, Any] = {
    "pp_deg": 2,
    "tp_sizes_enc": "2,2,4,1",
    "tp_consecutive_flags": "1,0,1,1",
    "dp_types_enc": "0,1,0,0",
    "use_sp": "0,0,0,0",
    "checkpoint": "1,0,0,0",
    "global_bsz": 16,
    "chunks": 2,
    "pp_division": "1,3",
    "pipeline_type": "pipedream_flush",
    "default_dp_type": "zero2",
    "vtp": 2,
    "vsp": 0,
    "embed_sdp": 1,
}

net = cache(clustered)


def read(program: Program | None = None, **changes: Any) -> Plan:
    members = {name: value for name, value in {**CONFIG, **changes}.items() if value is not None}
    return Plan.from_galvatron2(json.dumps(members), program or net(), world_size=8)


def test_fields_mean_a_plan() -> None:
    plan = read()
    assert (plan.world_size, plan.global_batch_size, plan.micro_batches, plan.schedule) == (8, 16, 2, "1f1b")
    assert [list(map(str, stage)) for stage in plan.stages] == [
        ["dp2-tp2+sp-zero3", "dp2-tp2+sp-zero2-recompute"],
        ["tp2+sp-dp2-zero3", "dp1-tp4+sp-zero2", "dp4-tp1-zero2", "dp2-tp2+sp-zero3"],
    ]


def test_what_training_is_told_besides() -> None:
    plan = Plan.from_galvatron2(json.dumps(CONFIG), net(), world_size=16, sequence_parallel=False)
    assert str(plan.stages[0][0]) == "dp4-tp2-zero3"
    assert Plan.from_galvatron2(json.dumps(CONFIG), costed()).world_size == 8


def test_the_name_of_a_file_says_how_many_devices(tmp_path: Path) -> None:
    path = tmp_path / "galvatron_config_net_2nodes_8gpus_per_node_36GB_bf16.json"
    path.write_text(json.dumps(CONFIG))
    assert Plan.from_galvatron2(path, net()).world_size == Plan.from_galvatron2(str(path), net()).world_size == 16


def test_fields_that_may_be_missing() -> None:
    optional = ("use_sp", "checkpoint", "pp_division", "pipeline_type", "default_dp_type", "vtp", "vsp", "embed_sdp")
    plan = read(**dict.fromkeys(optional))
    assert plan.schedule == "gpipe" and [len(stage) for stage in plan.stages] == [3, 3]
    assert str(plan.strategies[0]) == "dp4-tp1" and str(plan.strategies[2]) == "tp2+sp-dp2-zero3"


def test_ulysses() -> None:
    plan = read(use_sp="0,1,1,1", vsp=1, global_bsz=16)
    assert list(map(str, plan.strategies)) == [
        "dp2-ulysses2-tp1-zero3", "dp2-tp2+sp-zero2-recompute", "ulysses2-dp2-tp1-zero3", "dp1-ulysses4-tp1-zero2",
        "dp4-tp1-zero2", "dp2-ulysses2-tp1-zero3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"pp_deg": 3}, "field 'pp_deg' is 3, which does not divide 8 devices"),
        ({"pp_deg": "2"}, "field 'pp_deg' must be a whole number"),
        ({"pp_deg": 8, "tp_sizes_enc": "1,1,1,1"}, "more than there are layers that repeat"),
        (
            {"tp_sizes_enc": "2,2,4"},
            "is for 3 layers, but of the 6 layers of the program 4 repeat",
        ),
        ({"tp_sizes_enc": "2,2,3,1"}, "field 'tp_sizes_enc' has 3, which does not divide the 4 devices of a stage"),
        ({"tp_sizes_enc": "2,2,x,1"}, "field 'tp_sizes_enc' must be whole numbers"),
        ({"tp_sizes_enc": None}, "is no plan of Galvatron-2: it has no 'tp_sizes_enc'"),
        ({"checkpoint": "1,0"}, "field 'checkpoint' has 2 entries, but 'tp_sizes_enc' has 4"),
        ({"dp_types_enc": "0,2,0,0"}, "field 'dp_types_enc' must be 0 or 1, not 2"),
        ({"use_sp": "0,0,0,7"}, "field 'use_sp' must be 0 or 1, not 7"),
        ({"vsp": 2}, "field 'vsp' must be 0 or 1"),
        ({"vtp": 8}, "field 'vtp' has 8, which does not divide the 4 devices"),
        ({"embed_sdp": 2}, "field 'embed_sdp' must be 0 or 1"),
        ({"pp_division": "4,0"}, "field 'pp_division' must say for each of 2 stages how many of the 4 layers"),
        ({"pipeline_type": "pipedream"}, "field 'pipeline_type' is 'pipedream'"),
        ({"default_dp_type": "zero1"}, "field 'default_dp_type' is 'zero1'"),
        ({"cp_sizes_enc": "1,1,1,1"}, "field 'cp_sizes_enc' is unknown"),
        ({"global_bsz": 6}, "a batch of 6 samples cannot be divided into 2 micro-batches"),
        ({"chunks": 0}, "field 'chunks' must be from 1 to"),
        ({"global_bsz": 2**62}, "field 'global_bsz' must be from 1 to"),
    ],
)
def test_what_is_refused_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError) as error:
        read(**changes)
    assert words in str(error.value) and str(error.value).startswith("Galvatron-2 plan")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe")
    for path, words in ((tmp_path / "none.json", "cannot read plan"), (tmp_path / "latin.json", "not a text file")):
        with pytest.raises(PlanError, match=words):
            Plan.from_galvatron2(path, net(), world_size=8)
    with pytest.raises(PlanError, match="give world_size="):
        Plan.from_galvatron2(json.dumps(CONFIG), net())
    with pytest.raises(ParseError, match="not valid JSON"):
        Plan.from_galvatron2("{", net(), world_size=8)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    pp, micro_batches = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([4, 8]))
    devices = 8 // pp
    sizes = draw(st.lists(st.sampled_from([d for d in (1, 2, 4, 8) if d <= devices]), min_size=4, max_size=4))

    def flags(possible: list[bool]) -> str:
        return ",".join(str(int(draw(st.booleans()) and able)) for able in possible)

    consecutive = [int(size in (1, devices) or draw(st.booleans())) for size in sizes]
    vtp = draw(st.sampled_from([d for d in (1, 2, 4, 8) if d <= devices]))
    dp_types, embed_sdp = flags([True] * 4), draw(st.integers(0, 1))
    all_level_3 = "0" not in dp_types and embed_sdp
    return {
        "pp_deg": pp,
        "tp_sizes_enc": ",".join(map(str, sizes)),
        "tp_consecutive_flags": ",".join(map(str, consecutive)),
        "dp_types_enc": dp_types,
        "use_sp": flags([size > 1 for size in sizes]),
        "checkpoint": flags([True] * 4),
        "global_bsz": 8 * micro_batches,
        "chunks": micro_batches,
        "pp_division": draw(st.sampled_from({1: ["4"], 2: ["2,2", "1,3", "3,1"], 4: ["1,1,1,1"]}[pp])),
        "pipeline_type": draw(st.sampled_from(["gpipe", "pipedream_flush"])),
        "default_dp_type": "zero2" if all_level_3 else draw(st.sampled_from(["ddp", "zero2"])),
        "vtp": vtp,
        "vsp": int(vtp > 1 and draw(st.booleans())),
        "embed_sdp": embed_sdp,
    }


@settings(max_examples=100, deadline=None)
@given(configs(), st.booleans())
def test_round_trips(config: dict[str, Any], sequence_parallel: bool) -> None:
    text = json.dumps(config, indent=4) + "\n"
    plan = Plan.from_galvatron2(text, net(), world_size=8, sequence_parallel=sequence_parallel)
    assert fitted(plan, net(), 8, config["global_bsz"]).to_galvatron2(net()) == plan.to_galvatron2() == text
    assert Plan.from_galvatron2(plan.to_galvatron2(), net(), world_size=8, sequence_parallel=sequence_parallel) == plan


@pytest.mark.parametrize(
    "layer, strategy, words",
    [
        (1, "dp2-cp2", "it has no cp"),
        (1, "dp4-zero1", "no ZeRO level 1; use 0, 2 or 3"),
        (1, "dp4", "one ZeRO level beside level 3"),
        (1, "dp4-zero2-recompute=selective", "no recompute=selective; use recompute, or none"),
        (1, "ulysses2-tp2-zero2", "one of tp and ulysses in a layer"),
        (1, "dp2-tp2-zero2", "tp in one layer and tp+sp in another"),
        (
            0,
            "dp4-zero3",
            "embedding and head, but layer 0 has dp4-zero3",
        ),
    ],
)
def test_what_it_cannot_say(layer: int, strategy: str, words: str) -> None:
    plan = read()
    strategies = [*plan.strategies]
    strategies[layer] = Strategy.parse(strategy)
    changed = replace(plan, stages=(tuple(strategies[:2]), tuple(strategies[2:])), ties=())
    with pytest.raises(PlanError) as error:
        changed.to_galvatron2()
    assert words in str(error.value)


def test_stages_and_schedules_it_cannot_say() -> None:
    plan = read()
    with pytest.raises(PlanError, match="cannot have schedule zb-v|cannot have schedule interleaved2"):
        replace(plan, schedule="interleaved2").to_galvatron2()
    head = Strategy.parse("dp2-tp2+sp-zero3-recompute")
    with pytest.raises(PlanError, match="never computed again"):
        stages = ((head, *plan.stages[0][1:]), (*plan.stages[1][:-1], head))
        replace(plan, stages=stages).to_galvatron2()
    with pytest.raises(PlanError, match="move the cut between the stages"):
        replace(plan, stages=(plan.strategies[:1], plan.strategies[1:])).to_galvatron2()
    with pytest.raises(PlanError, match="this one has 2"):
        replace(plan, stages=(plan.strategies[:2],)).to_galvatron2()


@pytest.mark.skipif(not REAL.exists(), reason=f"needs {REAL}, which Galvatron-2 searched")
def test_a_real_one() -> None:
    program = clustered(32)
    assert len(program.planned_layers) == 34
    plan = Plan.from_galvatron2(REAL, program, sequence_parallel=True)
    assert str(plan).startswith(
        "pp1/m1/1f1b: stage 0 dp4-ulysses2-tp1-zero3, dp8-tp1-zero3-recompute ×20, dp8-tp1-zero3"
    )
    assert plan.to_galvatron2(program).strip() == REAL.read_text().strip()
