"""What `galvatron show` says of programs in every form, held to what their graphs are."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from galvatron.errors import GalvatronError, PlanError
from galvatron.inspection.classes import overview
from galvatron.inspection.ops import layer_ops, op_facts
from galvatron.inspection.programs import under_plan
from galvatron.inspection.view import View
from galvatron.ir.planned import PlanShorthand
from galvatron.offline import Estimate
from tests.ir.programs import FORMS, STRATEGY, D, H, S, captured, clustered, costed, planned, sharded, updating

BLOCK_FLOP = 2 * 2 * S * D * H
"""Of a sample: two products."""


@pytest.mark.parametrize("form", FORMS)
def test_an_overview_counts_what_is_there(form: str) -> None:
    program = FORMS[form]()
    found = overview(View.of(program))
    assert found.form == form
    assert found.parameters == program.count_parameters(program.state_of)
    assert sum(row.layers for row in found.classes) == found.layers
    layers = len(program.all_layers) if form != "captured" else 1
    assert found.layers == layers
    assert found.figures.forward_flop == sum(row.layers * row.figures.forward_flop for row in found.classes)
    assert [row.name for row in found.inputs] == ["ids", "labels"]
    assert (sum(row.tensors for row in found.state), found.results[0].value) == (len(program.state), "loss")
    assert json.loads(json.dumps(found.to_dict()))["classes"][0]["figures"]


def test_figures_are_those_of_the_graph() -> None:
    (block,) = (row for row in overview(View.of(clustered())).classes if row.name == "block")
    assert (block.layers, block.which) == (4, "block_0 … block_3")
    assert block.figures.forward_flop == BLOCK_FLOP
    assert block.figures.backward_flop == 2 * BLOCK_FLOP
    (whole,) = overview(View.of(captured())).classes
    assert whole.figures.forward_flop == pytest.approx(overview(View.of(clustered())).figures.forward_flop)


def test_figures_of_a_sharded_program_are_those_of_a_rank() -> None:
    found = overview(View.of(sharded()))
    (block,) = (row for row in found.classes if row.name.startswith("block"))
    samples, ways = 16 / 4 / STRATEGY.degree("dp"), STRATEGY.degree("tp")
    assert block.figures.forward_flop == BLOCK_FLOP * samples / ways
    assert (block.stages, block.strategies) == ((0, 1), ((str(STRATEGY), 4),))
    assert "on one rank" in found.unit


def test_what_a_program_says_it_costs_is_read_off() -> None:
    cost = costed().classes[0].cost
    assert cost is not None
    (block,) = (row for row in overview(View.of(costed())).classes if row.name == "block")
    assert (block.figures.forward_flop, block.figures.kept_bytes) == (2 * S * D, 1.5)


def test_ops_of_a_layer_add_up_to_it() -> None:
    view = View.of(clustered())
    (by_layer,), (by_class,) = layer_ops(view, "block_2"), layer_ops(view, "block")
    assert by_layer == by_class
    assert sum(row.figures.forward_flop for row in by_layer.ops) == BLOCK_FLOP
    assert [row.op for row in by_layer.ops] == ["linear", "silu", "linear", "add.Tensor", "mul.Tensor", "add.Tensor"]
    assert by_layer.bound[0] == ("up.weight", f"f32[{H}, {D}]", "blocks.0.up.weight")
    assert (by_layer.ops[0].source, by_layer.ops[0].code) == ("/home/user/net.py:12", "line 12")
    assert by_layer.to_dict()["outputs"] == ("y",)


def test_a_module_of_a_captured_program_is_shown_as_a_layer() -> None:
    (found,) = layer_ops(View.of(captured()), "block_1")
    (block,) = layer_ops(View.of(clustered()), "block_1")
    assert [row.op for row in found.ops] == [row.op for row in block.ops]
    assert [name for name, _ in found.inputs] == ["h1", "mask"] and found.outputs == ("h2",)
    assert {of for _, _, of in found.bound} == {of.replace("blocks.0", "blocks.1") for _, _, of in block.bound}
    with pytest.raises(GalvatronError, match="no op is of a module 'block_9'"):
        layer_ops(View.of(captured()), "block_9")


def test_an_op_says_what_it_reads_and_who_reads_it() -> None:
    (found,) = op_facts(View.of(clustered()), "%silu")
    assert found.reads == (("up", f"f32[B, {S}, {H}]", "linear"),)
    assert found.read_by == ("%down = linear",)
    (up,) = op_facts(View.of(clustered()), "up", "block_1")
    assert up.rule == "~b.1 b.0 k, ~n k -> b.1 b.0 n"
    assert (up.sizes["k"], up.sizes["n"], up.sizes["b.1"]) == (str(D), str(H), "B")
    assert [made for _, _, made in up.reads] == ["input", "state"]
    (last,) = op_facts(View.of(clustered()), "y")
    assert last.read_by == ("the layer's result",)


def test_an_op_of_a_sharded_program_says_where_its_values_are() -> None:
    (up,) = op_facts(View.of(sharded()), "up")
    found = [" ".join(f"{spot.value}|{spot.gradient}" for spot in value.spots) for value in up.placements]
    assert found == ["S(0)|S(0) R'|P", "R'|P S(0)|S(0)", "S(0)|S(0) S(2)|S(2)"]
    assert up.placements[-1].spots[1].why.startswith("cut along n")
    (summed,) = op_facts(View.of(sharded()), "sum", "block_0")
    assert not summed.rule and "collective" in summed.why_no_rule


def test_choices_are_those_of_the_partitioner_and_the_chosen_way_is_the_cheapest() -> None:
    view = View.of(planned())
    for name in ("up", "silu", "down"):
        (found,) = op_facts(view, name, "block")
        dp, tp = found.choices
        for choice in (dp, tp):
            (chosen,) = (way for way in choice.ways if way.chosen)
            assert chosen.more_s == pytest.approx(0.0, abs=1e-12)
            assert not choice.whole and choice.layers == 4
            assert all(way.more_s is None or way.more_s >= 0 for way in choice.ways)
        local = op_facts(View.of(sharded()), name)[0].placements[-1]
        chosen = [next(way.results for way in choice.ways if way.chosen) for choice in (dp, tp)]
        assert chosen == [(spot.value,) for spot in local.spots]


def test_a_plan_says_how_layers_run() -> None:
    program = under_plan(captured(), PlanShorthand.parse("pp2/m4/dp2"), None)
    found = overview(View.of(program))
    assert found.plan == "pp2/m4/1f1b" and {row.planned for row in found.classes if row.planned} == {"dp2"}
    with pytest.raises(PlanError, match="its plan is in it"):
        under_plan(sharded(), PlanShorthand.parse("dp2"), None)


def test_updates_are_results() -> None:
    found = overview(View.of(updating(clustered())))
    assert [(row.kind, row.name) for row in found.results] == [("loss", ""), ("update", "counted")]


def test_unknown_names_are_told_apart() -> None:
    view = View.of(clustered())
    for call, words in (
        (lambda: layer_ops(view, "blok_2"), "there is no layer 'blok_2'; did you mean 'block_2'"),
        (lambda: op_facts(view, "silo"), "no op that makes 'silo'; did you mean 'silu'"),
        (lambda: op_facts(view, "up.weight"), "no op makes 'up.weight': it is given to block"),
        (lambda: op_facts(view, "silu", "head"), "no op that makes 'silu'; known: "),
    ):
        with pytest.raises(GalvatronError, match=words):
            call()


def test_programs_and_plans_are_tables_in_a_notebook() -> None:
    hostile = "<img src=x onerror=alert(1)>\n\u202e"
    for form, make in FORMS.items():
        text = replace(make(), name=hostile)._repr_html_()
        assert text.count("<table>") == 1 and "<img" not in text and "\u202e" not in text, form
    plan = replace(planned().required_plan, cluster=hostile)
    assert "12.3 ms" in plan._repr_html_() and "<img" not in plan._repr_html_()
    assert "1.5 s" in Estimate(1.5, (2**30,), ())._repr_html_()
