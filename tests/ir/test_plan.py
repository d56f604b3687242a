"""Plans: document round trip, shorthand, and every refusal."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from galvatron.errors import ParseError, PlanError, StrategyError
from galvatron.ir import plan_rules
from galvatron.ir.cost import ClassCost
from galvatron.ir.graph import Graph, Op, Ref, Value
from galvatron.ir.plan import Plan, Searched
from galvatron.ir.planned import PlanShorthand, balanced, check, names_plan_file, resolve
from galvatron.ir.program import Form, Layer, LayerClass, LayerKind, Program
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import BATCH, TensorType


def chain(flops: list[int]) -> Program:
    """A program of one class per distinct cost, whose layers pass a value along; the last one sums it up."""
    value = Value("x", TensorType("f32", (BATCH, 4)))
    graph = Graph((value,), (), (), ("x",))
    classes = tuple(
        LayerClass(f"c{f}", graph, ClassCost(f * BATCH, 2 * f * BATCH, 0, 0, 0)) for f in sorted(set(flops))
    )
    total = Op("aten.sum.dim_IntList", (Ref("x"), (0, 1)), (), (Value("total", TensorType("f32", ())),))
    cost = ClassCost(flops[-1] * BATCH, 2 * flops[-1] * BATCH, 0, 0, 0)
    classes += (LayerClass("end", Graph((value,), (), (total,), ("total",)), cost),)
    names = [*(f"c{f}" for f in flops[:-1]), "end"]
    layers = tuple(Layer(f"l{i}", name, (f"h{i}",), (), (f"h{i + 1}",)) for i, name in enumerate(names))
    preamble = Layer("mask", classes[0].name, ("h0",), (), ("m",), LayerKind.PREAMBLE)
    inputs = (Value("h0", value.type),)
    return Program("toy", Form.CLUSTERED, 8, inputs, (), f"h{len(flops)}", classes=classes, layers=(preamble, *layers))


strategies = st.sampled_from([Strategy.parse(s) for s in ("dp2-tp2", "tp2-dp2", "dp4-tp1", "dp1-tp4-zero3-recompute")])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    stages = draw(st.lists(st.lists(strategies, min_size=1, max_size=6).map(tuple), min_size=1, max_size=4).map(tuple))
    micro_batches = draw(st.integers(len(stages), 16))
    return Plan(
        fingerprint=draw(st.text(alphabet="0123456789abcdef", min_size=16, max_size=16)),
        global_batch_size=4 * micro_batches * draw(st.integers(1, 8)),
        world_size=4 * len(stages),
        micro_batches=micro_batches,
        schedule=draw(st.sampled_from(["gpipe", "1f1b"])),
        stages=stages,
        cluster=draw(st.text()),
        step_time_s=draw(st.none() | st.floats(0, 1e6)),
        peak_bytes=draw(st.none() | st.just(tuple(range(len(stages))))),
        ties=tuple(draw(st.dictionaries(st.text(), strategies.map(lambda s: s.keeping), max_size=3)).items()),
        search=draw(st.builds(Searched, st.text(), st.integers(0, 2**50), st.floats(0, 1e6), st.floats(0, 1))),
    )


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_document_round_trip(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan


def test_equal_neighbours_share_a_line() -> None:
    plan = resolve(chain([1] * 12), "pp2/m4/1f1b/dp1-tp2", 8, 4)
    lines = plan.to_json().splitlines()
    assert sum('"strategy"' in line for line in lines) == 2
    assert '      {"layers": 6, "strategy": "dp1-tp2"}' in lines
    assert str(plan) == "pp2/m4/1f1b: stage 0 dp1-tp2 ×6 | stage 1 dp1-tp2 ×6"


def test_what_is_shared_has_a_line() -> None:
    """A strategy there says axes and ZeRO level, and what cuts no parameters is whole."""
    kept = {"table": "dp2-tp2-zero1", "scale": "whole"}
    plan = resolve(chain([1] * 12), "tp4", 8, 4)
    assert "ties" not in plan.to_json()
    written = {"table": "dp2-tp2-zero1-recompute", "scale": "dp4"}
    read = Plan.from_json(json.dumps({**json.loads(plan.to_json()), "ties": written}))
    assert f'  "ties": {json.dumps(kept)},' in read.to_json().splitlines()
    assert str(read).endswith("stage 0 tp4 ×12 | table dp2-tp2-zero1 | scale whole")


def test_files(tmp_path: Path) -> None:
    plan = resolve(chain([1, 2, 3]), "dp4", 8, 4)
    path = tmp_path / "new" / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    assert [p.name for p in path.parent.iterdir()] == ["plan.json"]
    path.write_text(plan.to_json()[:-30])
    with pytest.raises(ParseError, match=r"plan.json: line \d+, column \d+") as error:
        Plan.load(path)
    assert error.value.line
    with pytest.raises(PlanError, match="cannot read plan"):
        Plan.load(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schedule", "1f1bb", "'schedule': unknown schedule '1f1bb'; did you mean '1f1b'"),
        ("world_size", "4", "'world_size' must be a whole number"),
        ("world_size", True, "'world_size' must be a whole number"),
        ("micro_batches", 0, "'micro_batches' must be a whole number of at least 1"),
        ("fingerprint", 3, "'fingerprint' must be text"),
        ("step_time_s", "fast", "'step_time_s' must be a number"),
        ("peak_bytes", [1.5], "'peak_bytes' must be a list"),
        ("peak_bytes", [1, 2], "'peak_bytes' has 2 entries for 1 pipeline ranks"),
        ("stages", [], "'stages' must be a list"),
        ("stages", [[]], "'stages' must be a list"),
        ("stages", [["dp4"]], r"'stages\[0\]\[0\]' must look like"),
        ("stages", [[{"layers": 3, "strategy": "dp3"}]], "stage 0: strategy 'dp3' is for 3 devices"),
        ("stages", [[{"layers": 3, "strategy": "dq4"}]], r"stages\[0\]\[0\].strategy': strategy 'dq4'.*did you mean"),
        ("format", "other", "'format' must be"),
        ("version", 2, "'version' is 2"),
        ("colour", 1, "'colour' is unknown"),
        ("search", {"gap": 2.0}, "'search' must have a budget and a bound"),
        ("search", {"budget": 2}, "plan search field 'budget' is unknown; did you mean 'budget_bytes'"),
        ("global_batch_size", 7, "divisible by 4"),
        ("ties", [["table", "whole"]], "'ties' must look like"),
        ("ties", {"table": None}, "'ties' must look like"),
        ("ties", {"table": "hole"}, "'ties': strategy 'hole': unknown token 'hole'.*a strategy, or whole"),
    ],
)
def test_bad_documents(field: str, value: object, message: str) -> None:
    document = json.loads(resolve(chain([1, 2, 3]), "dp4", 8, 4).to_json())
    with pytest.raises(PlanError, match=message):
        Plan.from_json(json.dumps({**document, field: value}))


GOOD = """\
{
  "format": "galvatron-plan", "version": 1, "fingerprint": "f", "world_size": 4, "global_batch_size": 8,
  "micro_batches": 1, "schedule": "1f1b", "step_time_s": 0.5,
  "stages": [[{"layers": 3, "strategy": "dp4"}]]
}"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3,", "1000000000,", r"stages\[0\]\[0\].layers' must be at most 100000, not 1000000000"),
        (
            '[{"layers": 3, "strategy": "dp4"}]',
            ", ".join(['[{"layers": 60000, "strategy": "dp4"}]'] * 2),
            "than 100000",
        ),
        ("[[{", "[" * 100_000 + "{", "line 4, column 28: plan nests deeper than 16"),
        ('"f"', '{"a":' * 100_000, "plan nests deeper than 16"),
        (" 8,", " " + "9" * 5000 + ",", "line 2, column 103: plan has a number of more than 320 digits"),
        (" 8,", " " + "9" * 300 + ",", "'global_batch_size' must be at most"),
        (' 4, "g', ' 99999999, "g', "'world_size' must be at most 1048576"),
        ('"micro_batches": 1', '"micro_batches": 100001', "'micro_batches' must be at most 100000"),
        ('"micro_batches": 1', '"micro_batches": 1e0', "'micro_batches' must be a whole number"),
        ('"micro_batches": 1', '"micro_batches": true', "'micro_batches' must be a whole number, not True"),
        ('"version": 1', '"version": true', "'version' is True"),
        ('"version": 1', '"version": 1.0', "'version' is 1.0"),
        ("0.5", "true", "'step_time_s' must be a number"),
        ("0.5", "NaN", "line 3, column 58: plan has NaN, which is not a finite number"),
        ("0.5", "-Infinity", "plan has -Infinity, which is not a finite number"),
        ("0.5", "1e999", "'step_time_s' must be a number"),
        ("0.5", "9" * 319, "'step_time_s' must be a number"),
        ('"f"', '"\\ud800"', r"'fingerprint' must be text, not '\\ud800'"),
        ('"f"', '"' + "f" * 70_000 + '"', "'fingerprint' must be text, not 'fff"),
        ('"format"', '"\\udc00": 1, "format"', r"'\\udc00' is unknown"),
        ('"world_size": 4', '"world_size": 2, "world_size": 4', "plan gives 'world_size' twice in one object"),
        ('"layers": 3', '"layers": 2, "layers": 3', "plan gives 'layers' twice"),
        ("0.5", '0.5, "peak_bytes": [true]', "'peak_bytes' must be a list of whole numbers"),
        ("0.5", '0.5, "peak_bytes": ' + str([1.5] * 10_000), "'peak_bytes' must be a list of whole numbers"),
        ('"1f1b"', '"interleaved' + "9" * 5000 + '"', "'schedule': unknown schedule"),
        ('"1f1b"', '"interleaved²"', "'schedule': unknown schedule"),
        ('"dp4"', '"dp' + "4" * 5000 + '"', "unknown token"),
        ('"dp4"', '"dp٤"', "unknown token"),
        ('"dp4"', '""', "unknown token"),
        ("{", "\ufeff{", "plan is not valid JSON"),
        (GOOD, "", "plan is not valid JSON"),
        (GOOD, "[]", "a plan is a JSON object"),
        (GOOD, " " * (1 << 24) + GOOD, "at most 16777216 are read"),
        (GOOD, GOOD + '"', "plan is not valid JSON"),
    ],
    ids=lambda text: ascii(text)[:24],
)
def test_documents_of_strangers(old: str, new: str, message: str) -> None:
    assert old in GOOD
    Plan.from_json(GOOD)
    with pytest.raises((ParseError, PlanError), match=message) as caught:
        Plan.from_json(GOOD.replace(old, new, 1))
    assert len(str(caught.value)) < 15_000
    str(caught.value).encode()


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800", "a/" * 3000, "", ".", "/dev", "plan.txt/x.json"])
def test_paths_that_are_no_plan_files(name: str, tmp_path: Path) -> None:
    program = chain([1, 2, 3])
    (tmp_path / "plan.txt").write_bytes(b"\xff\xfe")
    for text in (name, f"{name}.json", str(tmp_path / name), str(tmp_path / "plan.txt")):
        with pytest.raises((PlanError, StrategyError)) as caught:
            Plan.load(text) if names_plan_file(text) else resolve(program, text, 8, 4)
        assert "Traceback" not in str(caught.value)
    with pytest.raises(PlanError, match="cannot write plan"):
        resolve(program, "dp4", 8, 4).save("/dev/null/x/plan.json" if name != "a\0b" else name)


