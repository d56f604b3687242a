"""What the sharded program says is sent, against Megatron's patterns and against what a rank really sends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch

from galvatron import runtime as rt
from galvatron.costs.events import CollectiveCall
from galvatron.errors import GalvatronError
from galvatron.ir.capture import capture_graph
from galvatron.ir.cluster import Cluster
from galvatron.ir.collectives import copies
from galvatron.ir.graph import Arg, Op
from galvatron.ir.network import Level
from galvatron.ir.plan import Plan
from galvatron.ir.program import Form, LayerKind, Program
from galvatron.ir.strategy import Strategy
from galvatron.passes import FRONT_END, LOWERING
from galvatron.passes.pipeline import Pipeline
from galvatron.schedules import Schedule
from tests.costs.communication import Communication, counts, layer_communication, stage_communication
from tests.marks import some_slow
from tests.parity import harness, routed
from tests.parity.subjects import Batch
from tests.ranks import run_ranks

PAIR = (2, 1)
PLANS = [
    "tp2+sp", "ulysses2", "cp2", "m2/tp2", "m2/dp2", "dp2-tp2+sp", "cp2-tp2", "m2/dp2-zero1", "m2/dp2-zero2",
    "m2/dp2-zero3", "m2/dp2-tp2+sp-zero3", "m2/tp2-recompute", "tp2+sp-recompute", "cp2-recompute",
    "ulysses2-recompute=selective", "dp2-tp2-zero3-recompute",
]  # fmt: skip
OTHER_PLANS = [
    "tp2", "dp2", "ulysses2-tp2", "m2/dp2-ulysses2-zero3", "m2/tp4", "tp4+sp", "m2/tp4-zero3", "ulysses2-recompute",
    "m2/tp2-recompute=selective", "tp2+sp-recompute=selective", "cp2-recompute=selective",
    "dp2-tp2-zero3-recompute=selective",
]  # fmt: skip


def slow_device(cluster: Cluster) -> Cluster:
    """A device on which small matrices cost what large ones cost elsewhere, so that small models are worth sharding."""
    device = replace(cluster.device, matmul_flop_per_s=(("f64", 1e9),), kernel_launch_s=0.0)
    return replace(cluster, device=device, levels=(Level("node", cluster.world_size, 235e9, 0.0),))


@cache
def small(plan: str) -> Program:
    """A tiny Llama under a plan, planned."""
    program = harness.planned("llama", plan, Strategy.parse(plan.split("/")[-1]).devices)
    assert program.cluster is not None
    return replace(program, cluster=slow_device(program.cluster))


@cache
def large() -> Program:
    """Two blocks of Llama-2-7B."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=2, num_attention_heads=32,
        num_key_value_heads=32, use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
        tokens = torch.zeros(4, 2048, dtype=torch.long)
    captured = capture_graph(model, {"input_ids": tokens, "labels": tokens}).program
    return Pipeline.of((*FRONT_END, "annotate-costs")).run(captured)


def large_block(strategy: str) -> Communication:
    """What one block of the large model communicates."""
    program, parsed = large(), Strategy.parse(strategy)
    layers = sum(layer.kind is LayerKind.PLANNED for layer in program.layers)
    plan = Plan(
        program.fingerprint, parsed.devices, program.batch_size, micro_batches=1, schedule="1f1b",
        stages=((parsed,) * layers,),
    )  # fmt: skip
    cluster = harness.proportional(Cluster.parse(f"a100-80g:1x{parsed.devices}"))
    planned = replace(program, form=Form.PLANNED, cluster=cluster, plan=plan)
    sharded = Pipeline.of(LOWERING[:1]).run(planned)
    repeated = Counter(layer.cls for layer in sharded.all_layers).most_common(1)
    assert repeated[0][1] == 2
    return layer_communication(sharded, repeated[0][0])


@pytest.mark.slow
def test_tensor_parallelism_sends_what_megatron_sends():
    block = large_block("tp2")
    assert counts(block.forward) == counts(block.backward) == {("all_reduce", PAIR): 2}


def test_sequence_parallelism_sends_what_megatron_sends():
    block = large_block("tp2+sp")
    pairs = {("all_gather", PAIR): 2, ("reduce_scatter", PAIR): 2}
    assert counts(block.forward) == counts(block.backward) == pairs


def test_ulysses_exchanges_queries_keys_values_and_the_result():
    block = large_block("ulysses8")
    assert counts(block.forward) == counts(block.backward) == {("all_to_all", (8, 1)): 4}


def test_ulysses_on_two_ranks_gathers_the_input_once_for_less():
    block = large_block("ulysses2")
    assert counts(block.forward) == {("all_gather", PAIR): 1, ("all_to_all", PAIR): 1}
    assert counts(block.backward) == {("reduce_scatter", PAIR): 1, ("all_to_all", PAIR): 1}


def test_data_parallelism_sends_nothing_inside_a_block():
    block = large_block("dp2")
    assert not block.forward
    assert not block.backward


def test_context_parallelism_sends_round_the_ring():
    block = large_block("cp2")
    assert counts(block.forward) == {("p2p", PAIR): 1}
    assert counts(block.backward) == {("p2p", PAIR): 2}


