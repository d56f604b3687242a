"""Layers as a person would cut them, classes shared by equal layers, and nothing lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from galvatron.ir.graph import Arg, Graph, Op, Ref, Source, Value, map_refs
from galvatron.ir.inlined import inlined
from galvatron.ir.program import Form, LayerKind, Program, State
from galvatron.ir.types import BATCH, TensorType
from galvatron.ir.verify import verify
from galvatron.passes.frontend.cluster_layers import ClusterLayers
from galvatron.passes.frontend.normalize import Normalize
from tests import models, stand_ins
from tests.marks import some_slow

S, D = 4, 8


class Builder:
    """Writes a captured program op by op."""

    def __init__(self) -> None:
        self.inputs, self.state, self.ops = [], [], []

    def input(self, name: str, *shape: int, dtype: str = "f32") -> str:
        self.inputs.append(Value(name, TensorType(dtype, (BATCH, *shape))))
        return name

    def parameter(self, name: str, *shape: int, kind: str = "parameter") -> str:
        if name not in {s.name for s in self.state}:
            self.state.append(State(name, TensorType("f32", shape), kind, kind == "parameter"))
        return name

    def op(self, target: str, *args: Arg, shape: tuple, dtype: str = "f32", scope: str = "") -> str:
        name = f"v{len(self.ops)}"
        refs = tuple(Ref(a) if isinstance(a, str) else a for a in args)
        source = Source("model.py", 1, "", scope)
        self.ops.append(Op(f"aten.{target}", refs, (), (Value(name, TensorType(dtype, shape)),), source))
        return name

    def linear(self, x: str, weight: str, features: int = D, inner: int = D, scope: str = "") -> str:
        shape = (BATCH, S, features)
        return self.op("linear.default", x, self.parameter(weight, features, inner), shape=shape, scope=scope)

    def block(self, x: str, prefix: str, scope: str = "") -> str:
        """A residual block of two matrices."""
        shape = (BATCH, S, D)
        up = self.linear(x, f"{prefix}up", 4 * D, scope=scope)
        down = self.linear(
            self.op("relu.default", up, shape=(BATCH, S, 4 * D), scope=scope), f"{prefix}down", D, 4 * D, scope
        )
        return self.op("add.Tensor", x, down, shape=shape, scope=scope)

    def loss(self, x: str) -> str:
        return self.op("sum.default", x, shape=())

    def program(self, output: str) -> Program:
        graph = Graph(tuple(self.inputs), tuple(Value(s.name, s.type) for s in self.state), tuple(self.ops), (output,))
        return Program("built", Form.CAPTURED, 4, graph.inputs, tuple(self.state), output, graph=graph)


def cluster(program: Program, hints: bool = True) -> Program:
    """The clustered program, with everything checked that holds for any."""
    before = program.graph
    assert before is not None
    after = ClusterLayers(hints=hints).run(program)
    verify(after)
    assert ClusterLayers(hints=hints).run(program) == after
    assert computation(inlined(after)) == computation(before)
    assert after.fingerprint == program.fingerprint
    names = [*(r for layer in after.layers for r in layer.results), *(v.name for v in program.inputs)]
    assert len({*names, *(s.name for s in program.state)}) == len(names) + len(program.state)
    return after


def computation(graph: Graph) -> object:
    """What a graph computes, whatever its values are called, in whatever order, and however often."""
    known = {v.name: i for i, v in enumerate((*graph.inputs, *graph.state))}
    known = {name: f"%{name}" for name in known}
    numbers: dict[object, str] = {}
    for op in graph.without_dead_ops().ops:
        bare = replace(op, args=tuple(map_refs(a, known.__getitem__) for a in op.args))
        bare = replace(bare, kwargs=tuple((k, map_refs(v, known.__getitem__)) for k, v in op.kwargs), results=())
        number = numbers.setdefault((bare, tuple(v.type for v in op.results)), f"%{len(numbers)}")
        known.update((v.name, f"{number}.{i}") for i, v in enumerate(op.results))
    order = {number: key for key, number in numbers.items()}

    def expression(name: str, seen: dict[str, int]) -> object:
        number = name.partition(".")[0]
        if number not in order:
            return name
        if number in seen:
            return seen[number], name.partition(".")[2]
        op, types = order[number]  # type: ignore[misc]  # the key made above
        operands = tuple(expression(n, seen) for n in op.operands)
        seen[number] = len(seen)
        return (map_op(op), types, operands, name.partition(".")[2])

    def map_op(op: Op) -> Op:
        return op.map_refs(lambda _: "")

    return tuple(expression(known[n], {}) for n in graph.outputs)


def shape_of(program: Program) -> list[tuple[str, str]]:
    """Name and class of the layers of a micro-batch."""
    return [(layer.name, layer.cls) for layer in program.layers if layer.kind is LayerKind.PLANNED]


def stack(kind: str, count: int) -> list[str]:
    return [f"{kind}.{i}" for i in range(count)]


# Graphs built by hand


@pytest.mark.parametrize("hints", [True, False])
def test_blocks_without_modules(hints: bool) -> None:
    b = Builder()
    x = b.linear(b.input("x", S, 3), "in", D, 3)
    for i in range(5):
        x = b.block(x, f"w{i}_")
    program = cluster(b.program(b.loss(b.linear(x, "out", 2))), hints)
    assert shape_of(program) == [("stem", "stem"), *((n, "block") for n in stack("block", 5)), ("head", "head")]
    block = program.class_of["block"].graph
    assert [v.name for v in block.inputs] == ["x"]
    assert [v.name for v in block.state] == ["w_up", "w_down"]
    assert program.layers[1].state == ("w0_up", "w0_down")
    assert program.layers[1].results == ("block.0.out",)


def test_module_paths_name_layers_and_state() -> None:
    b = Builder()
    x = b.linear(b.input("x", S, 3), "in", D, 3)
    for i in range(3):
        x = b.block(x, f"model.blocks.{i}.mlp.", scope=f"model.blocks.{i}.mlp")
    program = cluster(b.program(b.loss(x)))
    assert shape_of(program)[1:4] == [(n, "blocks") for n in stack("blocks", 3)]
    assert [v.name for v in program.class_of["blocks"].graph.state] == ["mlp.up", "mlp.down"]


def test_alternating_blocks_are_layers_of_two_classes() -> None:
    b = Builder()
    x = b.linear(b.input("x", S, 3), "in", D, 3)
    for i in range(6):
        mixed = b.linear(x, f"one{i}") if i % 2 else b.linear(b.linear(x, f"down{i}", 3), f"up{i}", D, 3)
        x = b.op("add.Tensor", x, mixed, shape=(BATCH, S, D))
        x = b.block(x, f"mlp{i}_")
    program = cluster(b.program(b.loss(x)))
    expected = [(n, "block.1" if i % 2 else "block") for i, n in enumerate(stack("block", 6))]
    assert shape_of(program) == [("stem", "stem"), *expected, ("head", "head")]


def test_equal_parts_of_blocks_are_no_layers() -> None:
    """Five equal matrices in a row, of three blocks, the first of which has a projection beside it."""
    b = Builder()
    x = b.linear(b.input("x", S, 3), "in", 3, 3)
    for i in range(3):
        scope, inner = f"blocks.{i}", D if i else 3
        skip = x if i else b.linear(x, f"{scope}.skip.weight", D, inner, f"{scope}.skip")
        first = b.linear(x, f"{scope}.first.weight", D, inner, f"{scope}.first")
        hidden = b.op("relu.default", first, shape=(BATCH, S, D), scope=scope)
        second = b.linear(hidden, f"{scope}.second.weight", scope=f"{scope}.second")
        x = b.op("add.Tensor", skip, second, shape=(BATCH, S, D), scope=scope)
    layers = shape_of(cluster(b.program(b.loss(b.linear(x, "out", 2)))))
    assert [name for name, _ in layers] == ["stem", "blocks.0", "blocks.1", "blocks.2", "head"]
    assert layers[2][1] == layers[3][1] != layers[1][1]


@pytest.mark.parametrize("hints", [True, False])
def test_branches_that_are_added_up_are_no_blocks(hints: bool) -> None:
    b = Builder()
    x = b.linear(b.input("x", S, 3), "in", 2 * D, 3)
    hidden = b.linear(b.linear(x, "first", D, 2 * D), "second", 2 * D)
    third = b.linear(hidden, "third", 4 * D, 2 * D)
    x = b.op("add.Tensor", third, b.linear(x, "skip", 4 * D, 2 * D), shape=(BATCH, S, 4 * D))
    program = cluster(b.program(b.loss(b.linear(x, "out", 2, 4 * D))), hints)
    assert not any(name.startswith("block") for name, _ in shape_of(program)), shape_of(program)


def test_parallel_projections_are_no_blocks() -> None:
    b = Builder()
    x = b.linear(b.input("x", S, 3), "in", D, 3)
    q, k, v = (b.linear(x, name) for name in "qkv")
    a = b.op("scaled_dot_product_attention.default", q, k, v, shape=(BATCH, S, D))
    x = b.op("add.Tensor", x, b.linear(a, "o"), shape=(BATCH, S, D))
    program = cluster(b.program(b.loss(x)))
    assert all(len(layer.operands) == 1 for layer in program.layers)


def test_whole_batch_statistics_run_once_per_step() -> None:
    b = Builder()
    x, labels = b.input("x", S, D), b.input("labels", S, dtype="i64")
    kept = b.op("ne.Scalar", labels, -100, shape=(BATCH, S), dtype="bool")
    count = b.op("sum.default", kept, shape=(), dtype="i64")
    for i in range(3):
        x = b.block(x, f"w{i}_")
    program = cluster(b.program(b.op("div.Tensor", b.loss(x), count, shape=())))
    step = program.layers[0]
    assert (step.kind, step.operands, step.results) == (LayerKind.STEP, ("labels",), ("step.sum",))
    assert [v.name for v in program.class_of[step.cls].graph.inputs] == ["labels"]
    assert "step.sum" in program.layers[-1].operands


def test_shared_masks_are_a_preamble_and_private_ones_are_not() -> None:
    b = Builder()
    x, mask = b.input("x", S, D), b.input("mask", S, 1)
    shared = b.op("neg.default", b.op("exp.default", mask, shape=(BATCH, S, 1)), shape=(BATCH, S, 1))
    private = b.op("sin.default", mask, shape=(BATCH, S, 1))
    x = b.op("mul.Tensor", b.linear(x, "in"), private, shape=(BATCH, S, D))
    for i in range(3):
        x = b.op("mul.Tensor", b.block(x, f"w{i}_"), shared, shape=(BATCH, S, D))
    program = cluster(b.program(b.loss(x)))
    preamble = program.layers[0]
    assert (preamble.kind, preamble.results) == (LayerKind.PREAMBLE, ("preamble.neg",))
    assert all("preamble.neg" in layer.operands for layer in program.layers if layer.cls == "block")
    assert "mask" in program.layers[1].operands


def test_small_constants_are_repeated_instead_of_sent() -> None:
    b = Builder()
    x = b.linear(b.input("x", S, 3), "in", D, 3)
    positions = b.op("arange.default", S, shape=(S,), dtype="i64")
    positions = b.op("unsqueeze.default", positions, 1, shape=(S, 1), dtype="i64")
    for i in range(3):
        x = b.op("add.Tensor", b.block(x, f"w{i}_"), positions, shape=(BATCH, S, D))
    program = cluster(b.program(b.loss(x)))
    assert all(layer.kind is LayerKind.PLANNED for layer in program.layers)
    targets = [op.target for op in program.class_of["block"].graph.ops]
    assert targets.count("aten.arange.default") == 1


def test_tied_parameter_is_bound_twice() -> None:
    b = Builder()
    table = b.parameter("table", 10, D)
    x = b.op("embedding.default", table, b.input("tokens", S, dtype="i64"), shape=(BATCH, S, D))
    for i in range(2):
        x = b.block(x, f"w{i}_")
    logits = b.op("linear.default", x, table, shape=(BATCH, S, 10))
    program = cluster(b.program(b.loss(logits)))
    assert [layer.name for layer in program.layers if "table" in layer.state] == ["embedding", "head"]


def test_frozen_and_trainable_layers_have_different_classes() -> None:
    b = Builder()
    x = b.linear(b.input("x", S, 3), "in", D, 3)
    for i in range(4):
        x = b.block(x, f"w{i}_")
    program = b.program(b.loss(x))
    frozen = tuple(replace(s, trainable=s.name[:2] not in ("w0", "w1")) for s in program.state)
    classes = [cls for name, cls in shape_of(cluster(replace(program, state=frozen))) if name.startswith("block")]
    assert classes == ["block", "block", "block.2", "block.2"]


@st.composite
def random_programs(draw: st.DrawFn) -> Program:
    """Layers of random widths, skips of any length, masks, shared weights, statistics."""
    b = Builder()
    values = [b.linear(b.input("x", S, D), "w")]
    free = [b.input("mask", S, D)]
    for i in range(draw(st.integers(0, 24))):
        x, y = draw(st.sampled_from(values[-4:])), draw(st.sampled_from([*values, *free]))
        kind = draw(st.sampled_from(["linear", "shared", "add", "relu", "mask", "count", "constant", "block"]))
        shape = (BATCH, S, D)
        if kind == "linear":
            values.append(b.linear(x, f"p{i}", scope=draw(st.sampled_from(["", "a", f"blocks.{i}", "blocks.0.mlp"]))))
        elif kind == "shared":
            values.append(b.linear(x, "w"))
        elif kind == "block":
            values.append(b.block(x, f"b{i}_"))
        elif kind == "relu":
            values.append(b.op("relu.default", x, shape=shape))
        elif kind == "add":
            values.append(b.op("add.Tensor", x, y, shape=shape))
        elif kind == "mask":
            free.append(b.op("neg.default", draw(st.sampled_from(free)), shape=shape))
        elif kind == "count":
            total = b.op("sum.default", draw(st.sampled_from(free)), shape=())
            values.append(b.op("div.Tensor", x, total, shape=shape))
        else:
            values.append(b.op("add.Tensor", x, b.op("ones.default", (D,), shape=(D,)), shape=shape))
    return b.program(b.loss(values[-1]))


@settings(max_examples=150, deadline=None)
@given(program=random_programs(), hints=st.booleans())
def test_any_graph_survives(program: Program, hints: bool) -> None:
    cluster(program, hints)


def test_loss_without_parameters_is_one_layer() -> None:
    b = Builder()
    program = cluster(b.program(b.loss(b.input("x", S))))
    assert len(shape_of(program)) == 1


# Real models


class Chain(nn.Module):
    """A plain stack of linear layers of the given widths."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        pairs = zip(widths, widths[1:], strict=False)
        self.net = nn.Sequential(*(m for a, b in pairs for m in (nn.Linear(a, b), nn.ReLU())))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(self.net(x), y)


