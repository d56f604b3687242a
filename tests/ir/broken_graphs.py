"""Programs of which a graph breaks a rule: for each rule the program, words of the message and of the line."""

from __future__ import annotations

from dataclasses import replace

import sympy

from galvatron.ir.graph import Op, Ref
from galvatron.ir.layout import BROADCAST, REPLICATE, Axis, Shard
from galvatron.ir.program import (
    Program,
)
from galvatron.ir.types import BATCH, LOCAL_BATCH, TensorType
from tests.ir.breaking import (
    OUTER,
    PADDED,
    PADDED_UP,
    PADDED_WIDTH,
    RECURRENT,
    SITE,
    SUFFIX,
    waiting,
    with_class,
    with_draw,
    with_function,
    with_graph,
    with_op,
    with_value,
)
from tests.ir.programs import (
    STRATEGY,
    clustered,
    op,
    sharded,
    value,
)

BROKEN: dict[str, list[tuple[Program, str, str]]] = {
    "unique-names": [
        (with_op(clustered(), "block", "silu", result_value={"name": "up"}), "%up is defined twice", "aten.silu"),
        (with_value(clustered(), "block", "m", name="x"), "%x is defined twice", "input %x"),
    ],
    "defined-before-use": [
        (with_op(clustered(), "block", "silu", args=(Ref("upp"),)), "did you mean 'up'", "%silu"),
        (with_op(clustered(), "block", "up", args=(Ref("add"), Ref("up.weight"))), "before it is defined", "%up "),
        (with_graph(clustered(), "block", lambda g: replace(g, outputs=("z",))), "%z is not defined", "return %z"),
    ],
    "known-ops": [
        (with_op(clustered(), "block", "silu", target="os.system.default"), "unknown op", "os.system"),
        (with_op(clustered(), "block", "silu", kwargs=(("a", 1), ("a", 2))), "given twice", "a=2"),
    ],
    "arguments-fit": [
        (with_op(clustered(), "block", "silu", args=()), "the argument 'self' is missing", "%silu"),
        (with_op(clustered(), "block", "silu", args=(Ref("up"), 1)), "2 positional arguments, but it takes 1", "%silu"),
        (with_op(clustered(), "block", "silu", kwargs=(("dim", 1),)), "'dim' is no parameter", "%silu"),
        (with_op(clustered(), "block", "silu", target="aten.topk.default", args=(Ref("up"), 2)), "2 results", "%silu"),
        (
            with_op(sharded(), f"embedding{SUFFIX}", "e", target="spmd.embedding", args=(Ref("ids"),)),
            "the argument 'indices' is missing", "spmd.embedding",
        ),
    ],
    "known-dtypes": [
        (with_value(clustered(), "block", "x", type=TensorType("f33", (BATCH, 6, 8))), "did you mean", "f33[B, 6, 8]"),
    ],
    "sizes-in-batch": [
        (with_value(clustered(), "block", "x", type=TensorType("f32", (BATCH, -1, 8))), "negative", "f32[B, -1, 8]"),
        (
            with_value(clustered(), "block", "x", type=TensorType("f32", (1 - BATCH, 8))),
            "not positive", "f32[1 - B, 8]",
        ),
        (
            with_value(clustered(), "block", "x", type=TensorType("f32", (LOCAL_BATCH, 6, 8))),
            "b is not the batch symbol here, which is B", "input %x",
        ),
        (
            with_value(sharded(), f"block{SUFFIX}", "x", type=TensorType("f32", (BATCH, 6, 8))),
            "B is not the batch symbol here, which is b", "input %x",
        ),
        (with_value(clustered(), "block", "x", type=TensorType("f32", (sympy.Symbol("s0"),))), "s0 is not", "f32[s0]"),
        (
            with_value(clustered(), "block", "x", type=TensorType("f32", (BATCH * sympy.log(2), 8))),
            "%x has a dimension of B*log(2): no fraction of the batch", "input %x",
        ),
    ],
    "numbers-in-batch": [
        (
            with_op(sharded(), f"head{SUFFIX}", "loss", args=(Ref("total"), 6 * LOCAL_BATCH)),
            "aten.div.Tensor is given a number in b, which means nothing here", "%loss",
        ),
        (with_op(clustered(), "head", "loss", args=(Ref("total"), LOCAL_BATCH)), "a number in b", "%loss"),
        (with_op(clustered(), "head", "rows", args=(Ref("logits"), (6 * LOCAL_BATCH, 12))), "a number in b", "%rows"),
    ],
    "mesh-axes": [
        (
            with_class(sharded(), f"block{SUFFIX}", mesh=STRATEGY.mesh[::-1]),
            "tp=2@1, dp=2@2 are no axes of one group", f"class @block{SUFFIX}",
        ),
        (with_class(sharded(), f"block{SUFFIX}", mesh=(Axis("a", 2, 2), Axis("a", 2, 1))), "one name", "@block"),
        (with_class(sharded(), f"block{SUFFIX}", mesh=(Axis("a", 2, 1), Axis("c", 2, 1))), "no axes", "@block"),
        (with_class(sharded(), f"block{SUFFIX}", mesh=(Axis("a", 0, 2), Axis("c", 2, 1))), "no axes", "@block"),
        (with_class(sharded(), f"block{SUFFIX}", mesh=(Axis("a", 2, 2), Axis("a.0", 2, 1))), "one name", "@block"),
        (
            with_class(sharded(), f"block{SUFFIX}", mesh=(Axis("a.0", 2, 4), Axis("a.1", 2, 1))),
            "a.0=2@4 and a.1=2@1 are no nested parts of one axis", "@block",
        ),
    ],
    "layouts-present": [
        (with_value(clustered(), "block", "x", layout=(REPLICATE,)), "not sharded", "input %x"),
        (with_value(sharded(), f"block{SUFFIX}", "x", layout=None), "has no layout", "input %x"),
        (with_value(sharded(), f"block{SUFFIX}", "x", layout=(REPLICATE,)), "1 placements on a mesh of 2", "input %x"),
        (
            with_value(sharded(), f"block{SUFFIX}", "x", layout=(Shard(3), REPLICATE)),
            "dimension 3, but has 3", "input %x",
        ),
        (
            with_value(sharded(), f"block{SUFFIX}", "up.weight", layout=(Shard(0, outer=2), PADDED)),
            "padded along dimension 0, of which only one axis", "%up.weight",
        ),
        (
            with_value(sharded(), f"block{SUFFIX}", "x", layout=(Shard(1, folded=True), Shard(1, outer=2))),
            "%x is S(1, folded) on dp=2@2 and S(1, outer=2) on tp=2@1, which do not nest", "input %x",
        ),
        (
            with_value(sharded(), f"block{SUFFIX}", "x", layout=(Shard(1, outer=5), REPLICATE)),
            "%x is S(1, outer=5) on dp=2@2, but 12 elements do not divide into 10 pieces", "input %x",
        ),
    ],
    "result-count": [
        (
            with_graph(clustered(), "block", lambda g: replace(g, ops=(
                *g.ops, Op("aten.split.Tensor", (Ref("y"), 4, 2), (), (value("half", "f32", BATCH, 6, 4),))))),
            "gives 2 results here, not 1", "%half",
        ),
    ],
    "padded-shards": [
        (
            with_value(sharded(), f"block{SUFFIX}", "x", layout=(PADDED, REPLICATE)),
            "%x enters or leaves as a padded shard, (S(0, padded), R)", "input %x",
        ),
        (
            with_op(sharded(), f"block{SUFFIX}", "up", result_value={"layout": (Shard(0), PADDED_WIDTH)}),
            "%up must be padded on the axes on which its operands are, but is (S(0), S(2, padded))", "%up",
        ),
        (
            with_value(sharded(), f"block{SUFFIX}", "down.weight", layout=(BROADCAST, PADDED)),
            "%down must be padded on the axes on which its operands are", "%down",
        ),
        (
            with_op(PADDED_UP, f"block{SUFFIX}", "up", result_value={"layout": (Shard(0), PADDED_WIDTH)}),
            "would count the filler of %up, (S(0), S(2, padded))", "%silu",
        ),
    ],
    "routed-rows": [
        (
            with_value(sharded(), f"block{SUFFIX}", "x", layout=(Shard(0, by="ids"), REPLICATE)),
            "%x enters or leaves in rows by what they choose, (S(0, by=%ids), R)", "input %x",
        ),
    ],
    "started-collectives": [
        (
            with_op(waiting(), f"block{SUFFIX}", "sum.started", kwargs=(("axis", "tp"), ("grad", "identity"))),
            "%sum.started was not started", "comm.wait",
        ),
    ],
    "collectives": [
        (OUTER, "moves slices that tp, which lies inside dp, cuts further", "comm.slice"),
        (with_op(sharded(), f"block{SUFFIX}", "sum", kwargs=(("axis", "tp"),)), "must be axis, grad", "%sum"),
        (
            with_op(sharded(), f"block{SUFFIX}", "sum", kwargs=(("axis", "ep"), ("grad", "identity"))),
            "'ep' is no axis of the mesh; axes are dp, tp", "%sum",
        ),
        (
            with_op(sharded(), f"block{SUFFIX}", "sum", kwargs=(("axis", "dp"), ("grad", "identity"))),
            "leads from P, but %down is S(0) on dp", "%sum",
        ),
        (
            with_op(sharded(), f"block{SUFFIX}", "sum", kwargs=(("axis", "tp"), ("grad", "all_reduce"))),
            "leads to R', but %sum is R on tp", "%sum",
        ),
        (with_op(sharded(), f"block{SUFFIX}", "sum", kwargs=(("axis", "tp"), ("grad", "x"))), "grad must be", "%sum"),
        (
            with_class(sharded(), f"block{SUFFIX}", mesh=(Axis("tp.0", 2, 2), Axis("tp.1", 2, 1))),
            "%x and %copy are not placed alike on the parts of tp", "%copy",
        ),
        (
            with_op(sharded(), f"block{SUFFIX}", "sum", result_value={"layout": (REPLICATE, REPLICATE)}),
            "changes the placement on dp", "%sum",
        ),
        (
            with_op(sharded(), f"block{SUFFIX}", "copy", result_value={"type": TensorType("f32", (LOCAL_BATCH, 6, 4))}),
            "must be f32[b, 6, 8]", "%copy",
        ),
        (
            with_op(sharded(), f"block{SUFFIX}", "sum", target="comm.all_gather", kwargs=(
                ("axis", "tp"), ("dim", 7), ("outer", 1), ("grad", "slice"))),
            "dim=7 of a tensor of rank 3", "%sum",
        ),
        (
            with_op(sharded(), f"block{SUFFIX}", "sum", target="comm.all_gather", kwargs=(
                ("axis", "tp"), ("dim", 1), ("outer", 1), ("grad", "slice"), ("folded", False))),
            "folded is true, or not written", "%sum",
        ),
        (
            with_op(sharded(), f"block{SUFFIX}", "sum", target="comm.all_gather", kwargs=(
                ("axis", "dp"), ("dim", 0), ("outer", 1), ("grad", "slice"), ("folded", True))),
            "leads from S(0, folded), but %down is S(0) on dp", "%sum",
        ),
        (with_op(clustered(), "block", "silu", target="comm.copy"), "not sharded", "%silu"),
    ],
    "spmd-ops": [
        (
            with_op(
                sharded(), f"embedding{SUFFIX}", "e", target="spmd.embedding", kwargs=(("axis", "ep"), ("size", 12))
            ),
            "'ep' is no axis of the mesh; axes are dp, tp", "spmd.embedding",
        ),
        (
            with_op(sharded(), f"embedding{SUFFIX}", "e", target="spmd.embedding", kwargs=(("axis", "tp"),)),
            "size must be the whole size", "spmd.embedding",
        ),
        (
            with_op(
                sharded(), f"embedding{SUFFIX}", "e", target="spmd.embedding",
                kwargs=(("axis", "tp"), ("size", 12), ("folded", 1)),
            ),
            "folded is true, or not written", "spmd.embedding",
        ),
        (with_op(clustered(), "embedding", "e", target="spmd.embedding"), "axes are none", "spmd.embedding"),
    ],
    "random-draws": [
        (with_draw(sharded(), "dropout", "aten.", {}), "does not say which ranks", "aten.dropout"),
        (with_draw(sharded(), "dropout", "random.", {"axes": ("dp",)}), "must be site, axes, per_step", "%silu"),
        (with_draw(sharded(), "dropout", "random.", SITE | {"axes": ("dp",)}), "sharded on dp, tp", "%silu"),
        (with_draw(sharded(), "dropout", "random.", SITE | {"axes": ()}), "sharded on dp, tp", "%silu"),
        (with_draw(sharded(), "dropout", "random.", SITE | {"site": -1}), "site must be a number", "%silu"),
        (with_draw(sharded(), "dropout", "random.", SITE | {"per_step": True}), "per_step must be false", "%silu"),
        (with_draw(sharded(), "dropout", "random.", SITE, twice=True), "site 0 is taken", "%again"),
        (RECURRENT, "draws random numbers that cannot be split over micro-batches", "aten.gru.input"),
        (with_draw(clustered(), "dropout", "random.", SITE), "in a graph that is not sharded", "%silu"),
    ],
    "result-types": [
        (
            with_op(clustered(), "block", "up", result_value={"type": TensorType("f32", (BATCH, 6, 8))}),
            "gives [B, 6, 16]", "%up ",
        ),
        (with_value(clustered(), "block", "x", type=TensorType("f32", (BATCH, 6, 7))), "cannot contract", "%up "),
        (with_op(clustered(), "head", "rows", args=(Ref("logits"), (BATCH, 12))), "do not fill [B, 12]", "%rows"),
        (with_value(clustered(), "block", "m", type=TensorType("bool", (BATCH, 5, 1))), "do not broadcast", "%mul"),
        (
            with_op(clustered(), "count", "ne", result_value={"type": TensorType("i64", (BATCH, 6))}),
            "gives bool", "%ne",
        ),
    ],
    "functions-fit": [
        (with_function(clustered(), differentiated=(1,)), "there are no operands 1, in this", "function Straight"),
        (
            with_function(
                clustered(), op("aten.rand_like.default", (Ref("gradient"),), value("r", "f32", BATCH, 6, 16))
            ),
            "aten.rand_like.default in a function", "aten.rand_like",
        ),
    ],
    "calls-fit": [
        (
            with_op(with_function(clustered()), "block", "silu", args=(Ref("x"),)),
            "its operands are f32[B, 6, 8], but those of @Straight f32[B, 6, 16]", "%silu",
        ),
    ],
    "computed-results": [
        (
            with_op(
                clustered(), "block", "silu",
                target="aten.log1p.default", result_value={"type": TensorType("f64", (BATCH, 6, 16))},
            ),
            "for a batch of 720720 it gives f32[720720, 6, 16] and not f64[720720, 6, 16]", "%silu",
        ),
        (with_op(clustered(), "block", "silu", target="aten.cholesky.default"), "must be batches of square", "%silu"),
    ],
}  # fmt: skip