def test_a_full_replay_sends_again_what_comes_before_the_last_tensor_that_is_missing():
    block = large_block("tp2-recompute")
    assert counts(block.forward) == {("all_reduce", PAIR): 2}
    assert counts(block.backward) == {("all_reduce", PAIR): 2 + 1}
    block = large_block("tp2+sp-recompute")
    assert counts(block.forward) == {("all_gather", PAIR): 2, ("reduce_scatter", PAIR): 2}
    assert counts(block.backward) == {("all_gather", PAIR): 2 + 2, ("reduce_scatter", PAIR): 2 + 1}


@pytest.mark.parametrize("roles", ["tp2", "tp2+sp", "ulysses2", "cp2"])
def test_a_selective_replay_sends_nothing(roles: str):
    assert large_block(f"{roles}-recompute=selective") == large_block(roles)


def bytes_by_channel(events: Iterable[CollectiveCall], batch: int) -> Counter[tuple[str, tuple[int, int]]]:
    total: Counter[tuple[str, tuple[int, int]]] = Counter()
    for event in events:
        total[event.kind, (event.axis.size, event.axis.stride)] += round(event.payload_bytes(batch))
    return total


def counted_step(world: rt.World, job: harness.Job, batch: Batch) -> rt.CommunicationCounter:
    program = harness.executor(world, job)
    program.forward_backward(batch)
    with rt.CommunicationCounter() as counter:
        program.forward_backward(batch)
    return counter


def _without(events: Sequence[CollectiveCall], fewer: Iterable[CollectiveCall]) -> list[CollectiveCall]:
    left = list(events)
    for event in fewer:
        left.remove(event)
    return left


@pytest.mark.one_in(6)
@pytest.mark.parametrize("plan", some_slow(PLANS, OTHER_PLANS))
def test_a_rank_sends_what_the_program_says(plan):
    strategy = Strategy.parse(plan.split("/")[-1])
    program = small(f"pp1/m{2 if plan.startswith('m2') else 1}/1f1b/{strategy}")
    assert program.plan is not None
    micro_batches = program.plan.micro_batches
    expected = stage_communication(Pipeline.of(LOWERING).run(program))
    job = harness.job_of("llama", program)
    batch = harness.subject("llama").batch(harness.BATCH_SIZE, 1)
    share = harness.BATCH_SIZE // micro_batches // strategy.degree("dp")
    for counter in run_ranks(counted_step, strategy.devices, job, batch):
        for phase, events in (("forward", expected.forward), ("backward", expected.backward)):
            assert counter.counts(phase) == counts(micro_batches * events)
            assert counter.payload_bytes(phase) == bytes_by_channel(micro_batches * events, share)
        turns = Schedule.parse("1f1b").turns(1, micro_batches)
        each = [*expected.state.forward, *expected.state.backward]
        sent = [*(micro_batches - turns) * each, *turns * _without(each, expected.kept), *expected.state.step]
        gathers = [event for event in sent if event.kind == "all_gather"]
        sums = [event for event in sent if event.kind != "all_gather"]
        for phase, events in (("parameters", gathers), ("gradients", sums)):
            assert counter.payload_bytes(phase) == bytes_by_channel(events, share)
        if any(event.kind == "all_gather" for event in expected.state.forward):
            assert counter.counts("parameters") == counts(tuple(gathers))
            assert counter.counts("gradients") == counts(tuple(sums))
        assert sum(counter.counts("totals").values()) == 1


