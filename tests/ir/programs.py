"""One small training computation by hand, valid in every form: embedding, equal blocks, a head that divides by a count.

From the sharded form on, every layer runs as dp2-tp2 on one of two stages of four devices.
"""

from __future__ import annotations

from dataclasses import replace

from galvatron.ir.cluster import Cluster
from galvatron.ir.cost import ClassCost
from galvatron.ir.graph import Arg, Const, Graph, Op, Ref, Source, Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Layout, Shard
from galvatron.ir.plan import Plan
from galvatron.ir.program import (
    Candidates,
    Cut,
    Form,
    Layer,
    LayerClass,
    LayerKind,
    Program,
    Stage,
    State,
    StateLayout,
    Transfer,
    Update,
)
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import BATCH, LOCAL_BATCH, Dim, TensorType

S, V, D, H = 6, 12, 8, 16
STRATEGY = Strategy.parse("dp2-tp2")
DP, TP = STRATEGY.mesh
DATA: Layout = (Shard(0), REPLICATE)
WHOLE: Layout = (REPLICATE, REPLICATE)
STATE_LAYOUTS: dict[str, Layout] = {
    "embed.weight": (BROADCAST, REPLICATE),
    "up.weight": (BROADCAST, Shard(0)),
    "down.weight": (BROADCAST, Shard(1)),
    "down.bias": (BROADCAST, REPLICATE),
}


def value(name: str, dtype: str, *shape: Dim, layout: Layout | None = None) -> Value:
    return Value(name, TensorType(dtype, shape), layout)


def op(target: str, args: tuple[Arg, ...], result: Value, line: int = 0, **kwargs: Arg) -> Op:
    source = Source("/home/user/net.py", line, f"line {line}", "net.body") if line else None
    return Op(target, args, tuple(kwargs.items()), (result,), source)


