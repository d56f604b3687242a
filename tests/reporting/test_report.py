"""What a report says of plans, held to the estimate, and the page around it."""

from __future__ import annotations

import html.parser
import json
from dataclasses import replace

import pytest

from galvatron.costs.memory import Memory
from galvatron.costs.objective import memory_of_ranks
from galvatron.costs.steps import spent
from galvatron.errors import ClusterError
from galvatron.forms import searched, with_costs
from galvatron.ir.planned import resolve
from galvatron.ir.program import Program
from galvatron.reporting.page import asked, page, page_data, report
from galvatron.reporting.plans import Estimated
from galvatron.schedules import Kind
from galvatron.search_options import SearchOptions
from tests.ir.programs import costed
from tests.passes.planning.search.test_search import cluster

MACHINES = cluster("a100-80g:1x4")
TIGHT = 20_000
HOSTILE = "</script><script>alert(1)</script><!--"
PLANS = ["m4/dp4", "pp2/m4/gpipe/dp1-tp2", "pp2/m4/interleaved2/dp2", "pp2/m6/zbv/dp2-zero3"]


@pytest.fixture(scope="module")
def program() -> Program:
    return with_costs(costed(), MACHINES, 48)


def estimated(program: Program, text: str) -> Estimated:
    return asked(program, resolve(program, text, 48, 4), MACHINES, TIGHT, text)


@pytest.mark.parametrize("text", PLANS)
def test_events_add_up_to_the_predicted_step(program: Program, text: str) -> None:
    own = estimated(program, text)
    seconds, stages = own.estimate
    assert own.step.seconds == pytest.approx(seconds, rel=1e-9 if "gpipe" not in text else 0.05)
    for rank, order in enumerate(own.step.ranks):
        ends = [0.0, *(span.end_s for _, span in order)]
        assert all(span.begin_s >= before - 1e-12 for before, (_, span) in zip(ends, order, strict=False))
        for action, span in order:
            made_of = spent(stages[action.stage])[action.kind]
            assert span.end_s - span.begin_s == pytest.approx(made_of.seconds, rel=1e-9)
            assert span.computing_s - span.begin_s == pytest.approx(made_of.transfer_s, abs=1e-12)
        busy_s = sum(span.end_s - span.begin_s for _, span in order) + own.step.once_s[rank]
        reports = [stage for stage, holder in zip(stages, own.setting.holders, strict=True) if holder == rank]
        assert seconds - busy_s == pytest.approx(reports[0].bubble_s, abs=1e-9 * seconds)


@pytest.mark.parametrize("text", PLANS)
def test_parts_of_computations_are_those_of_the_stage(program: Program, text: str) -> None:
    for stage in estimated(program, text).stages:
        parts = spent(stage)
        both = [parts[Kind.FORWARD], parts[Kind.BACKWARD]]
        for name in ("transfer_s", "compute_s", "host_s", "awaited_s", "gather_s", "reduce_s", "gather_hidden_s"):
            assert sum(getattr(part, name) for part in both) == pytest.approx(getattr(stage, name), abs=1e-12)


@pytest.mark.parametrize("text", PLANS)
def test_memory_over_time_peaks_at_the_predicted_peak(program: Program, text: str) -> None:
    own = estimated(program, text)
    peaks = [memory.total for memory in memory_of_ranks(own.setting, own.stages)]
    assert [memory.peak_bytes for memory in own.memory] == pytest.approx(peaks)
    for rank in page_data(program, [own])["plans"][0]["step"]["ranks"]:
        memory = rank["memory"]
        assert len(memory["held"]) == len(rank["what"])
        computing = max(memory["levels"][place] for place in memory["held"]) + memory["extra_bytes"]
        assert memory["peak_bytes"] == pytest.approx(sum(memory["state"]) + max(computing, memory["update_bytes"]))