@pytest.mark.parametrize("schedule", some_slow(["gpipe"], ["1f1b", "interleaved2"]))
def test_a_pipeline_gathers_again_what_is_not_there(schedule: str) -> None:
    """In its last stage the values of the last layer are, where the backward follows at once."""
    micro_batches, degree = 4, 2
    program = harness.planned("llama", f"pp{degree}/m{micro_batches}/{schedule}/dp2-zero3", 4)
    staged = Pipeline.of(LOWERING).run(program)
    batch = harness.subject("llama").batch(harness.BATCH_SIZE, 1)
    found = run_ranks(counted_step, 4, harness.job_of_staged("llama", staged), batch, timeout=120)
    order = Schedule.parse(schedule)
    expected: list[Counter[tuple[str, tuple[int, int]]]] = [Counter() for _ in range(degree)]
    for stage, holder in enumerate(order.holders(degree)):
        told = stage_communication(staged, stage)
        gathers = [e for e in (*told.state.forward, *told.state.backward) if e.kind == "all_gather"]
        expected[holder] += counts((*micro_batches * gathers,))
        expected[holder] -= counts((*order.turns(degree, micro_batches) * told.kept,))
    assert [counter.counts("parameters") for counter in found] == [expected[rank // 2] for rank in range(4)]


def test_only_sharded_programs_have_collectives():
    program = small("tp2")
    with pytest.raises(GalvatronError, match="shard it first"):
        layer_communication(program, "decoder")
    with pytest.raises(GalvatronError, match="staged program"):
        stage_communication(Pipeline.of(LOWERING[:1]).run(program))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("plan", ["m1/dp2", "m1/tp2", "m1/dp2-recompute", "m1/dp2-recompute=selective"])
def test_batch_norms_send_what_the_program_says(plan: str) -> None:
    program = harness.planned("state: residual", plan, 2)
    expected = stage_communication(Pipeline.of(LOWERING).run(program))
    job = harness.job_of("state: residual", program)
    batch = harness.subject("state: residual").batch(harness.BATCH_SIZE, 1)
    share = harness.BATCH_SIZE // Strategy.parse(plan.split("/")[-1]).degree("dp")
    for counter in run_ranks(counted_step, 2, job, batch):
        for phase, events in (("forward", expected.forward), ("backward", expected.backward)):
            assert counter.counts(phase) == counts(events)
            assert counter.payload_bytes(phase) == bytes_by_channel(events, share)


@pytest.mark.parametrize(
    "plan", some_slow(["m2/ep2"], ["m1/dp2-ep2", "m2/ep4-zero3", "m1/ep2-tp2", "m2/ep2-recompute"])
)
def test_rows_go_to_their_experts_as_the_program_says(plan: str) -> None:
    """Where each expert has equally many. Beside that ranks tell each other how many rows go where, once for all
    layers, which have the same ids."""
    name, strategy = "routed: hash", Strategy.parse(plan.split("/")[1])
    program = harness.planned(name, plan, strategy.devices)
    assert program.plan is not None
    micro_batches, staged = program.plan.micro_batches, Pipeline.of(LOWERING).run(program)
    expected = stage_communication(staged)
    batch = harness.subject(name).batch(harness.BATCH_SIZE, 1)
    batch["tokens"] = torch.arange(routed.TOKENS).expand_as(batch["tokens"])
    share = harness.BATCH_SIZE // micro_batches // (strategy.degree("dp") * strategy.degree("ep"))
    ranks = strategy.degree("ep")
    axis = ranks, strategy.degree("tp")
    told, told_bytes = (Counter({("all_to_all", axis): micro_batches * n}) for n in (1, 8 * (routed.EXPERTS + ranks)))
    assert counts(expected.forward)["all_to_all", axis] > 0
    for counter in run_ranks(counted_step, strategy.devices, harness.job_of_staged(name, staged), batch):
        forward, backward = micro_batches * expected.forward, micro_batches * expected.backward
        assert counter.counts("forward") == counts(forward) + told
        assert counter.payload_bytes("forward") == bytes_by_channel(forward, share) + told_bytes
        assert counter.counts("backward") == counts(backward)
        assert counter.payload_bytes("backward") == bytes_by_channel(backward, share)


@pytest.mark.parametrize(
    "plan", some_slow([], ["m2/ep2", "m1/ep2-tp2", "m2/ep2-recompute", "m2/ep2-recompute=selective"])
)
def test_ranks_tell_each_other_in_each_layer_how_many_rows_go_where(plan: str) -> None:
    """As often as the program says, computed again or not: its ids are those of a router in the layer."""
    name, strategy = "routed: top two", Strategy.parse(plan.split("/")[1])
    program = harness.planned(name, plan, strategy.devices)
    assert program.plan is not None
    micro_batches, staged = program.plan.micro_batches, Pipeline.of(LOWERING).run(program)
    expected, batch = stage_communication(staged), harness.subject(name).batch(harness.BATCH_SIZE, 1)
    told = [event for event in expected.forward if event.at_once]
    assert len(told) == 2
    assert {event.payload_bytes(1) for event in told} == {8 * (routed.EXPERTS + strategy.degree("ep"))}
    for counter in run_ranks(counted_step, strategy.devices, harness.job_of_staged(name, staged), batch):
        assert counter.counts("forward") == counts(micro_batches * expected.forward)
        assert counter.counts("backward") == counts(micro_batches * expected.backward)


WHOLE = {"dim": 1, "outer": 1}
EXCHANGED = {"split_dim": 2, "split_outer": 1, "concat_dim": 1, "concat_outer": 1}


@pytest.mark.parametrize(
    ("name", "keywords", "there", "back"),
    [
        ("all_reduce", {"grad": "identity"}, 1, 0),
        ("all_reduce", {"grad": "all_reduce"}, 1, 1),
        ("all_gather", {**WHOLE, "grad": "reduce_scatter"}, 1, 1),
        ("all_gather", {**WHOLE, "dim": 0, "grad": "reduce_scatter"}, 0, 0),
        ("all_gather", {**WHOLE, "grad": "slice"}, 1, 0),
        ("reduce_scatter", {**WHOLE, "dim": 0, "outer": 2}, 1, 1),
        ("all_to_all", EXCHANGED, 2, 2),
        ("all_to_all", {**EXCHANGED, "split_dim": 0}, 1, 1),
    ],
)
def test_what_is_sent_is_laid_out_first(name: str, keywords: dict[str, Arg], there: int, back: int):
    op = Op(f"comm.{name}", ("%x",), (("axis", "tp"), *keywords.items()), ())
    assert copies(op) == (there, back)