class _Classes:
    """The class graphs: global ones in `B`, or local ones in `b` with layouts."""

    def __init__(self, sharded: bool) -> None:
        self.sharded = sharded
        self.n: Dim = LOCAL_BATCH if sharded else BATCH
        self.tp = 2 if sharded else 1

    def value(self, name: str, dtype: str, *shape: Dim, layout: Layout = DATA) -> Value:
        return value(name, dtype, *shape, layout=layout if self.sharded else None)

    def state(self, name: str, *shape: Dim) -> Value:
        return self.value(name, "f32", *shape, layout=STATE_LAYOUTS[name])

    def embedding(self) -> Graph:
        weight, ids = self.state("embed.weight", V, D), self.value("ids", "i64", self.n, S)
        result = self.value("e", "f32", self.n, S, D)
        return Graph(
            (ids,), (weight,), (op("aten.embedding.default", (Ref("embed.weight"), Ref("ids")), result),), ("e",)
        )

    def mask(self) -> Graph:
        ops = (
            op("aten.arange.default", (S,), self.value("arange", "i64", S, layout=WHOLE)),
            op("aten.gt.Scalar", (Ref("arange"), 0), self.value("gt", "bool", S, layout=WHOLE)),
            op("aten.view.default", (Ref("gt"), (1, S, 1)), self.value("view", "bool", 1, S, 1, layout=WHOLE)),
            op("aten.expand.default", (Ref("view"), (self.n, S, 1)), self.value("m", "bool", self.n, S, 1)),
        )
        return Graph((), (), ops, ("m",))

    def block(self) -> Graph:
        """`x + mask * down(silu(up(x)))`, the hidden dimension split over tp."""
        n, h = self.n, H // self.tp
        hidden: Layout = (Shard(0), Shard(2))
        x, m = self.value("x", "f32", n, S, D), self.value("m", "bool", n, S, 1)
        state = (self.state("up.weight", h, D), self.state("down.weight", D, h), self.state("down.bias", D))
        read, summed, ops = "x", "down", []
        if self.sharded:
            read, summed = "copy", "sum"
            ops.append(
                op(
                    "comm.copy",
                    (Ref("x"),),
                    self.value("copy", "f32", n, S, D, layout=(Shard(0), BROADCAST)),
                    axis="tp",
                )
            )
        down: Layout = (Shard(0), PARTIAL)
        ops += [
            op(
                "aten.linear.default",
                (Ref(read), Ref("up.weight")),
                self.value("up", "f32", n, S, h, layout=hidden),
                12,
            ),
            op("aten.silu.default", (Ref("up"),), self.value("silu", "f32", n, S, h, layout=hidden), 13),
            op(
                "aten.linear.default",
                (Ref("silu"), Ref("down.weight")),
                self.value("down", "f32", n, S, D, layout=down),
                14,
            ),
        ]
        if self.sharded:
            ops.append(
                op("comm.all_reduce", (Ref("down"),), self.value("sum", "f32", n, S, D), axis="tp", grad="identity")
            )
        ops += [
            op("aten.add.Tensor", (Ref(summed), Ref("down.bias")), self.value("add", "f32", n, S, D), 14),
            op("aten.mul.Tensor", (Ref("add"), Ref("m")), self.value("mul", "f32", n, S, D), 15),
            op("aten.add.Tensor", (Ref("x"), Ref("mul")), self.value("y", "f32", n, S, D), 15),
        ]
        return Graph((x, m), state, tuple(ops), ("y",))

    def count(self) -> Graph:
        """Runs on the whole batch, unsharded, in every form."""
        ops = (
            op("aten.ne.Scalar", (Ref("labels"), -100), value("ne", "bool", BATCH, S)),
            op("aten.sum.default", (Ref("ne"),), value("sum", "i64")),
            op("aten._to_copy.default", (Ref("sum"),), value("c", "f32"), dtype=Const("dtype", "f32")),
        )
        return Graph((value("labels", "i64", BATCH, S),), (), ops, ("c",))

    def head(self) -> Graph:
        n, whole, sum_ = self.n, WHOLE, (PARTIAL, REPLICATE)
        inputs = (
            self.value("x", "f32", n, S, D),
            self.value("labels", "i64", n, S),
            self.value("c", "f32", layout=whole),
        )
        flat = n * S
        ops = (
            op("aten.linear.default", (Ref("x"), Ref("embed.weight")), self.value("logits", "f32", n, S, V)),
            op("aten.view.default", (Ref("logits"), (flat, V)), self.value("rows", "f32", flat, V)),
            op("aten.view.default", (Ref("labels"), (flat,)), self.value("targets", "i64", flat)),
            op(
                "aten.cross_entropy_loss.default", (Ref("rows"), Ref("targets"), None, 2),
                self.value("total", "f32", layout=sum_),
            ),
            op("aten.div.Tensor", (Ref("total"), Ref("c")), self.value("loss", "f32", layout=sum_)),
        )  # fmt: skip
        return Graph(inputs, (self.state("embed.weight", V, D),), ops, ("loss",))

    def all(self) -> dict[str, Graph]:
        return {
            "count": self.count(), "mask": self.mask(), "embedding": self.embedding(), "block": self.block(),
            "head": self.head(),
        }  # fmt: skip


def block_state(index: int) -> tuple[str, ...]:
    return tuple(f"blocks.{index}.{name}" for name in ("up.weight", "down.weight", "down.bias"))


def layers(blocks: int, suffix: str = "") -> tuple[Layer, ...]:
    return (
        Layer("count", "count", ("labels",), (), ("n",), LayerKind.STEP),
        Layer("mask", f"mask{suffix}", (), (), ("mask",), LayerKind.PREAMBLE),
        Layer("embedding", f"embedding{suffix}", ("ids",), ("embed.weight",), ("h0",)),
        *(
            Layer(f"block_{i}", f"block{suffix}", (f"h{i}", "mask"), block_state(i), (f"h{i + 1}",))
            for i in range(blocks)
        ),
        Layer("head", f"head{suffix}", (f"h{blocks}", "labels", "n"), ("embed.weight",), ("loss",)),
    )


