"""The verifier: valid programs pass, and every rule refuses a program broken in just that way, at the right line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sympy

import galvatron.ir.verify as verifier
from galvatron.errors import VerifyError
from galvatron.ir.cluster import Cluster
from galvatron.ir.functions import with_dims
from galvatron.ir.graph import Function, Graph, Op, Ref, Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Axis, Shard
from galvatron.ir.program import (
    BatchSizes,
    Candidates,
    Check,
    Layer,
    LayerClass,
    LayerKind,
    Program,
    Result,
    StateLayout,
    Transfer,
    Update,
)
from galvatron.ir.strategy import Strategy
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.types import BATCH, LOCAL_BATCH, MICRO_BATCHES, TensorType
from galvatron.ir.verify import RULES, verify
from tests.ir.programs import (
    DP,
    FORMS,
    STRATEGY,
    TP,
    captured,
    clustered,
    costed,
    op,
    planned,
    rounded,
    sharded,
    staged,
    updating,
    value,
    with_candidates,
)


@pytest.mark.parametrize("blocks", [2, 5])
@pytest.mark.parametrize("form", FORMS)
def test_valid_programs_pass(form: str, blocks: int) -> None:
    verify(FORMS[form](blocks))
    if FORMS[form](blocks).classes:
        verify(with_function(FORMS[form](blocks)))
    verify(rounded(FORMS[form](blocks)))
    if form != "captured":
        verify(updating(FORMS[form](blocks)))


# How to break a program


def with_class(program: Program, name: str, /, **changes: Any) -> Program:
    assert name in program.class_of
    return replace(program, classes=tuple(replace(c, **changes) if c.name == name else c for c in program.classes))


def with_graph(program: Program, name: str, change: Callable[[Graph], Graph]) -> Program:
    if program.graph is not None:
        return replace(program, graph=change(program.graph))
    return with_class(program, name, graph=change(program.class_of[name].graph))


def with_op(program: Program, cls: str, result: str, /, **changes: Any) -> Program:
    """The op that defines `result`, changed; `result_value` changes the value itself."""
    result_value = changes.pop("result_value", {})

    def change(o: Op) -> Op:
        if o.results[0].name != result:
            return o
        return replace(o, **{"results": (replace(o.results[0], **result_value), *o.results[1:]), **changes})

    return with_graph(program, cls, lambda g: replace(g, ops=tuple(map(change, g.ops))))


def with_value(program: Program, cls: str, name: str, /, **changes: Any) -> Program:
    """An input or a piece of state of a class, changed."""

    def change(values: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(replace(v, **changes) if v.name == name else v for v in values)

    return with_graph(program, cls, lambda g: replace(g, inputs=change(g.inputs), state=change(g.state)))


def with_draw(program: Program, name: str, namespace: str, keywords: dict[str, Any], *, twice: bool = False) -> Program:
    """The blocks with dropout in the place of their `silu`, perhaps a second one behind it."""
    cls = next(c.name for c in program.classes if c.name.startswith("block"))
    rest = (0.5, True)

    def drawn(o: Op) -> tuple[Op, ...]:
        if o.results[0].name != "silu":
            return (o,)
        first = replace(o, target=f"{namespace}{name}.default", args=(*o.args, *rest), kwargs=tuple(keywords.items()))
        again = replace(first, args=(Ref("silu"), *rest), results=(replace(o.results[0], name="again"),))
        return (first, again) if twice else (first,)

    return with_graph(program, cls, lambda g: replace(g, ops=tuple(n for o in g.ops for n in drawn(o))))


def with_function(program: Program, *backward: Op, **changes: Any) -> Program:
    """The blocks with a function that passes gradients on, or through `backward`, in the place of their `silu`."""
    cls = next(c.name for c in program.classes if c.name.startswith("block"))
    x, y, gradient = (value(name, "f32", BATCH, 6, 16) for name in ("x", "y", "gradient"))
    function = Function(
        name="Straight",
        forward=Graph((x,), (), (op("aten.silu.default", (Ref("x"),), y),), ("y",)),
        backward=Graph((gradient,), (), backward, (backward[-1].result.name if backward else "gradient",)),
        results=1,
        differentiated=(0,),
    )
    function = replace(with_dims(function), **changes)
    return with_op(program, cls, "silu", target="function.Straight", function=function)


def with_layer(program: Program, name: str, /, **changes: Any) -> Program:
    def change(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        return tuple(replace(layer, **changes) if layer.name == name else layer for layer in layers)

    stages = tuple(replace(s, layers=change(s.layers)) for s in program.stages)
    return replace(program, layers=change(program.layers), stages=stages)


def with_plan(program: Program, **changes: Any) -> Program:
    assert program.plan is not None
    return replace(program, plan=replace(program.plan, **changes))


def with_stage(program: Program, index: int, /, **changes: Any) -> Program:
    return replace(program, stages=tuple(replace(s, **changes) if s.index == index else s for s in program.stages))


def with_input(program: Program, name: str, type_: TensorType) -> Program:
    """One more batch input, which no layer reads, and the plan made for that."""
    program = replace(program, inputs=(*program.inputs, Value(name, type_)))
    return with_plan(program, fingerprint=program.fingerprint) if program.plan else program


def with_state(program: Program, name: str, /, **changes: Any) -> Program:
    return replace(program, state=tuple(replace(s, **changes) if s.name == name else s for s in program.state))


def with_update(program: Program, update: Update, *, again: bool = False) -> Program:
    """A program with another update, or with one more."""
    program = updating(program)
    return replace(program, updates=(*(program.updates if again else ()), update))


def kept_nowhere() -> Program:
    """What the head makes becomes a buffer that no layer reads."""
    program = with_update(staged(), Update("other", "more"), again=True)
    other = replace(program.state_of["counted"], name="other")
    program = replace(program, state=(*program.state, other))
    return with_plan(program, fingerprint=program.fingerprint)


def sliced_outside() -> Program:
    """The samples that tp has cut are cut again by dp, which lies outside of it."""
    program = converted()
    x = Value("x", TensorType("f32", (2 * LOCAL_BATCH, 6, 8)), (REPLICATE, Shard(0)))
    keywords = (("axis", "dp"), ("dim", 0), ("outer", 1), ("grad", "all_gather"))
    moved = Value("moved", x.type.with_shape((LOCAL_BATCH, 6, 8)), (Shard(0), Shard(0)))
    graph = Graph((x,), (), (Op("comm.slice", (Ref("x"),), keywords, (moved,)),), ("moved",))
    return with_class(program, "move", graph=graph)


def ended() -> Program:
    """The head is an epilogue, of a class that recomputes."""
    recomputed = replace(STRATEGY, recompute="full")
    program = with_class(with_layer(sharded(), "head", kind=LayerKind.EPILOGUE), f"head{SUFFIX}", strategy=recomputed)
    return with_plan(program, stages=((STRATEGY,) * 3, (STRATEGY,) * 2), micro_batches=1)


def two_masks(**changes: Any) -> Program:
    """The second stage has a class of its own for its copy of the mask, which compares positions."""
    program = sharded()
    other = replace(program.class_of[f"mask{SUFFIX}"], name="other")
    program = with_layer(replace(program, classes=(*program.classes, other)), "mask@1", cls="other")
    return with_op(program, "other", "gt", **changes)


def collecting(given: Value | None = None, target: str = "", **keywords: Any) -> Program:
    """The head is an epilogue of four micro-batches, perhaps one that is given something else and brings it over the
    samples."""
    program = with_layer(sharded(), "head", kind=LayerKind.EPILOGUE)
    program = with_plan(program, stages=((STRATEGY,) * 3, (STRATEGY,) * 2), schedule="gpipe")
    if given is None:
        return program
    return with_graph(
        program, f"head{SUFFIX}", lambda g: replace(
            g, inputs=(given, *g.inputs[1:]),
            ops=(op(target, (Ref(given.name),), g.inputs[0], axis="dp", **keywords), *g.ops),
        ),
    )  # fmt: skip


def converted(target: str = "comm.copy", origin: str = "h2", base: str = "") -> Program:
    """The second stage reads `h2` after a conversion."""
    x = Value("x", TensorType("f32", (LOCAL_BATCH, 6, 8)), (Shard(0), REPLICATE))
    moved = replace(x, name="moved", layout=(Shard(0), BROADCAST))
    keywords = (("axis", "tp"),) if target == "comm.copy" else ()
    graph = Graph((x,), (), (Op(target, (Ref("x"),), keywords, (moved,)),), ("moved",))
    program = sharded()
    count, mask, block, *rest = program.stages[1].layers
    conversion = Layer("moved", "move", ("h2",), (), ("h2@1",), LayerKind.CONVERSION, (origin,))
    block = replace(block, operands=("h2@1", *block.operands[1:]))
    program = with_stage(program, 1, layers=(count, mask, conversion, block, *rest))
    return replace(program, classes=(*program.classes, LayerClass("move", graph, base=base, mesh=STRATEGY.mesh)))


def loss_on_the_first_stage() -> Program:
    """The head reads what its stage sends on, and the second stage computes something that nobody reads."""
    program = staged()
    first, second = program.stages
    count, mask, *blocks, head = second.layers
    early = replace(head, operands=("h2", "labels", "n"))
    moved = with_stage(program, 0, layers=(count, *first.layers, early))
    return with_plan(with_stage(moved, 1, layers=(mask, *blocks)), stages=((STRATEGY,) * 4, (STRATEGY,) * 2))


def mask_before_count() -> Program:
    """The statistics of a step read what every micro-batch computes."""
    count, mask, *rest = sharded().stages[1].layers
    return with_stage(sharded(), 1, layers=(mask, replace(count, operands=mask.results), *rest))


F32 = TensorType("f32", ())
SITE = {"site": 0, "axes": ("dp", "tp"), "per_step": False}
SUFFIX = ".dp2_tp2"
PADDED, PADDED_WIDTH = Shard(0, padded=True), Shard(2, padded=True)
PADDED_UP = with_value(sharded(), f"block{SUFFIX}", "up.weight", layout=(BROADCAST, PADDED))
FOLDED_ROWS = with_value(
    with_op(
        with_plan(sharded(), ties=(("embed.weight", STRATEGY),)),
        f"embedding{SUFFIX}", "e", target="spmd.embedding", kwargs=(("axis", "tp"), ("size", 12)),
    ),
    f"embedding{SUFFIX}", "embed.weight",
    type=TensorType("f32", (6, 8)), layout=(BROADCAST, Shard(0, folded=True)),
)  # fmt: skip
H2 = staged().stages[0].sends[0]
OVERLAP = (Axis("dp", 2, 2), Axis("tp", 4, 1))
KEPT_ODD = StateLayout("blocks.0.down.bias", (DP, TP), (REPLICATE, REPLICATE))
KEPT = staged().stages[0].state[0]
TP8 = Strategy.parse("tp8")

RECURRENT = with_op(
    clustered(), "block", "silu", target="aten.gru.input",
    args=(Ref("up"), Ref("up"), (), False, 2, 0.5, True, False, True),
    results=(value("silu", "f32", BATCH, 6, 16), value("state", "f32", BATCH, 6, 16)),
)  # fmt: skip

ENDED, OUTER = ended(), sliced_outside()
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
        (with_value(clustered(), "block", "up.weight", type=TensorType("f32", (16, 7))), "cannot contract", "%up "),
        (with_op(clustered(), "head", "rows", args=(Ref("logits"), (BATCH, 12))), "do not fill [B, 12]", "%rows"),
        (with_value(clustered(), "block", "m", type=TensorType("bool", (BATCH, 5, 1))), "do not broadcast", "%mul"),
        (
            with_op(clustered(), "count", "ne", result_value={"type": TensorType("i64", (BATCH, 6))}),
            "gives bool", "%ne",
        ),
    ],
    "form-fields": [
        (replace(captured(), graph=None), "a captured program needs graph", "program Net"),
        (replace(clustered(), classes=()), "needs classes", "program Net"),
        (replace(clustered(), graph=captured().graph), "a clustered program has no graph", "program Net"),
        (replace(planned(), plan=None), "a planned program needs plan", "program Net"),
        (replace(staged(), stages=()), "a staged program needs stages", "program Net"),
        (
            replace(sharded(), candidates=with_candidates().candidates),
            "a sharded program has no candidates", "program Net",
        ),
    ],
    "program-names": [
        (with_state(clustered(), "unused", name="embed.weight"), "stands for several", "embed.weight"),
        (with_state(clustered(), "unused", aliases=("embed.weight",)), "stands for several", "embed.weight"),
        (with_layer(staged(), "block_2", name="block_0"), "the layer name 'block_0' stands for several", "block_0"),
        (with_layer(clustered(), "block_1", name="block_0"), "the layer name 'block_0'", "block_0"),
        (
            replace(clustered(), classes=clustered().classes + clustered().classes[:1]),
            "the class name 'count'", "@count",
        ),
    ],
    "program-signature": [
        (with_state(clustered(), "unused", kind="thing"), "unknown kind of state 'thing'", "thing unused"),
        (with_state(clustered(), "unused", trainable=True), "a buffer does not train", "unused"),
        (with_state(clustered(), "unused", type=TensorType("f32", (BATCH,))), "no type of state", "f32[B]"),
        (replace(clustered(), batch_size=0), "a batch of 0 samples", "program Net"),
        (
            with_input(staged(), "extra", TensorType("f32", (4, BATCH))),
            "its samples are not those of B along dimension 0 alone", "input %extra",
        ),
        (with_input(sharded(), "extra", TensorType("f32", (LOCAL_BATCH,))), "b is no size of a batch", "input %extra"),
        (with_input(clustered(), "extra", TensorType("f32", (BATCH, -3))), "%extra is f32[B, -3]: negative", "%extra"),
    ],
    "masters": [
        (replace(clustered(), precision="bf61"), "unknown precision 'bf61'; did you mean 'bf16'?", "program Net"),
        (
            with_state(rounded(clustered()), "embed.weight", type=TensorType("bf16", (12, 8))),
            "embed.weight trains in bf16, not in f32", "parameter embed.weight",
        ),
    ],
    "graph-matches-program": [
        (replace(captured(), precision="bf16"), "as f32[12, 8], the program has it as bf16[12, 8]", "state %embed"),
        (replace(rounded(captured()), precision=None), "has it as f32[12, 8]", "state %embed.weight"),
        (replace(captured(), inputs=captured().inputs[:1]), "inputs differ", "graph {"),
        (
            with_state(captured(), "embed.weight", type=TensorType("f32", (99, 8))),
            "the program has it as f32[99, 8]", "state %embed.weight",
        ),
        (replace(captured(), output="h0"), "must return the program's output %h0", "return %loss"),
    ],
    "known-classes": [
        (with_layer(clustered(), "block_1", cls="blok"), "unknown class @blok; did you mean 'block'?", "@blok"),
        (replace(clustered(0)), "no layer calls @block", "class @block"),
    ],
    "layer-signatures": [
        (with_layer(clustered(), "block_1", operands=("h1",)), "binds 1 operands, but @block has 2", "block_1"),
        (with_layer(clustered(), "block_1", state=()), "binds 0 state", "block_1"),
        (with_layer(clustered(), "block_1", results=("h2", "h2b")), "binds 2 results", "block_1"),
    ],
    "layers-in-order": [
        (with_layer(clustered(), "block_1", operands=("h3", "mask")), "reads %h3 before it is defined", "block_1"),
        (with_layer(clustered(), "block_1", operands=("hh", "mask")), "reads %hh undefined", "block_1"),
        (with_layer(clustered(), "block_1", results=("h1",)), "defines %h1 again", "block_1"),
        (with_layer(staged(), "block_2", operands=("h0", "mask")), "reads %h0 undefined", "block_2"),
    ],
    "state-is-bound": [
        (with_layer(clustered(), "head", state=("embd.weight",)), "did you mean 'embed.weight'", "head"),
        (
            with_state(clustered(), "embed.weight", type=TensorType("f32", (12, 9))),
            "embed.weight is f32[12, 9]", "embedding",
        ),
        (replace(clustered(), precision="f16"), "embed.weight is f16[12, 8], but %embed.weight", "embedding"),
        (
            with_value(rounded(clustered()), "block", "up.weight", type=TensorType("f32", (16, 8))),
            "blocks.0.up.weight is bf16[16, 8], but %up.weight of @block is f32[16, 8]", "block_0",
        ),
    ],
    "operand-types": [
        (with_layer(clustered(), "block_1", operands=("mask", "mask")), "%mask is bool[B, 6, 1], but %x", "block_1"),
    ],
    "cheap-layers": [
        (
            with_graph(sharded(), f"mask{SUFFIX}", lambda g: replace(g, ops=(*g.ops, op(
                "random.rand.default", ((6,),), value("drawn", "f32", 6, layout=(REPLICATE, REPLICATE)),
                site=0, axes=(), per_step=True)))),
            "the preamble layer mask draws random numbers, in random.rand.default", "preamble mask",
        ),
        (with_layer(clustered(), "mask", kind=LayerKind.STEP), "a bool[B, 6, 1] with samples", "mask"),
        (
            with_layer(clustered(), "embedding", kind=LayerKind.PREAMBLE),
            "reads the trainable state embed.weight", "embedding",
        ),
        (
            mask_before_count(),
            "the step layer count reads %mask@1, which a micro-batch layer computes", "count",
        ),
        (
            with_layer(clustered(), "block_0", kind=LayerKind.STEP),
            "reads %h0, which a micro-batch layer computes", "block_0",
        ),
    ],
    "output-is-loss": [
        (replace(clustered(), output="lss"), "nothing defines %lss", "output %lss"),
        (replace(clustered(), output="h1"), "a loss is a floating-point scalar", "output %h1"),
        (
            with_graph(with_input(clustered(), "given", F32), "head", lambda g: replace(g, outputs=("c",))),
            "head gives as the loss %loss what it is given", "layer    head",
        ),
    ],
    "copies-say-what-they-are": [
        (
            with_layer(clustered(), "mask", origin=("mask",)),
            "mask is a copy or a conversion, but a clustered program has none", "preamble mask",
        ),
        (
            with_layer(sharded(), "block_1", origin=("h0",)),
            "block_1 makes values of its own, it has no origin", "block_1",
        ),
        (with_layer(sharded(), "mask@1", origin=("mask", "n")), "has 1 results, of 2 values", "mask@1"),
        (
            with_layer(sharded(), "mask@1", origin=("h1",)),
            "mask@1 is a copy of %h1, which is made once", "mask@1",
        ),
    ],
    "conversions-change-layout-only": [
        (
            with_layer(sharded(), "block_1", kind=LayerKind.CONVERSION, origin=("h1",)),
            "the conversion block_1 takes one value to another layout", "block_1",
        ),
        (converted("aten.neg.default"), "the conversion moved computes something", "moved"),
        (converted(origin="h1"), "the conversion moved reads %h2, which is not %h1", "moved"),
        (converted(base="block"), "moved is a conversion, but @move was sharded from @block", "moved"),
        (
            with_class(sharded(), f"mask{SUFFIX}", base=""),
            f"mask is a preamble, but @mask{SUFFIX} was sharded from no class", "preamble mask",
        ),
    ],
    "shared-layers-are-one": [
        (
            with_layer(two_masks(), "mask@1", origin=("mask@1",)),
            "mask@1 computes %mask@1 otherwise than another stage", "preamble mask@1",
        ),
        (
            with_class(two_masks(), "other", base="block"),
            "mask@1 computes %mask otherwise than another stage", "preamble mask@1",
        ),
    ],
    "epilogue-ends": [
        (
            with_layer(clustered(), "block_3", kind=LayerKind.EPILOGUE),
            "the epilogue block_3 must come last and make the loss %loss alone", "epilogue block_3",
        ),
        (
            with_layer(clustered(), "block_3", kind=LayerKind.EPILOGUE),
            "reads %mask of the preamble, which it must compute itself", "epilogue block_3",
        ),
    ],
    "updates-fit": [
        (with_update(clustered(), Update("conted", "more")), "unknown state 'conted'; did you", "update conted"),
        (with_update(clustered(), Update("counted", "more"), again=True), "updated several times", "update counted"),
        (with_update(clustered(), Update("embed.weight", "more")), "embed.weight is trained", "update embed.weight"),
        (with_update(clustered(), Update("counted", "n")), "no layer computes %n, the new value", "update counted"),
        (with_update(clustered(), Update("unused", "more")), "%more is f32[], but unused is bf16[3]", "update unused"),
    ],
    "outputs-fit": [
        (replace(clustered(), outputs=(Result("kept", "n"),)), "no layer computes %n, the", "result kept"),
        (replace(clustered(), outputs=(Result("kept", "loss"),) * 2), "'kept' stands for several", "result kept"),
    ],
    "checks-fit": [
        (replace(clustered(), checks=(Check("kept", "n"),)), "no layer computes %n, which the check", "never %n"),
        (replace(clustered(), checks=(Check("kept", "loss"),)), "is of f32, but the check 'kept' asks", "never %loss"),
    ],
    "updates-are-whole": [
        (with_update(sharded(), Update("counted", "loss")), "state is never a partial sum", "%loss, %more ="),
        (with_update(sharded(), Update("unused", "more")), "bf16[3] is no f32[]", "%loss, %more ="),
    ],
    "updates-are-kept": [
        (kept_nowhere(), "stage 1 updates other, which it does not keep", "%loss, %more ="),
    ],
    "costs-present": [(with_class(costed(), "head", cost=None), "@head has no cost", "class @head")],
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
    "strategies-as-planned": [
        (with_class(sharded(), f"block{SUFFIX}", strategy=None), "sharded for None", "block_0"),
        (ENDED, "the epilogue head belongs under dp2-tp2, but @head.dp2_tp2 is sharded for dp2-tp2-recompute", "head"),
    ],
    "state-shards": [
        (
            with_value(sharded(), f"block{SUFFIX}", "down.bias", layout=(Shard(0), REPLICATE)),
            "f32[8] as (dp=2@2: S(0), tp=2@1: R) is f32[4], not f32[8]", "block_0",
        ),
        (
            with_value(sharded(), f"embedding{SUFFIX}", "embed.weight", layout=(PARTIAL, REPLICATE)),
            "state is never a partial sum", "embedding",
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
    "computed-results": [
        (
            with_op(clustered(), "block", "mul", result_value={"type": TensorType("f64", (BATCH, 6, 8))}),
            "for a batch of 720720 it gives f32[720720, 6, 8] and not f64[720720, 6, 8]", "%mul",
        ),
        (with_op(clustered(), "block", "silu", target="aten.cholesky.default"), "must be batches of square", "%silu"),
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


CASES = [pytest.param(rule, *case, id=f"{rule}-{i}") for rule, cases in BROKEN.items() for i, case in enumerate(cases)]


@pytest.mark.parametrize(("rule", "program", "message", "line"), CASES)
def test_a_broken_program_is_refused_at_its_line(rule: str, program: Program, message: str, line: str) -> None:
    """`message` tells what is wrong; the marked line of the excerpt holds `line`."""
    with pytest.raises(VerifyError, match=re.escape(message)) as caught:
        verify(program)
    assert caught.value.rule == rule
    text = str(caught.value)
    assert f"program Net ({program.form}) breaks the rule {rule}: " in text
    marked = [shown for shown in text.splitlines() if shown.startswith(">>>")]
    assert any(line in shown for shown in marked), text


def test_every_rule_has_a_broken_example_and_a_meaning() -> None:
    assert [rule.name for rule in RULES] == list(dict.fromkeys(rule.name for rule in RULES))
    assert set(BROKEN) == {rule.name for rule in RULES}
    assert all(BROKEN.values())
    assert all(rule.meaning.endswith(".") and rule.forms for rule in RULES)


def apart(program: Program) -> Program:
    """Every block calls a class of its own."""
    copies: list[LayerClass] = []
    for layer in program.all_layers:
        if layer.name.startswith("block_"):
            copies.append(replace(program.class_of[layer.cls], name=f"{layer.name}.alone"))
            program = with_layer(program, layer.name, cls=copies[-1].name)
    others = (cls for cls in program.classes if not cls.name.startswith("block"))
    return replace(program, classes=(*others, *copies))


@pytest.mark.parametrize("form", ["clustered", "sharded", "staged"])
def test_layers_are_not_looked_through_for_each_class(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often the classes of layers are asked for grows as the layers do, where each has its own."""
    read: Counter[str] = Counter()

    def counted(layer: Layer, name: str) -> Any:
        read[name] += 1
        return object.__getattribute__(layer, name)

    def times(blocks: int) -> int:
        program = apart(FORMS[form](blocks))
        with monkeypatch.context() as patch:
            patch.setattr(Layer, "__getattribute__", counted)
            read.clear()
            verify(program)
        return read["cls"]

    few, more, most = times(4), times(8), times(12)
    assert most - more == more - few > 0


def test_scopes_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Program] = []
    scopes = verifier._scopes
    monkeypatch.setattr(verifier, "_scopes", lambda program: made.append(program) or scopes(program))
    verify(staged())
    assert len(made) == 1


def test_a_draw_with_its_site_is_valid() -> None:
    drawn = with_draw(sharded(), "dropout", "random.", SITE)
    verify(drawn)
    assert parse_program(print_program(drawn)) == drawn


def test_two_classes_of_one_copy_are_valid() -> None:
    verify(two_masks())


def test_an_epilogue_of_micro_batches_is_valid() -> None:
    verify(collecting())


def test_a_message_tells_a_few_of_many_violations() -> None:
    program = clustered(20)
    broken = replace(program, layers=tuple(replace(layer, state=("x",) * len(layer.state)) for layer in program.layers))
    with pytest.raises(VerifyError, match=r"and at least \d+ more") as caught:
        verify(broken)
    assert str(caught.value).count("\n") < 60


def test_a_conversion_is_valid() -> None:
    program = converted()
    verify(program)
    assert parse_program(print_program(program)) == program