def test_figures_say_all_of_a_plan(program: Program) -> None:
    found = searched(program, TIGHT, SearchOptions(roles=("dp", "tp"), zero=(0, 3))).required_plan
    told = page_data(program, [asked(program, found, None, None, "found")])
    (own,) = told["plans"]
    assert (own["budget_bytes"], own["search"]["bound_s"]) == (TIGHT, found.search.bound_s)
    assert [own["strategies"][strategy]["text"] for _, strategy, _ in own["layers"]] == list(map(str, found.strategies))
    assert told["layers"] == [layer.name for layer in program.planned_layers]
    for stage in own["stages"]:
        assert sum(exposed for _, exposed, _ in stage["times"]) == pytest.approx(own["step_s"])
    assert [Memory(*parts).total for parts in own["memory"]] == pytest.approx(own["peak_bytes"])
    times = [kind for stage in own["stages"] for kind, _, _ in stage["times"] if stage["rank"] == own["limit"]["rank"]]
    assert own["limit"]["kind"] in times and 0 < own["limit"]["share"] <= 1
    ticks = [sum(rank["waits"]) + sum(rank["takes"]) for rank in own["step"]["ranks"]]
    assert max(ticks) * own["step"]["tick_s"] == pytest.approx(own["step"]["pipeline_s"], abs=1e-9)


def test_decisions_name_every_cut_and_leaf(program: Program) -> None:
    own = estimated(program, "m4/dp4")
    candidates, told = own.question.candidates, page_data(program, [own])["decisions"]
    cuts = [
        ("/".join(filter(None, (branch["root"], rest))), rule, told["reasons"][reason])
        for branch in told["branches"]
        for rest, rule, reason in branch["cuts"]
    ]
    assert sorted(cuts) == sorted((cut.branch, cut.rule, cut.reason) for cut in candidates.cuts)
    leaves = {(branch["root"], told["strategies"][leaf[0]]) for branch in told["branches"] for leaf in branch["leaves"]}
    assert leaves == {(f"pp{one.pipeline_degree}", str(s)) for one in candidates.candidates for s in one.strategies}


def test_passes_and_code_are_those_of_the_plan(program: Program) -> None:
    told = page_data(program, [estimated(program, "pp2/m4/dp1-tp2")])["code"]
    assert [one["name"] for one in told["passes"]][-3:] == ["redistribute", "overlap", "split-stages"]
    shard = next(one for one in told["passes"] if one["name"] == "shard")
    assert shard["gone"] and shard["added"] and "+" in shard["lines"]
    texts = ["\n\n\n".join(told["blocks"][block] for block in blocks) for blocks in told["modules"].values()]
    assert len(texts) == 2 and all(compile(text, "stage", "exec") for text in texts)


class Scripts(html.parser.HTMLParser):
    """The scripts of a page, and all it refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def test_hostile_names_stay_text_and_nothing_is_loaded(program: Program) -> None:
    renamed = replace(program, name=HOSTILE)
    text = page(page_data(renamed, [estimated(program, "m4/dp4")]) | {"layers": [HOSTILE] * 5})
    found = Scripts()
    found.feed(text)
    assert len(found.scripts) == 2 and found.references == []
    assert json.loads(found.scripts[0])["layers"] == [HOSTILE] * 5
    assert HOSTILE not in text


def test_two_plans_are_beside_each_other(program: Program) -> None:
    plans = [estimated(program, text) for text in ("m4/dp4", "pp2/m4/dp1-tp2")]
    told = page_data(program, plans)
    assert [one["text"] for one in told["plans"]] == ["pp1/m4/1f1b", "pp2/m4/1f1b"]
    differ = [what for what, _, _ in told["differences"]]
    assert {"pipeline ranks", "step time", "peak memory by pipeline rank"} <= set(differ)
    assert "micro-batches" not in differ


def test_a_shorthand_stands_beside_a_plan_on_its_cluster_and_batch(program: Program) -> None:
    plan = replace(resolve(program, "m4/dp4", 96, 4), cluster="a100-80g:1x4")
    text = report(program, plan, against="pp2/m4/1f1b/dp1-tp2")
    told = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [(one["name"], one["batch"]) for one in told["plans"]] == [("", 96), ("pp2/m4/1f1b/dp1-tp2", 96)]


def test_a_plan_without_a_cluster_needs_one(program: Program) -> None:
    plan = replace(resolve(program, "m4/dp4", 48, 4), cluster="")
    with pytest.raises(ClusterError, match="the plan says no cluster"):
        report(program, plan)
