"""Programs that are not as their plan says, or whose stages are not: for each rule the program, words of the message
and of the line."""

from __future__ import annotations

from dataclasses import replace

from galvatron.ir.cluster import Cluster
from galvatron.ir.graph import Ref
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Axis, Shard
from galvatron.ir.program import (
    BatchSizes,
    Candidates,
    Program,
    Transfer,
    Update,
)
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import BATCH, LOCAL_BATCH, MICRO_BATCHES, Dim, TensorType
from tests.ir.breaking import (
    ENDED,
    F32,
    FOLDED_ROWS,
    H2,
    KEPT,
    KEPT_ODD,
    OVERLAP,
    SUFFIX,
    TP8,
    collecting,
    kept_nowhere,
    loss_on_the_first_stage,
    two_masks,
    waiting,
    with_class,
    with_function,
    with_graph,
    with_layer,
    with_op,
    with_plan,
    with_stage,
    with_state,
    with_update,
    with_value,
)
from tests.ir.programs import (
    STRATEGY,
    costed,
    op,
    planned,
    rounded,
    sharded,
    staged,
    value,
    with_candidates,
)


def with_cost(**figures: Dim) -> Program:
    """A costed program with other figures of a class."""
    program = costed()
    cost = program.class_of["head"].cost
    assert cost is not None
    return with_class(program, "head", cost=replace(cost, **figures))