class UNet(nn.Module):
    """Down, middle, up; every level is joined to its mirror image by a skip connection."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        pairs = list(zip(widths, widths[1:], strict=False))
        self.down = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.middle = nn.Linear(widths[-1], widths[-1])
        self.up = nn.ModuleList(nn.Linear(2 * b, a) for a, b in reversed(pairs))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        skips = []
        for layer in self.down:
            x = F.gelu(layer(x))
            skips.append(x)
        x = F.gelu(self.middle(x))
        for layer in self.up:
            x = F.gelu(layer(torch.cat([x, skips.pop()], -1)))
        return F.mse_loss(x, y)


class Encoder(nn.Module):
    """torch's own transformer with an embedding and a head."""

    def __init__(self, layers: int, norm_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(models.VOCABULARY, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(32, models.VOCABULARY)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.encoder(self.embedding(tokens)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Mixture(nn.Module):
    """Residual blocks, some of them with experts in a python loop."""

    def __init__(self, experts: list[int]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(models.VOCABULARY, 16)
        self.blocks = nn.ModuleList(nn.ModuleDict({"mix": self._mlp(), "experts": self._experts(n)}) for n in experts)

    @staticmethod
    def _mlp() -> nn.Module:
        return nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    @staticmethod
    def _experts(count: int) -> nn.Module:
        return nn.ModuleList(
            nn.Sequential(nn.Linear(16, 8 * count), nn.GELU(), nn.Linear(8 * count, 16)) for _ in range(count)
        )

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = x + block["mix"](x)
            total = torch.zeros_like(x)
            for index, expert in enumerate(block["experts"]):  # type: ignore[arg-type]  # a ModuleList
                total = total + torch.sigmoid(x[..., index : index + 1]) * expert(x)
            x = x + total
        return F.cross_entropy(F.linear(x, self.embedding.weight).flatten(0, 1), targets.flatten())


def own(model: nn.Module, *shapes: int) -> models.Case:
    """A model of this file; `shapes` are the widths of `x` and `y`, without them it takes tokens."""

    def vectors(size: int, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        sizes = dict(zip("xy", shapes, strict=True))
        return {n: torch.randn(size, s, generator=generator, dtype=torch.float64) for n, s in sizes.items()}

    def tokens(size: int, seed: int) -> dict[str, torch.Tensor]:
        return models.ragged_tokens(size, seed, "tokens", "targets")

    return models.Case(model.double(), vectors if shapes else tokens)


DECODER = ["embedding", *stack("layers", 3), "head"]
ENCODER_DECODER = ["embedding", *stack("encoder_block", 3), "embedding_1", *stack("decoder_block", 2), "head"]

CASES: dict[str, tuple[Callable[[], models.Case], list[str], int]] = {
    # a model, the names of its layers, and how many classes these have
    "gpt": (lambda: models.gpt(layers=3), ["embedding", *stack("block", 3), "head"], 3),
    "llama": (lambda: models.hugging_face("llama", num_hidden_layers=3), DECODER, 3),
    "llama-tied": (lambda: models.hugging_face("llama", num_hidden_layers=3, tie_word_embeddings=True), DECODER, 3),
    "qwen3": (lambda: models.hugging_face("qwen3", num_hidden_layers=3), DECODER, 3),
    "mixtral": (lambda: models.hugging_face("mixtral", num_hidden_layers=3), DECODER, 3),
    "gpt2": (lambda: models.hugging_face("gpt2", n_layer=3), ["embedding", *stack("h", 3), "head"], 3),
    "bert": (lambda: models.hugging_face("bert", num_hidden_layers=3), ["embedding", *stack("layer", 3), "head"], 3),
    "vit": (lambda: models.hugging_face("vit", num_hidden_layers=3), ["stem", *stack("layers", 3), "head"], 3),
    "t5": (lambda: models.hugging_face("t5", num_layers=3, num_decoder_layers=2), ENCODER_DECODER, 7),
    "post-norm": (lambda: own(Encoder(3, False)), DECODER, 3),
    "pre-norm": (lambda: own(Encoder(3, True)), DECODER, 3),
    "chain": (lambda: own(Chain(32, 64, 48, 10), 32, 10), ["net.0", "net.2", "net.4"], 3),
    "equal-chain": (
        lambda: own(Chain(32, 64, 64, 64, 64, 10), 32, 10),
        ["net.0", "net.2", "net.4", "net.6", "net.8"],
        3,
    ),
    "unet": (
        lambda: own(UNet(32, 24, 16, 8), 32, 32),
        [*stack("down", 3), "middle", *stack("up", 3)],
        7,
    ),
    "experts": (lambda: own(Mixture([3, 3])), ["embedding", *stack("blocks", 2), "head"], 3),
    "first-differs": (lambda: own(Mixture([1, 3, 3])), ["embedding", *stack("blocks", 3), "head"], 4),
    "last-differs": (lambda: own(Mixture([3, 3, 3, 1])), ["embedding", *stack("blocks", 4), "head"], 4),
    "windows": (
        lambda: stand_ins.windows(2),
        ["stem", "features.0.0", "features.0.1", "between", "features.2.0", "features.2.1", "head"],
        7,
    ),
    "convolutions": (
        lambda: stand_ins.convolutions(2, 2, 1),
        ["stem", *stack("layer1", 2), *stack("layer2", 2), "layer3.0", "head"],
        6,
    ),
    "recommendation": (lambda: stand_ins.recommendation(3), ["bottom", "embedding", "top"], 3),
    "alternating": (lambda: own(Mixture([1, 3, 1, 3])), ["embedding", *stack("blocks", 4), "head"], 4),
}


LIKE_OTHERS = ("llama-tied", "qwen3", "mixtral", "gpt2", "bert", "pre-norm", "last-differs")
"""Models whose layers are found as those of others are."""


@pytest.mark.one_in(12)
@pytest.mark.parametrize("name", some_slow([name for name in CASES if name not in LIKE_OTHERS], CASES))
def test_layers_of_a_model(name: str) -> None:
    make, layers, classes = CASES[name]
    case = make()
    captured = case.captured
    with models.Doubles():
        program = Normalize().run(captured.program)
        clustered = cluster(program)
        assert [n for n, _ in shape_of(clustered)] == layers
        assert len({cls for _, cls in shape_of(clustered)}) == classes

        batch = case.batch(3, 1)
        values = models.tensors_of(program, case.model, batch, captured.constants)
        assert program.graph is not None
        expected, actual = (
            models.loss_and_gradients(models.run(graph, values, 3), case.model)
            for graph in (program.graph, inlined(clustered))
        )
        models.assert_close(actual, expected, 1e-12)

    if name not in ("chain", "equal-chain", "unet", "convolutions", "recommendation"):
        without = cluster(program, hints=False)
        assert len(shape_of(without)) == len(layers)
        assert len({cls for _, cls in shape_of(without)}) == classes
