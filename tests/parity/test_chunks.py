"""Rows that go to their experts in chunks: losses, gradients and weights are those of one device, and what is sent is
what the program says."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from galvatron.codegen import emit
from galvatron.codegen.layout import WIDTH
from galvatron.costs.estimate import estimate_plan
from galvatron.errors import VerifyError
from galvatron.forms import lowered
from galvatron.ir.chunks import in_chunks
from galvatron.ir.collectives import ALSO
from galvatron.ir.network import Level
from galvatron.ir.planned import PlanShorthand
from galvatron.ir.program import Program
from galvatron.ir.strategy import Strategy
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.verify import verify
from galvatron.passes import LOWERING
from galvatron.passes.pipeline import Pipeline
from tests.costs.communication import counts, stage_communication
from tests.costs.test_communication import bytes_by_channel, counted_step
from tests.marks import some_slow
from tests.parity import harness, routed
from tests.parity.harness import BATCH_SIZE, check_program, job_of, job_of_staged, planned, relative_errors, subject
from tests.parity.test_expert_training import alike
from tests.parity.training import assert_same_training, batches, train
from tests.ranks import run_ranks

MODELS = ["mixtral-batched_mm", "deepseek-v3-batched_mm", "routed: loop"]
PLANS = [
    "m1/ep2", "m1/ep4", "m2/dp2-ep2", "m1/ep2-tp2", "m1/ep2-ulysses2", "m1/ep2-cp2", "m2/ep2-recompute",
    "m2/ep2-recompute=selective", "m2/ep2-zero3", "pp2/m4/zbv/ep2",
]  # fmt: skip


def where_chunks_pay(name: str, plan: str, *, overlap: bool = True) -> Program:
    """A program for a cluster on which nothing takes time but products of matrices and the bytes of messages, so that
    small ones are as good as large ones."""
    program = planned(name, plan, PlanShorthand.parse(plan).world_size, overlap=overlap)
    assert program.cluster is not None
    free = {"kernel_launch_s": 1e-12, "memory_bytes_per_s": 1e18, "host_op_s": 0.0, "host_view_s": 0.0}
    device = replace(program.cluster.device, **free)
    level = Level("node", program.cluster.world_size, 100e9, 1e-12)
    return replace(program, cluster=replace(program.cluster, device=device, levels=(level,)))


def chunks(program: Program) -> list[int]:
    """In how many chunks rows go to their experts, in each class in which some do."""
    sent = ([op.kwarg(ALSO, ()) for op in cls.graph.ops if op.target == "comm.dispatch"] for cls in program.classes)
    return [1 + max(len(also) for also in each if isinstance(also, tuple)) for each in sent if each]


@pytest.mark.parametrize(
    ("model", "plan"),
    some_slow([("routed: loop", "m2/ep2")], [(model, plan) for model in MODELS for plan in PLANS]),
)
def test_equals_eager(model: str, plan: str) -> None:
    program = where_chunks_pay(model, plan)
    assert min(chunks(lowered(program))) > 1
    check_program(model, program, subject(model).batch(BATCH_SIZE, 1))


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["m1/ep4", "m2/dp2-ep2", "m2/ep2-tp2-zero3", "pp2/m4/1f1b/ep2", "m2/ep2-recompute"])
@pytest.mark.parametrize("model", MODELS)
def test_three_steps_equal_one_device(model: str, plan: str) -> None:
    ranks, program = PlanShorthand.parse(plan).world_size, where_chunks_pay(model, plan)
    assert min(chunks(lowered(program))) > 1
    assert_same_training(model, plan, run_ranks(train, ranks, job_of(model, program), batches(model), timeout=240))


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["m1/ep4", "m1/ep2-tp2", "m2/ep2-recompute"])
@pytest.mark.parametrize("model", MODELS[:2])
def test_some_experts_have_all_rows_and_others_none(model: str, plan: str) -> None:
    check_program(model, where_chunks_pay(model, plan), alike(model))


def staged(name: str, plan: str, count: int) -> Program:
    """A staged program with rows in so many chunks, and nothing beside their messages."""
    program = Pipeline.of(LOWERING).run(planned(name, plan, PlanShorthand.parse(plan).world_size))
    cut = tuple(replace(cls, graph=in_chunks(cls.graph, count)) for cls in program.classes)
    found = replace(program, classes=cut)
    assert set(chunks(found)) == {count}
    return found


@pytest.mark.parametrize(
    ("model", "plan", "count"),
    some_slow(
        [],
        [("routed: loop", "m2/ep2", 3)]
        + [("mixtral-batched_mm", plan, 5) for plan in ("m1/ep4", "m1/ep2-tp2+sp", "m1/ep2-cp2", "pp2/m2/1f1b/ep2")],
    ),
)
def test_chunks_of_unequal_sizes(model: str, plan: str, count: int) -> None:
    batch = subject(model).batch(BATCH_SIZE, 1)
    job = job_of_staged(model, staged(model, plan, count))
    (loss, gradients), *_ = run_ranks(harness.run_step, PlanShorthand.parse(plan).world_size, job, batch)
    errors = relative_errors(loss, gradients, harness.eager(model, batch))
    assert max(errors.values()) <= 1e-9, errors


@pytest.mark.parametrize(
    "plan", some_slow([], ["m2/ep2", "m1/ep2-tp2", "m2/ep2-recompute", "m2/ep2-recompute=selective"])
)
@pytest.mark.parametrize("overlap", [False, True])
def test_ranks_send_what_the_program_says(plan: str, overlap: bool) -> None:
    """They tell each other once how many rows of all chunks go where."""
    name, strategy = "routed: top two", Strategy.parse(plan.split("/")[1])
    if overlap:
        program = Pipeline.of(LOWERING).run(where_chunks_pay(name, plan))
        assert min(chunks(program)) > 1
    else:
        program = staged(name, plan, 2)
    assert program.plan is not None
    micro_batches, expected = program.plan.micro_batches, stage_communication(program)
    told = [event for event in expected.forward if event.at_once]
    (count,) = set(chunks(program))
    assert len(told) == 2
    assert {e.payload_bytes(1) for e in told} == {8 * count * (routed.EXPERTS + strategy.degree("ep"))}
    batch = subject(name).batch(BATCH_SIZE, 1)
    for counter in run_ranks(counted_step, strategy.devices, job_of_staged(name, program), batch):
        assert counter.counts("forward") == counts(micro_batches * expected.forward)
        assert counter.counts("backward") == counts(micro_batches * expected.backward)


@pytest.mark.slow
def test_chunks_have_the_bytes_of_all_rows() -> None:
    whole, cut = (stage_communication(staged("routed: top two", "m1/ep2", count)) for count in (1, 2))
    for one, other in ((whole.forward, cut.forward), (whole.backward, cut.backward)):
        sent = [bytes_by_channel([e for e in events if not e.at_once], 8) for events in (one, other)]
        assert sent[0] == sent[1]


@pytest.mark.parametrize("recompute", some_slow(["none"], ["full", "selective"]))
def test_plans_are_told_to_be_faster_and_are_chunked_as_told(recompute: str) -> None:
    plan = "m1/ep2" if recompute == "none" else f"m1/ep2-recompute={recompute}".replace("=full", "")
    with_chunks, without = (where_chunks_pay(MODELS[2], plan, overlap=overlap) for overlap in (True, False))
    times = [estimate_plan(program, program.required_plan)[0] for program in (with_chunks, without)]
    assert times[0] < times[1]
    assert chunks(lowered(without)) == [1]


@cache
def layer() -> str:
    """A program whose rows go to two ranks in two chunks."""
    return print_program(staged("mixtral-batched_mm", "m1/ep2", 2))


WRONG = {
    "products of one chunk by another": ("experts.gate_up_proj, %reshape_6.0,", "experts.gate_up_proj, %reshape_6.1,"),
    "another chunk's numbers": ("(%silu.0, %split_1.0)", "(%silu.0, %split_1.1)"),
    "back by another chunk": ("comm.combine(%grouped_linear_1.0,", "comm.combine(%grouped_linear_1.1,"),
    "a chunk is missing": (", %grouped_linear_1.combine.blocks.1]", "]"),
    "told of floats": ("also=[%reshape_6.1]", "also=[%repeat_interleave.1]"),
}


@pytest.mark.slow
@pytest.mark.parametrize("old, new", WRONG.values(), ids=WRONG)
def test_chunks_that_are_mixed_up_or_lost_are_refused(old: str, new: str) -> None:
    assert layer().count(old) == 1
    with pytest.raises(VerifyError):
        verify(parse_program(layer().replace(old, new)))


@pytest.mark.slow
def test_emitted_code_has_no_long_lines() -> None:
    (text,) = emit(staged("mixtral-batched_mm", "m1/ep2", 4)).values()
    assert ") = repeat_interleave_blocks.split(" in text
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.slow
def test_the_text_reads_back() -> None:
    program = parse_program(layer())
    verify(program)
    assert print_program(program) == layer()
