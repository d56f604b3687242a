"""Staged programs written by hand: a small network of embedding, blocks and a head with a token count."""

from __future__ import annotations

from galvatron.ir.graph import Arg, Graph, Op, Ref, Source, Value
from galvatron.ir.layout import BROADCAST, PARTIAL, REPLICATE, Layout, Mesh, Placement, Shard
from galvatron.ir.plan import Plan
from galvatron.ir.program import (
    Form,
    Layer,
    LayerClass,
    LayerKind,
    Program,
    Stage,
    State,
    StateLayout,
    Transfer,
)
from galvatron.ir.strategy import Strategy
from galvatron.ir.types import BATCH, LOCAL_BATCH, Dim, TensorType

b, B = LOCAL_BATCH, BATCH
S, V, D, H = 6, 11, 8, 16
LINES = {"up": 12, "silu": 13, "down": 14, "residual": 15}


def f64(*shape: Dim) -> TensorType:
    return TensorType("f64", shape)


def i64(*shape: Dim) -> TensorType:
    return TensorType("i64", shape)


def op(target: str, args: tuple[Arg, ...], name: str, type_: TensorType, line: int = 0, **kwargs: Arg) -> Op:
    source = Source("/home/user/net.py", line, next(k for k, v in LINES.items() if v == line)) if line else None
    return Op(target, args, tuple(kwargs.items()), (Value(name, type_),), source)


def with_layouts(graph: Graph, layouts: dict[str, Layout], default: Layout) -> Graph:
    def laid(value: Value) -> Value:
        return Value(value.name, value.type, layouts.get(value.name, default))

    ops = tuple(Op(o.target, o.args, o.kwargs, tuple(laid(v) for v in o.results), o.source) for o in graph.ops)
    return Graph(tuple(map(laid, graph.inputs)), tuple(map(laid, graph.state)), ops, graph.outputs)


def embedding_graph() -> Graph:
    return Graph(
        (Value("ids", i64(b, S)),),
        (Value("embed.weight", f64(V, D)),),
        (op("aten.embedding.default", (Ref("embed.weight"), Ref("ids")), "embedding", f64(b, S, D)),),
        ("embedding",),
    )


def mask_graph() -> Graph:
    """A preamble without any input: it needs `b` and a device from its caller."""
    ops = (
        op("aten.arange.default", (S,), "arange", i64(S)),
        op("aten.gt.Scalar", (Ref("arange"), 0), "gt", TensorType("bool", (S,))),
        op("aten.view.default", (Ref("gt"), (1, S, 1)), "view", TensorType("bool", (1, S, 1))),
        op("aten.expand.default", (Ref("view"), (b, S, 1)), "expand", TensorType("bool", (b, S, 1))),
    )
    return Graph((), (), ops, ("expand",))