def captured(blocks: int = 4) -> Program:
    """The whole computation as one flat graph: the class graphs, inlined layer by layer."""
    program = clustered(blocks)
    ops: list[Op] = []
    for layer in program.layers:
        graph = program.class_of[layer.cls].graph
        names = dict(zip((v.name for v in (*graph.inputs, *graph.state)), (*layer.operands, *layer.state), strict=True))
        names.update(zip(graph.outputs, layer.results, strict=True))
        for inner in graph.ops:
            names.setdefault(inner.result.name, f"{layer.name}.{inner.result.name}")
            result = replace(inner.result, name=names[inner.result.name])
            source = inner.source and replace(inner.source, scope=layer.name)
            ops.append(replace(inner.map_refs(names.__getitem__), results=(result,), source=source))
    state = tuple(Value(s.name, s.type) for s in program.state if s.name != "unused")
    graph = Graph(program.inputs, state, tuple(ops), ("loss",))
    return replace(program, form=Form.CAPTURED, graph=graph, classes=(), layers=())


def around(graph: Graph) -> Program:
    """A captured program that computes a graph without state."""
    return Program("Graph", Form.CAPTURED, 8, graph.inputs, (), graph.outputs[0], graph=graph)


def clustered(blocks: int = 4) -> Program:
    state = [State("embed.weight", TensorType("f32", (V, D)), aliases=("head.weight",))]
    for i in range(blocks):
        shapes = ((H, D), (D, H), (D,))
        state += [State(n, TensorType("f32", s)) for n, s in zip(block_state(i), shapes, strict=True)]
    state.append(State("unused", TensorType("bf16", (3,)), kind="buffer", trainable=False))
    return Program(
        "Net", Form.CLUSTERED, 8,
        inputs=(value("ids", "i64", BATCH, S), value("labels", "i64", BATCH, S)),
        state=tuple(state), output="loss",
        classes=tuple(LayerClass(name, graph) for name, graph in _Classes(sharded=False).all().items()),
        layers=layers(blocks),
    )  # fmt: skip


def costed(blocks: int = 4) -> Program:
    program = clustered(blocks)
    cost = ClassCost(2 * BATCH * S * D, BATCH**2 / 3 + 1, 4096 * BATCH * S, BATCH * 1.5, 4 * D * H)
    return replace(
        program, form=Form.COSTED, cluster=Cluster.parse("a100-80g:2x4"),
        classes=tuple(replace(c, cost=cost) for c in program.classes),
    )  # fmt: skip


def with_candidates(blocks: int = 4) -> Program:
    names = ("embedding", "block", "head")
    strategies = tuple(map(Strategy.parse, ("dp4", "tp4", "dp2-tp2", "tp2+sp-dp2-zero3-recompute=selective")))
    cuts = (
        Cut("pp1/tp8", "tp-stays-in-node", "8 devices span 2 nodes"),
        Cut('odd "branch"\n', "zero-needs-dp", "größer, 100 %"),
    )
    return replace(
        costed(blocks), form=Form.CANDIDATES, candidates=tuple(Candidates(2, n, strategies) for n in names), cuts=cuts
    )


def planned(blocks: int = 4) -> Program:
    program = with_candidates(blocks)
    first = 1 + blocks // 2
    stages = ((STRATEGY,) * first, (STRATEGY,) * (blocks + 2 - first))
    peaks = (35 * 2**30, 36 * 2**30 + 1)
    ties = (("embed.weight", None),)
    plan = Plan(program.fingerprint, 16, 8, 4, "1f1b", stages, 0.0123, peaks, cluster="a100-80g:2x4", ties=ties)
    return replace(program, form=Form.PLANNED, plan=plan)


def sharded(blocks: int = 4) -> Program:
    program = planned(blocks)
    suffix = f".{STRATEGY}".replace("-", "_")
    classes = tuple(
        LayerClass(name, graph, base=name)
        if name == "count"
        else LayerClass(name + suffix, graph, base=name, strategy=STRATEGY, mesh=STRATEGY.mesh)
        for name, graph in _Classes(sharded=True).all().items()
    )
    count, mask, *body = layers(blocks, suffix)
    cut = 1 + blocks // 2
    again = replace(mask, name="mask@1", results=("mask@1",), origin=("mask",))
    last = (
        replace(layer, operands=tuple(again.results[0] if n == "mask" else n for n in layer.operands))
        for layer in body[cut:]
    )
    stages = (Stage(0, (mask, *body[:cut])), Stage(1, (count, again, *last)))
    return replace(program, form=Form.SHARDED, classes=classes, layers=(), stages=stages, candidates=(), cuts=())