def test_a_directory_that_is_called_like_a_shorthand_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dp4").mkdir()
    (tmp_path / "plans").mkdir()
    assert not names_plan_file("dp4")
    with pytest.raises(PlanError, match="cannot read plan 'plans': .*directory"):
        Plan.load("plans" if names_plan_file("plans") else "")


def test_missing_fields_are_named() -> None:
    document = json.loads(resolve(chain([1, 2, 3]), "dp4", 8, 4).to_json())
    for field in ("fingerprint", "world_size", "micro_batches", "stages"):
        with pytest.raises(PlanError, match=f"{field!r} is missing"):
            Plan.from_json(json.dumps({k: v for k, v in document.items() if k != field}))
    with pytest.raises(PlanError, match="JSON object"):
        Plan.from_json("[1]")


@pytest.mark.parametrize("text", ["pp2/m4/1f1b/dp1-tp2", "pp1/m1/gpipe/dp2-tp2+sp-zero3"])
def test_shorthand_round_trip(text: str) -> None:
    assert str(PlanShorthand.parse(text)) == text


def test_shorthand_defaults() -> None:
    assert str(PlanShorthand.parse("dp4")) == "pp1/m1/dp4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pp2/m4/1f1bb/dp1-tp2", "unknown part '1f1bb'; did you mean '1f1b'"),
        ("pp2/m4/gpip/dp1-tp2", "did you mean 'gpipe'"),
        ("pp2/pp4/dp2", "pipeline degree is given twice"),
        ("pp0/dp2", "unknown part 'pp0'"),
        ("pp2/m4/1f1b", "must end in a strategy"),
        ("pp2/m4/1f1b/dp1/", "must end in a strategy, such as 'dp2-tp2', not in '/'"),
        ("pp2,m4,1f1b,dp1", "known: cp2, dp2, ep2, recompute"),
        ("pp2/xx4", "known: cp4, dp4, ep4, recompute, recompute=alternate, recompute=attention, recompute=selective, "),
        ("pp2/m4/1f1b/tq2", "unknown token 'tq2'; did you mean 'tp2'"),
        ("pp1/m1/foo", "unknown token 'foo'; .*; schedules, which stand before it, are gpipe, 1f1b, "),
        ("", "the plan is empty"),
        ("pp" + "9" * 5000 + "/dp2", "unknown part 'pp9"),
        ("m" + "9" * 5000 + "/dp2", "unknown part 'm9"),
        ("pp2/dp" + "9" * 5000, "unknown token"),
    ],
)
def test_bad_shorthand(text: str, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        PlanShorthand.parse(text)


@pytest.mark.parametrize(
    ("shorthand", "batch", "world", "message"),
    [
        ("dp4", 6, 4, "a batch of 6 samples cannot be divided .* divisible by 4"),
        ("m4/dp2", 12, 2, "divisible by 8"),
        ("dp4", 8, 8, "is for 4 devices, but there are 8"),
        ("pp4/m4/dp1", 8, 4, "more stages \\(4\\) than the program has layers"),
        ("pp3/m1/interleaved2/dp1", 8, 3, "more stages \\(6\\) than the program has layers"),
    ],
)
def test_shorthand_that_does_not_fit(shorthand: str, batch: int, world: int, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        resolve(chain([1, 1, 1]), shorthand, batch, world)


def test_check_refuses_what_belongs_elsewhere() -> None:
    program = chain([1, 1, 1])
    plan = resolve(program, "pp2/m2/dp2", 8, 4)
    check(plan, program, 4, 8)
    with pytest.raises(PlanError, match="another model"):
        check(replace(plan, fingerprint="0" * 16), program, 4, 8)
    with pytest.raises(PlanError, match="start 4 processes"):
        check(plan, program, 2, 8)
    with pytest.raises(PlanError, match="for 2 layers, but the program has 3"):
        check(replace(plan, stages=(plan.stages[0][:1], plan.stages[1][:1])), program, 4, 8)
    with pytest.raises(PlanError, match="there is no tie 'table' .*; no layers of the program share parameters"):
        check(replace(plan, ties=(("table", None),)), program, 4, 8)
    with pytest.raises(PlanError, match="stage 1 of the plan has no layers"):
        check(replace(plan, stages=(plan.strategies, ())), program, 4, 8)
    with pytest.raises(PlanError, match="a batch of 6"):
        check(plan, program, 4, 6)
    with pytest.raises(PlanError, match="unknown schedule '1f1c'"):
        check(replace(plan, schedule="1f1c"), program, 4, 8)


class Counted(str):
    """A name that counts how often it is compared with another."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return super().__eq__(other)

    __hash__ = str.__hash__


def test_ties_are_not_compared_with_one_another() -> None:
    plan = resolve(chain([1, 1]), "pp2/m2/dp2", 8, 4)
    names = [Counted(f"tie{i}") for i in range(500)]
    told = dict.fromkeys((str(name) for name in names), [0, 1])
    before = Counted.compared
    assert not list(plan_rules.ties(replace(plan, ties=tuple((name, None) for name in names)), ["a", "b"], told))
    assert Counted.compared - before < 10 * len(names)


def test_stages_are_balanced_by_cost() -> None:
    plan = resolve(chain([1, 10, 10, 10, 10, 40]), "pp2/m2/dp1", 8, 2)
    assert [len(stage) for stage in plan.stages] == [5, 1]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(1, 8))
def test_balanced_minimises_the_largest_part(weights: list[int], parts: int) -> None:
    if parts > len(weights):
        return
    sizes = balanced(weights, parts)
    assert len(sizes) == parts and min(sizes) > 0 and sum(sizes) == len(weights)

    def largest(cuts: tuple[int, ...]) -> int:
        edges = [0, *cuts, len(weights)]
        return max(sum(weights[a:b]) for a, b in itertools.pairwise(edges))

    best = min(largest(cuts) for cuts in itertools.combinations(range(1, len(weights)), parts - 1))
    assert largest(tuple(itertools.accumulate(sizes))[:-1]) == best