def block_graph(tp: int) -> Graph:
    """`x + mask * down(silu(up(x)))`, the hidden dimension split over tp."""
    inputs = (Value("x", f64(b, S, D)), Value("mask", TensorType("bool", (b, S, 1))))
    state = (
        Value("mlp.up.weight", f64(H // tp, D)),
        Value("mlp.down.weight", f64(D, H // tp)),
        Value("mlp.down.bias", f64(D)),
    )
    ops = [op("comm.copy", (Ref("x"),), "copy", f64(b, S, D), axis="tp")] if tp > 1 else []
    ops += [
        op("aten.linear.default", (Ref("copy" if tp > 1 else "x"), Ref("mlp.up.weight")), "up", f64(b, S, H // tp), 12),
        op("aten.silu.default", (Ref("up"),), "silu", f64(b, S, H // tp), 13),
        op("aten.linear.default", (Ref("silu"), Ref("mlp.down.weight")), "down", f64(b, S, D), 14),
    ]
    if tp > 1:
        ops.append(op("comm.all_reduce", (Ref("down"),), "sum", f64(b, S, D), 14, axis="tp", grad="identity"))
    ops += [
        op("aten.add.Tensor", (Ref("sum" if tp > 1 else "down"), Ref("mlp.down.bias")), "add", f64(b, S, D), 14),
        op("aten.mul.Tensor", (Ref("add"), Ref("mask")), "mul", f64(b, S, D), 15),
        op("aten.add.Tensor", (Ref("x"), Ref("mul")), "residual", f64(b, S, D), 15),
    ]
    return Graph(inputs, state, tuple(ops), ("residual",))


def count_graph() -> Graph:
    ops = (
        op("aten.ne.Scalar", (Ref("labels"), -100), "ne", TensorType("bool", (b, S))),
        op("aten.sum.default", (Ref("ne"),), "sum", i64()),
    )
    return Graph((Value("labels", i64(b, S)),), (), ops, ("sum",))


def head_graph() -> Graph:
    """Summed cross-entropy over the count of tokens, plus a term over the global batch size."""
    inputs = (Value("x", f64(b, S, D)), Value("labels", i64(b, S)), Value("count", i64()))
    ops = (
        op("aten.linear.default", (Ref("x"), Ref("embed.weight")), "logits", f64(b, S, V)),
        op("aten.view.default", (Ref("logits"), (b * S, V)), "view", f64(b * S, V)),
        op("aten.view.default", (Ref("labels"), (b * S,)), "view_1", i64(b * S)),
        op("aten.cross_entropy_loss.default", (Ref("view"), Ref("view_1"), None, 2), "sum", f64()),
        op("aten.div.Tensor", (Ref("sum"), Ref("count")), "div", f64()),
        op("aten.sum.default", (Ref("x"),), "sum_1", f64()),
        op("aten.div.Tensor", (Ref("sum_1"), B * S), "div_1", f64()),
        op("aten.add.Tensor", (Ref("div"), Ref("div_1")), "loss", f64()),
    )
    return Graph(inputs, (Value("embed.weight", f64(V, D)),), ops, ("loss",))


def network(*, blocks: int = 4, stages: int = 1, strategy: str = "dp1") -> Program:
    """A staged network of `blocks` blocks, all layers under one strategy (of dp and tp), embedding and head tied."""
    plan_strategy = Strategy.parse(strategy)
    mesh = plan_strategy.mesh
    on_dp = tuple(a.name == "dp" for a in mesh)
    data = _layout(mesh, dp=Shard(0))
    state_layouts = {
        "embed.weight": _layout(mesh, dp=BROADCAST),
        "mlp.up.weight": _layout(mesh, dp=BROADCAST, tp=Shard(0)),
        "mlp.down.weight": _layout(mesh, dp=BROADCAST, tp=Shard(1)),
        "mlp.down.bias": _layout(mesh, dp=BROADCAST),
    }
    loss = {"loss": tuple(PARTIAL if dp else REPLICATE for dp in on_dp)}

    def cls(name: str, graph: Graph, layouts: dict[str, Layout] | None = None) -> LayerClass:
        graph = with_layouts(graph, {**state_layouts, **(layouts or {})}, data)
        return LayerClass(f"{name}@{strategy}", graph, base=name, strategy=plan_strategy, mesh=mesh)

    classes = (
        cls("embed", embedding_graph()),
        cls("make_mask", mask_graph()),
        cls("block", block_graph(plan_strategy.degree("tp"))),
        LayerClass("count", count_graph(), base="count"),
        cls("head", head_graph(), {**loss, "count": _layout(mesh)}),
    )
    embed = Layer("embed", f"embed@{strategy}", ("ids",), ("embed.weight",), ("h0",))
    count = Layer("tokens", "count", ("labels",), (), ("tokens.sum",), LayerKind.STEP)
    head = Layer("head", f"head@{strategy}", (f"h{blocks}", "labels", "tokens.sum"), ("embed.weight",), ("loss",))
    body = [
        Layer(f"block_{i}", f"block@{strategy}", (f"h{i}", "mask"), tuple(_block_state(i)), (f"h{i + 1}",))
        for i in range(blocks)
    ]
    layers = [embed, *body, head]
    mask = Layer("mask", f"make_mask@{strategy}", (), (), ("mask",), LayerKind.PREAMBLE)
    cuts = [round(len(layers) * i / stages) for i in range(stages + 1)]
    built = []
    for index, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
        own = layers[start:end]
        extra = [mask, *([count] if head in own else [])]
        names = dict.fromkeys(name for layer in own for name in layer.state)
        keep = tuple(StateLayout(n, mesh, state_layouts[_formal(n)]) for n in names)
        received = (Transfer(f"h{start - 1}", f64(b, S, D)),) if index else ()
        sent = (Transfer(f"h{end - 1}", f64(b, S, D)),) if index < stages - 1 else ()
        built.append(Stage(index, (*extra, *own), received, sent, keep))
    state = [State("embed.weight", f64(V, D), aliases=("head.weight",))]
    for i in range(blocks):
        up, down, bias = _block_state(i)
        state += [State(up, f64(H, D)), State(down, f64(D, H)), State(bias, f64(D))]
    plan = Plan(
        "",
        4,
        plan_strategy.devices * stages,
        1,
        "gpipe",
        tuple((plan_strategy,) * (e - s) for s, e in zip(cuts, cuts[1:], strict=False)),
    )
    inputs = (Value("ids", i64(B, S)), Value("labels", i64(B, S)))
    return Program("Net", Form.STAGED, 4, inputs, tuple(state), "loss", classes=classes, plan=plan, stages=tuple(built))


def _layout(mesh: Mesh, **placements: Placement) -> Layout:
    return tuple(placements.get(axis.name, REPLICATE) for axis in mesh)


def _block_state(index: int) -> list[str]:
    return [f"blocks.{index}.mlp.{name}" for name in ("up.weight", "down.weight", "down.bias")]


def _formal(name: str) -> str:
    return name.partition(".mlp.")[2] and "mlp." + name.partition(".mlp.")[2] or name