def staged(blocks: int = 4) -> Program:
    program = sharded(blocks)
    first, second = program.stages
    crossing = Transfer(first.layers[-1].results[0], TensorType("f32", (LOCAL_BATCH, S, D)))
    stages = (_staged(first, sends=(crossing,)), _staged(second, receives=(crossing,)))
    return replace(program, form=Form.STAGED, stages=stages)


def _staged(stage: Stage, **transfers: tuple[Transfer, ...]) -> Stage:
    names = dict.fromkeys(name for layer in stage.layers for name in layer.state)
    kept = tuple(StateLayout(n, STRATEGY.mesh, STATE_LAYOUTS[".".join(n.split(".")[-2:])]) for n in names)
    return replace(stage, state=kept, **transfers)


def updating(program: Program) -> Program:
    """A valid program of layers whose head counts, in a buffer, what it divides by."""
    state = (*program.state, State("counted", TensorType("f32", ()), kind="buffer", trainable=False))
    is_local = program.form >= Form.SHARDED
    cls = next(cls for cls in program.classes if cls.name.startswith("head"))
    layout = WHOLE if is_local else None
    seen = value("seen", "f32", layout=layout)
    add = op("aten.add.Tensor", (Ref("counted"), Ref("c")), replace(seen, name="more"))
    graph = replace(cls.graph, state=(*cls.graph.state, replace(seen, name="counted")), ops=(*cls.graph.ops, add))
    head = replace(cls, graph=replace(graph, outputs=(*graph.outputs, "more")))

    def put(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        return tuple(
            replace(layer, state=(*layer.state, "counted"), results=(*layer.results, "more"))
            if layer.cls == cls.name
            else layer
            for layer in layers
        )

    stages = tuple(replace(stage, layers=put(stage.layers)) for stage in program.stages)
    if program.form is Form.STAGED:
        keep = StateLayout("counted", STRATEGY.mesh, WHOLE)
        stages = (*stages[:-1], replace(stages[-1], state=(*stages[-1].state, keep)))
    program = replace(
        program, state=state, updates=(Update("counted", "more"),), layers=put(program.layers), stages=stages,
        classes=tuple(head if c is cls else c for c in program.classes),
    )  # fmt: skip
    return replace(program, plan=program.plan and replace(program.plan, fingerprint=program.fingerprint))


FORMS = {
    "captured": captured,
    "clustered": clustered,
    "costed": costed,
    "candidates": with_candidates,
    "planned": planned,
    "sharded": sharded,
    "staged": staged,
}
"""A valid program per form, by the number of its blocks."""


def rounded(program: Program, precision: str = "bf16") -> Program:
    """A valid program that computes in another element type; its state stays in f32."""
    short = Const("dtype", precision)

    def typed(v: Value) -> Value:
        return replace(v, type=replace(v.type, dtype=precision)) if v.type.dtype == "f32" else v

    def read(graph: Graph) -> Graph:
        ops = [
            replace(
                o, results=tuple(map(typed, o.results)),
                kwargs=tuple((k, short if v == Const("dtype", "f32") else v) for k, v in o.kwargs),
            )
            for o in graph.ops
        ]  # fmt: skip
        return Graph(tuple(map(typed, graph.inputs)), tuple(map(typed, graph.state)), tuple(ops), graph.outputs)

    def crossing(transfers: tuple[Transfer, ...]) -> tuple[Transfer, ...]:
        return tuple(replace(t, type=replace(t.type, dtype=precision)) for t in transfers)

    program = replace(
        program, precision=precision, graph=program.graph and read(program.graph),
        classes=tuple(replace(c, graph=read(c.graph)) for c in program.classes),
        stages=tuple(replace(s, receives=crossing(s.receives), sends=crossing(s.sends)) for s in program.stages),
    )  # fmt: skip
    return replace(program, plan=program.plan and replace(program.plan, fingerprint=program.fingerprint))
