"""How programs are broken: one with something changed, and programs that are odd, or wrong, in one way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from galvatron.ir.functions import with_dims
from galvatron.ir.graph import Function, Graph, Op, Ref, Value
from galvatron.ir.layout import BROADCAST, REPLICATE, Axis, Shard
from galvatron.ir.program import (
    Layer,
    LayerClass,
    LayerKind,
    Program,
    Reached,
    StateLayout,
    Update,
)
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import BATCH, LOCAL_BATCH, TensorType
from tests.ir.programs import (
    DP,
    STRATEGY,
    TP,
    clustered,
    op,
    sharded,
    staged,
    updating,
    value,
)


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


def waiting(recompute: str = "none") -> Program:
    """A sharded program whose blocks start their sum, and wait for it, under a kind of recomputation."""
    program, strategy = sharded(), replace(STRATEGY, recompute=recompute)

    def parted(o: Op) -> tuple[Op, ...]:
        if o.results[0].name != "sum":
            return (o,)
        under_way = replace(o.results[0], name="sum.started")
        start = replace(o, results=(under_way,), kwargs=(*o.kwargs, ("started", True)))
        return start, Op("comm.wait", (Ref("sum.started"),), (("axis", "tp"),), o.results)

    classes = (replace(c, strategy=c.strategy and strategy) for c in program.classes)
    stages = tuple((strategy,) * len(stage) for stage in program.required_plan.stages)
    program = replace(program, classes=tuple(classes), plan=replace(program.required_plan, stages=stages))
    return with_graph(program, f"block{SUFFIX}", lambda g: replace(g, ops=tuple(n for o in g.ops for n in parted(o))))


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


def closing(*read: str, state: str = "counted", target: str = "aten.sum.default") -> Program:
    """What is counted is written when a step ends, of values of the step and state, each brought to one number."""
    program = updating(clustered())
    types = {name: value.type for name, value in program.values().items()}
    inputs = tuple(Value(name, types[name]) for name in read)
    held = tuple(Value(name, program.state_of[name].type) for name in dict.fromkeys(("counted", state)))
    ops: list[Op] = []
    for given in (*inputs, *held[1:]):
        one = op(target, (Ref(given.name),), Value(f"{given.name}.one", TensorType(given.type.dtype, ())))
        before = Ref(ops[-1].result.name if ops else "counted")
        ops += [one, op("aten.add.Tensor", (before, Ref(one.result.name)), Value(f"{given.name}.more", F32))]
    cls = LayerClass("close", Graph(inputs, held, tuple(ops), (ops[-1].result.name,)))
    layer = Layer("end", "close", read, tuple(v.name for v in held), ("closed",), LayerKind.CLOSING)
    updates = (Update("counted", "closed"),)
    return replace(program, classes=(*program.classes, cls), layers=(*program.layers, layer), updates=updates)


def telling(*states: str) -> Program:
    """What three numbers of state and one that the head makes come to says which parameters have a gradient."""
    program = updating(clustered())
    more, unused = value("more", "f32"), value("unused", "bf16", 3)
    ops = (
        op("aten.add.Tensor", (Ref("unused"), Ref("more")), value("sum", "bf16", 3)),
        op("aten.ne.Scalar", (Ref("sum"), 0), value("told", "bool", 3)),
    )
    cls = LayerClass("tell", Graph((more,), (unused,), ops, ("told",)))
    layer = Layer("end", "tell", ("more",), ("unused",), ("told",), LayerKind.CLOSING)
    classes, layers = (*program.classes, cls), (*program.layers, layer)
    return replace(program, classes=classes, layers=layers, reached=(Reached("told", states),))


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