BROKEN: dict[str, list[tuple[Program, str, str]]] = {
    "updates-are-whole": [
        (with_update(sharded(), Update("counted", "loss")), "state is never a partial sum", "%loss, %more ="),
        (with_update(sharded(), Update("unused", "more")), "bf16[3] is no f32[]", "%loss, %more ="),
    ],
    "updates-are-kept": [
        (kept_nowhere(), "stage 1 updates other, which it does not keep", "%loss, %more ="),
    ],
    "costs-present": [(with_class(costed(), "head", cost=None), "@head has no cost", "class @head")],
    "costs-in-batch": [
        (with_cost(saved_bytes=LOCAL_BATCH), "the saved_bytes of @head are b: no number", "class @head"),
        (with_cost(forward_flop=1 / (BATCH - 8)), "the forward_flop of @head are", "class @head"),
        (with_cost(traffic_bytes=-1), "the traffic_bytes of @head are -1", "class @head"),
    ],
    "candidates-fit": [
        (replace(with_candidates(), candidates=(Candidates(0, "head", (STRATEGY,)),)), "is at least 1, not 0", "pp0"),
        (
            replace(with_candidates(), cluster=None, candidates=(Candidates(2, "head", (TP8, STRATEGY)),)),
            "strategies use [8, 16] devices in all; those of one list use the same number", "pp2",
        ),
        (replace(with_candidates(), candidates=(Candidates(2, "hed", ()),)), "unknown class @hed", "pp2 @hed"),
        (replace(with_candidates(), candidates=(Candidates(1, "head", (Strategy.parse("dp4"),)),)), "use [4]", "pp1"),
        (replace(with_candidates(), candidates=with_candidates().candidates * 2), "a second list", "pp2 @embedding"),
    ],
    "plan-belongs": [
        (with_plan(planned(), fingerprint="0"), "the plan is for another model", "fingerprint"),
        (with_plan(planned(), schedule="zigzag"), "unknown schedule", "schedule"),
        (with_plan(planned(), micro_batches=0), "at least 1", "micro_batches"),
        (with_plan(planned(), peak_bytes=(1,)), "1 entries for 2 pipeline ranks", "peak_bytes"),
        (with_plan(planned(), stages=(), peak_bytes=None), "no stages", "plan {"),
    ],
    "plan-covers-layers": [
        (with_plan(planned(), stages=((TP8,) * 7,), peak_bytes=None), "strategies for 7 layers", "plan {"),
        (with_plan(planned(), stages=((TP8,) * 6, ())), "stage 1 of the plan has no layers", "stage 1 = "),
    ],
    "plan-settles-ties": [
        (with_plan(planned(), ties=()), "does not say how the tie 'embed.weight' is kept", "plan {"),
        (
            with_plan(planned(), ties=(("embed.weight", None), ("embed.bias", None))),
            "there is no tie 'embed.bias' of parameters that layers share; did you mean 'embed.weight'?",
            "tie embed.bias = whole",
        ),
        (with_plan(planned(), ties=(("embed.weight", None),) * 2), "says twice", "tie embed.weight = whole"),
        (
            with_plan(planned(), ties=(("embed.weight", Strategy.parse("tp4")),)),
            "cannot be kept as under tp4: layer embedding has dp2-tp2; keep it whole, or",
            "tie embed.weight = tp4",
        ),
    ],
    "plan-uses-devices": [
        (with_plan(planned(), world_size=16), "'dp2-tp2' is for 4 devices, but 16", "stage 0 ="),
        (replace(planned(), cluster=Cluster.parse("a100-80g:1x4"), candidates=()), "the cluster has 4", "world_size"),
    ],
    "plan-divides-batch": [
        (
            replace(planned(), batch_sizes=BatchSizes(1, 8)),
            "a batch of 16 samples is outside from 1 to 8", "global_batch_size",
        ),
        (
            with_plan(planned(), global_batch_size=12),
            "a batch of 12 samples cannot be divided into 4 micro-batches of 2", "stage 0 =",
        ),
    ],
    "micro-batches-add-up": [
        (
            with_op(planned(), "head", "loss", target="aten.sqrt.default", args=(Ref("total"),)),
            "4 micro-batches do not add up to the batch: sqrt is not linear in a sum over the batch", "micro_batches",
        ),
        (
            with_graph(staged(), "count", lambda g: replace(g, ops=(
                *g.ops[:-1], op("aten.div.Tensor", (Ref("sum"), MICRO_BATCHES), value("share", "f32")),
                op("aten.sqrt.default", (Ref("share"),), value("c", "f32"))))),
            "4 micro-batches do not add up to the batch: sqrt is not linear in a sum over the batch", "micro_batches",
        ),
    ],
    "meshes-fit": [
        (with_class(sharded(), f"block{SUFFIX}", mesh=(Axis("dp", 2, 4), Axis("tp", 2, 1))), "not that of", "@block"),
        (
            with_class(sharded(), f"mask{SUFFIX}", strategy=None, mesh=(Axis("dp", 2, 4), Axis("tp", 2, 1))),
            "dp=2@4 does not tile the 4 devices", "@mask",
        ),
    ],
    "attention-waits-for-itself": [
        (waiting("attention"), "comm.all_reduce is started under recompute=attention", "%sum.started"),
    ],
    "strategies-as-planned": [
        (with_class(sharded(), f"block{SUFFIX}", strategy=None), "sharded for None", "block_0"),
        (ENDED, "the epilogue head belongs under dp2-tp2, but @head.dp2_tp2 is sharded for dp2-tp2-recompute", "head"),
    ],
    "state-shards": [
        (
            with_value(sharded(), f"block{SUFFIX}", "down.bias", layout=(Shard(0), REPLICATE)),
            "f32[8] as (dp=2@2: S(0), tp=2@1: R) is f32[4], not f32[8]", "state %down.bias",
        ),
        (
            with_value(sharded(), f"embedding{SUFFIX}", "embed.weight", layout=(PARTIAL, REPLICATE)),
            "state is never a partial sum", "state %embed.weight",
        ),
        (
            with_state(rounded(sharded()), "blocks.0.down.bias", trainable=False),
            "is f32[8], not bf16[8]", "block_0",
        ),
    ],
    "operands-fit": [
        (
            with_layer(sharded(), "block_1", operands=("mask", "mask")),
            "%mask is part of bool[B, 6, 1], but %x of @block.dp2_tp2 of f32[B, 6, 8]", "block_1",
        ),
        (
            with_value(staged(), "count", "labels", type=TensorType("i32", (BATCH, 6))),
            "%labels is part of i64[B, 6], but %labels of @count of i32[B, 6]", "count",
        ),
        (
            with_value(staged(), f"block{SUFFIX}", "m", type=TensorType("bool", (LOCAL_BATCH, 1, 1))),
            "%mask is part of bool[B, 6, 1], but %m of @block.dp2_tp2 of bool[B, 1, 1]", "block_0",
        ),
        (
            with_value(sharded(), f"head{SUFFIX}", "labels", layout=(REPLICATE, REPLICATE)),
            "%labels is part of i64[B, 6], but %labels of @head.dp2_tp2 of i64[B/2, 6]", "head",
        ),
        (
            with_value(sharded(), f"embedding{SUFFIX}", "ids", layout=(PARTIAL, REPLICATE)),
            "a batch input is never a partial sum", "embedding",
        ),
    ],
    "copies-agree": [
        (two_masks(target="aten.ge.Scalar"), "mask@1 computes %mask otherwise than another copy", "preamble mask@1"),
        (two_masks(args=(Ref("arange"), 1)), "mask@1 computes %mask otherwise than another copy", "preamble mask@1"),
    ],
    "epilogue-slices": [
        (
            collecting(value("w", "f32", 2 * LOCAL_BATCH, 3, 8, layout=(Shard(1), REPLICATE)), "comm.all_to_all",
                       split_dim=0, split_outer=1, concat_dim=1, concat_outer=1),
            "%h4 is S(1) on dp=2@2: its micro-batches are no shard of the batch", "epilogue head",
        ),
        (
            collecting(value("w", "f32", 2 * LOCAL_BATCH, 6, 8, layout=(REPLICATE, REPLICATE)), "comm.slice",
                       dim=0, outer=1, grad="all_gather"),
            "%h4 is R on dp=2@2: its micro-batches are no shard of the batch", "epilogue head",
        ),
    ],
    "ops-on-slices": [
        (
            with_function(
                sharded(), op("aten.cumsum.default", (Ref("gradient"), 2), value("sum", "f32", BATCH, 6, 16))
            ),
            "on tp it does not run with %up: S(2) to %silu: S(2), since %up and %silu hold parts of different", "%silu",
        ),
        (
            with_op(with_function(sharded()), f"block{SUFFIX}", "silu", args=(Ref("x"),)),
            "its operands are", "%silu",
        ),
        (
            with_op(sharded(), f"block{SUFFIX}", "add", args=(Ref("down"), Ref("down.bias"))),
            "on tp it does not run with %down: P, %down.bias: R to %add: R", "%add",
        ),
        (
            with_op(sharded(), f"block{SUFFIX}", "up", args=(Ref("x"), Ref("up.weight"))),
            "%x: R, %up.weight: S(0) to %up: S(2), since %x must be R'", "%up",
        ),
        (
            with_value(sharded(), f"block{SUFFIX}", "down.bias", layout=(REPLICATE, REPLICATE)),
            "on dp it does not run with %sum: S(0), %down.bias: R to %add: S(0), since %down.bias must be R'", "%add",
        ),
        (
            with_op(sharded(), f"head{SUFFIX}", "loss", result_value={"layout": (PARTIAL, PARTIAL)}),
            "on tp it does not run with %total: R, %c: R to %loss: P", "%loss",
        ),
        (
            with_op(sharded(), f"block{SUFFIX}", "silu", target="aten.renorm.default", args=(Ref("up"), 2, 0, 1.0)),
            "since nothing is known about its dimensions", "%silu",
        ),
        (
            with_value(sharded(), f"block{SUFFIX}", "up.weight", layout=(BROADCAST, Shard(0, folded=True))),
            "since only one of %up.weight and %up is folded", "%up",
        ),
        (FOLDED_ROWS, "it takes no folded slices", "%e"),
    ],
    "ties-as-planned": [
        (
            with_value(
                sharded(), f"embedding{SUFFIX}", "embed.weight",
                layout=(BROADCAST, Shard(0)), type=TensorType("f32", (6, 8)),
            ),
            "the plan keeps embed.weight whole, but embedding reads it as (dp=2@2: R', tp=2@1: S(0))", "embedding",
        ),
    ],
    "edges-agree": [
        (
            with_op(
                with_value(staged(), f"embedding{SUFFIX}", "ids", layout=(REPLICATE, REPLICATE)),
                f"embedding{SUFFIX}", "e", result_value={"layout": (BROADCAST, REPLICATE)},
            ),
            "is (dp=2@2: R', tp=2@1: R), but is read as (dp=2@2: S(0), tp=2@1: R)", "block_0",
        ),
    ],
    "loss-is-whole": [
        (with_op(sharded(), f"head{SUFFIX}", "loss", result_value={"layout": (PARTIAL, BROADCAST)}), "(P, R')", "head"),
    ],
    "stages-in-order": [
        (with_stage(staged(), 1, index=4), "stage 4 stands where stage 1 should", "stage 4 {"),
        (with_stage(sharded(), 1, receives=(H2,)), "what stage 1 receives, sends or keeps is for a", "stage 1 {"),
    ],
    "transfers-pair": [
        (
            with_stage(staged(), 1, receives=(replace(H2, type=TensorType("f32", (LOCAL_BATCH, 7, 8))),)),
            "stage 1 must receive what the stage before sends: %h2: f32[b, 6, 8]", "receive %h2",
        ),
        (with_stage(staged(), 1, sends=(Transfer("h4", H2.type),)), "nobody receives", "send    %h4"),
        (with_stage(staged(), 0, sends=()), "must receive what the stage before sends: nothing", "receive %h2"),
    ],
    "transfers-defined": [
        (
            with_stage(with_stage(staged(), 0, sends=(H2, Transfer("z", F32))), 1, receives=(H2, Transfer("z", F32))),
            "%z is not defined here", "send    %z",
        ),
        (
            with_stage(
                with_stage(staged(), 0, sends=(replace(H2, differentiable=False),)),
                1, receives=(replace(H2, differentiable=False),),
            ),
            "%h2 has a gradient that comes back", "send    %h2",
        ),
        (loss_on_the_first_stage(), "the last stage does not compute the loss %loss", "stage 1 {"),
    ],
    "state-is-kept": [
        (
            with_stage(staged(), 0, state=tuple(replace(k, mesh=OVERLAP) for k in staged().stages[0].state)),
            "dp=2@2, tp=4@1 are no axes of the 4 devices of a stage", "keep embed.weight",
        ),
        (
            with_stage(staged(), 0, state=staged().stages[0].state[1:]),
            "stage 0 does not keep embed.weight", "embedding",
        ),
        (with_stage(staged(), 0, state=(KEPT, *staged().stages[0].state)), "twice", "stage 0 {"),
        (
            with_stage(staged(), 0, state=(replace(KEPT, layout=(REPLICATE,) * 2), *staged().stages[0].state[1:])),
            "is kept as (dp=2@2: R, tp=2@1: R), but embedding reads it as", "keep embed.weight",
        ),
        (
            with_stage(staged(), 0, state=(replace(KEPT, layout=()), *staged().stages[0].state[1:])),
            "0 placements on a mesh of 2 axes", "keep embed.weight",
        ),
        (
            with_stage(staged(), 0, state=(*staged().stages[0].state, replace(KEPT, state="x"))),
            "no such state", "keep x",
        ),
    ],
    "zero-as-planned": [
        (
            with_stage(staged(), 0, state=tuple(
                replace(k, zero=2) if k.state == "blocks.0.up.weight" else k for k in staged().stages[0].state)),
            "has ZeRO level 2, but the plan says 0", "keep blocks.0.up.weight",
        ),
    ],
    "tied-state-agrees": [
        (
            with_stage(staged(), 1, state=(*staged().stages[1].state, KEPT_ODD)),
            "otherwise on another stage", "keep blocks.0.down.bias",
        ),
    ],
}  # fmt: skip
