"""What a GPU runs and keeps, seen without one: against counts by hand, the op table, and published formulas."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import galvatron
from galvatron.costs.events import Profile, launches
from galvatron.costs.profile import profile_graph
from galvatron.costs.sharded import ShardedCostModel
from galvatron.ir.cluster import Cluster
from galvatron.ir.ops.kernels import CALLS, LAUNCHES, launches_on
from galvatron.ir.ops.schemas import is_operator
from galvatron.ir.strategy import Strategy
from galvatron.passes.pipeline import Pipeline
from tests.machine.test_operators import PRODUCTS, of_vectors, said
from tests.parity import harness
from tests.partition import every_sample  # noqa: F401  # it fills CASES
from tests.partition.samples import CASES, Draw, Sample, sample

aten = torch.ops.aten


def on_cuda(call: Sample) -> Profile:
    return profile_graph(call.graph, (), call.differentiable, kind="cuda")


def names(profile: Profile) -> tuple[list[str], list[str]]:
    return [e.name for e in launches(profile.forward)], [e.name for e in launches(profile.backward)]


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape).to(dtype)


ROWS, WIDTH = 6, 16
X_BYTES, W_BYTES = 2 * ROWS * WIDTH, 2 * WIDTH
X, W = partial(random, ROWS, WIDTH), partial(random, WIDTH)
Case = tuple[Callable[[], Sample], int, int, int]
CASES_BY_HAND: dict[str, Case] = {
    "layer norm": (
        lambda: sample("layer_norm.default", X(), [WIDTH], W(), W()), 1, 2, X_BYTES + 2 * W_BYTES + 8 * ROWS
    ),
    "layer norm without weights": (lambda: sample("layer_norm.default", X(), [WIDTH]), 1, 1, X_BYTES + 8 * ROWS),
    "rms norm": (lambda: sample("rms_norm.default", X(), [WIDTH], W(), 1e-5), 1, 2, X_BYTES + W_BYTES + 4 * ROWS),
    "group norm": (lambda: sample("group_norm.default", X(), 4, W(), W()), 3, 4, X_BYTES + W_BYTES + 2 * 2 * 4 * ROWS),
    "dropout": (lambda: sample("dropout.default", X(), 0.1, True), 1, 1, X_BYTES // 2),
    "gelu": (lambda: sample("gelu.default", X()), 1, 1, X_BYTES),
    "silu": (lambda: sample("silu.default", X()), 1, 1, X_BYTES),
    "softmax": (lambda: sample("softmax.int", X(), 1), 1, 2, X_BYTES),
    "softmax of f16": (lambda: sample("softmax.int", X().half(), 1, torch.float32), 1, 2, 2 * X_BYTES),
    "softmax of bf16": (lambda: sample("softmax.int", X(), 1, torch.float32), 2, 3, 2 * X_BYTES),
    "linear": (lambda: sample("linear.default", X(), random(4, WIDTH), random(4)), 1, 3, X_BYTES + 4 * W_BYTES),
    "convolution": (
        lambda: sample("conv1d.default", X().unsqueeze(0), random(3, ROWS, 1), random(3)), 2, 3, X_BYTES + 2 * 3 * ROWS
    ),
    # the targets and the sum of the weights, and the logarithms
    "cross-entropy": (
        lambda: sample("cross_entropy_loss.default", X(), torch.arange(ROWS)), 2, 3, X_BYTES + 8 * ROWS + 2
    ),
}  # fmt: skip
"""A call, its kernels forward and backward, and the bytes that are kept, operands included."""


@pytest.mark.parametrize(("call", "forward", "backward", "kept_bytes"), CASES_BY_HAND.values(), ids=CASES_BY_HAND)
def test_what_runs_and_what_is_kept(call: Callable[[], Sample], forward: int, backward: int, kept_bytes: int) -> None:
    profile = on_cuda(call())
    assert [*map(len, names(profile))] == [forward, backward]
    assert profile.saved_bytes(1) + sum(size(1) for _, size in profile.shared_bytes) == kept_bytes


def attention(
    query: tuple[int, ...],
    key: tuple[int, ...],
    dtype: torch.dtype = torch.bfloat16,
    mask: Tensor | None = None,
    **options: Any,
) -> Sample:
    q, k, v = random(*query, dtype=dtype), random(*key, dtype=dtype), random(*key, dtype=dtype)
    return sample("scaled_dot_product_attention.default", q, k, v, mask, 0.0, **options)


HEADS, ALONE = (2, 4, 16, 8), (2, 2, 16, 8)
"""Samples, heads, places, width."""
FLASH, EFFICIENT = "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"


@pytest.mark.parametrize(
    ("call", "kernel"),
    [
        (lambda: attention(HEADS, HEADS), FLASH),
        (lambda: attention(HEADS, HEADS, is_causal=True), FLASH),
        (lambda: attention(HEADS, ALONE, enable_gqa=True), FLASH),
        (lambda: attention((2, 4, 16, 6), (2, 4, 16, 6)), FLASH),
        (lambda: attention(HEADS, HEADS, mask=torch.ones(16, 16, dtype=torch.bool)), EFFICIENT),
        (lambda: attention(HEADS, HEADS, torch.float32, is_causal=True), EFFICIENT),
        (lambda: attention(HEADS, ALONE, torch.float32, enable_gqa=True), "bmm"),
        (lambda: attention(HEADS, HEADS, torch.float64), "bmm"),
        (lambda: attention((2, 4, 8, 8), HEADS, is_causal=True), EFFICIENT),
    ],
)
def test_attention_is_the_kernel_that_suits_it(call: Callable[[], Sample], kernel: str) -> None:
    forward, backward = names(on_cuda(call()))
    assert kernel in forward and (f"{kernel}_backward" in backward or kernel == "bmm")
    assert forward.count(kernel) == (2 if kernel == "bmm" else 1)


def test_attention_keeps_operands_result_and_a_number_for_each_row() -> None:
    tensor_bytes, rows = 2 * math.prod(HEADS), math.prod(HEADS[:-1])
    philox_bytes = 3 * 8
    kept = on_cuda(attention(HEADS, HEADS, is_causal=True)).saved_bytes(1)
    assert kept == 4 * tensor_bytes + 4 * rows + philox_bytes


def flop(profile: Profile) -> tuple[float, float]:
    return tuple(sum(e.at(1).flop for e in launches(part)) for part in (profile.forward, profile.backward))  # type: ignore[return-value]  # of two


@pytest.mark.parametrize("rule", PRODUCTS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_gpu_does_the_arithmetic_that_the_op_says(rule: str, data: st.DataObject) -> None:
    call = data.draw(st.sampled_from(CASES[rule]))(Draw(data, 2))
    assume(not of_vectors(call))
    expected = said(call)
    assume(expected[0])
    assert flop(on_cuda(call)) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("rule", sorted(CASES))
@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_every_op_does_the_arithmetic_on_a_gpu_that_it_does_on_the_cpu(rule: str, data: st.DataObject) -> None:
    call = data.draw(st.sampled_from(CASES[rule]))(Draw(data, 2))
    try:
        on_cpu = profile_graph(call.graph, (), call.differentiable)
    except (RuntimeError, ValueError, NotImplementedError):
        assume(False)  # one that torch does not differentiate
        return
    assert flop(on_cuda(call)) == pytest.approx(flop(on_cpu))


@pytest.mark.slow
@pytest.mark.parametrize("rule", sorted(CASES))
@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_the_meta_device_shows_what_fakes_show(rule: str, data: st.DataObject) -> None:
    call = data.draw(st.sampled_from(CASES[rule]))(Draw(data, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("galvatron.costs.profile._device_of", lambda kind, graph: "cpu")
        try:
            on_fakes = on_cuda(call)
        except (RuntimeError, ValueError, NotImplementedError):
            assume(False)  # one that torch does not differentiate
            return
    assert on_cuda(call) == on_fakes


@settings(max_examples=20, deadline=None)
@given(
    samples=st.integers(1, 3),
    heads=st.integers(1, 3),
    places=st.integers(1, 20),
    width=st.sampled_from([8, 16, 64]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    masked=st.booleans(),
    causal=st.booleans(),
)
def test_one_kernel_of_attention_does_the_arithmetic_that_the_op_says(
    samples: int, heads: int, places: int, width: int, dtype: torch.dtype, masked: bool, causal: bool
) -> None:
    shape = (samples, heads, places, width)
    mask = torch.ones(places, places, dtype=torch.bool) if masked and not causal else None
    call = attention(shape, shape, dtype, mask, is_causal=causal)
    assert flop(on_cuda(call)) == pytest.approx(said(call))


def test_the_table_speaks_of_what_torch_has() -> None:
    for calls in CALLS.values():
        for name in calls:
            assert is_operator(f"aten.{name}" if "." in name else f"aten.{name}.default")
    for kind, kernels in LAUNCHES.items():
        for name in kernels:
            packet = getattr(aten, name)
            schema = getattr(packet, packet.overloads()[0])._schema
            said_of = {*(a.name for a in schema.arguments), *map(str, range(len(schema.returns)))}
            for launch in launches_on(kind, name):
                assert said_of >= {*launch.reads, *launch.writes, *launch.needs}, name


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return F.rms_norm(x, (WIDTH,))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * 2


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        result = StraightThrough.apply(self.linear(x))
        assert isinstance(result, Tensor)
        return result.sum()


def test_what_is_inside_of_functions_is_of_the_device_too() -> None:
    program = galvatron.capture(Normed(), {"x": torch.zeros(ROWS, WIDTH)})
    graphs = [cls.graph for cls in program.classes if any(op.function for op in cls.graph.ops)]
    (graph,) = graphs
    state = frozenset(value.name for value in graph.state)
    forward, backward = names(profile_graph(graph, (), state, kind="cuda"))
    assert "_fused_rms_norm" in forward and "_fused_rms_norm_backward" not in backward


def test_nothing_changes_where_a_device_has_no_table() -> None:
    call = sample("rms_norm.default", X(), [WIDTH], W(), 1e-5)
    plain = profile_graph(call.graph, (), call.differentiable)
    assert profile_graph(call.graph, (), call.differentiable, kind="cpu") == plain != on_cuda(call)


# A block as Korthikanti et al. count it

SEQUENCE, HIDDEN, HEAD_COUNT, BATCH, VOCABULARY = 32, 64, 4, 4, 128
SBH = SEQUENCE * BATCH * HIDDEN
SQUARE = 5 * HEAD_COUNT * SEQUENCE / HIDDEN
"""5as/h: of each head the softmax, its dropout's result and its mask."""
STATISTICS = 16 / HIDDEN
"""Of each of two layer norms mean and deviation of each row in 32 bits, which the paper leaves out as small."""


class GPTBlock(nn.Module):
    """Attention written out, so that no kernel is whole attention; dropout at the three usual places."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm_2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)
        self.register_buffer("future", torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = (-1, SEQUENCE, HEAD_COUNT, HIDDEN // HEAD_COUNT)
        q, k, v = (t.view(heads).transpose(1, 2) for t in self.qkv(self.norm(x)).split(HIDDEN, -1))
        scores = (q @ k.transpose(-2, -1) / math.sqrt(heads[-1])).masked_fill(self.future, -math.inf)
        mixed = F.dropout(scores.softmax(-1), 0.1, self.training) @ v
        x = x + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), 0.1, self.training)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm_2(x)))), 0.1, self.training)


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.blocks = nn.ModuleList(GPTBlock() for _ in range(2))
        self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


@cache
def gpt() -> ShardedCostModel:
    with torch.device("meta"):
        ids = torch.zeros(BATCH, SEQUENCE, dtype=torch.long)
        captured = galvatron.capture(GPT(), {"ids": ids, "labels": ids.clone()}, precision="bf16")
    cluster = harness.proportional(Cluster.parse("a100-80g:1x4"))
    return ShardedCostModel(Pipeline.of(("annotate-costs",)).run(captured), cluster)


def saved_bytes(strategy: str) -> float:
    return gpt().layer(1, Strategy.parse(strategy), BATCH, ()).saved_bytes


def test_activations_of_a_gpt_block_are_those_of_the_paper() -> None:
    """sbh(34 + 5as/h): Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (2022)."""
    assert saved_bytes("dp1") == SBH * (34 + SQUARE + STATISTICS)
    assert saved_bytes("dp4") == SBH / 4 * (34 + SQUARE + STATISTICS)


@pytest.mark.parametrize("t", [2, 4])
def test_activations_under_tensor_parallelism_are_those_of_the_paper(t: int) -> None:
    """Operands of the norms, what they give to the split matrices, and two masks are whole: sbh(10 + 24/t + 5as/ht)."""
    assert saved_bytes(f"tp{t}") == SBH * (10 + 24 / t + SQUARE / t + STATISTICS)


@pytest.mark.parametrize("t", [2, 4])
def test_activations_under_sequence_parallelism(t: int) -> None:
    """sbh/t(34 + 5as/h), and two operands of split matrices that are kept gathered: the paper gathers them again in the
    backward, at the price of two messages."""
    gathered = 2 * 2 * (1 - 1 / t)
    assert saved_bytes(f"tp{t}+sp") == SBH * ((34 + SQUARE + STATISTICS) / t + gathered)


@pytest.mark.parametrize("t", [1, 2, 4])
def test_a_recomputed_block_keeps_what_goes_in(t: int) -> None:
    """2sbh, and 2sbh/t where that is in slices of the sequence."""
    assert saved_bytes(f"tp{t}-recompute") == 2 * SBH
    assert saved_bytes(f"tp{t}+sp-recompute") == 2 * SBH / t


@pytest.mark.parametrize("t", [1, 2, 4])
def test_a_block_that_computes_attention_again_keeps_no_square(t: int) -> None:
    """What the paper calls selective: sbh(10 + 24/t), and 34sbh/t with the two operands that are kept gathered."""
    assert saved_bytes(f"tp{t}-recompute=attention") == SBH * (10 + 24 / t + STATISTICS)
    gathered = 2 * 2 * (1 - 1 / t)
    assert saved_bytes(f"tp{t}+sp-recompute=attention") == SBH * ((34 + STATISTICS) / t + gathered)


def test_a_block_that_computes_attention_again_runs_scores_and_their_softmax_twice() -> None:
    """And the copies that batched products make of their operands; the mixture of values saves nothing that it makes,
    so that it runs once."""

    def kernels(kind: str) -> Counter[str]:
        cls = gpt().program.class_of[gpt().layers[1].cls]
        state = frozenset(value.name for value in (*cls.graph.inputs, *cls.graph.state))
        return Counter(names(profile_graph(cls.graph, (), state, kind, kind="cuda"))[1])

    again = kernels("attention") - kernels("none")
    assert again["bmm"] == again["_softmax"] == again["native_dropout"] == 1
    assert not again.keys() & {"addmm", "native_layer_norm", "gelu"}


def test_a_layer_without_attention_is_not_computed_again() -> None:
    embedding, head = 0, 3
    for layer in (embedding, head):
        kept, again = (gpt().layer(layer, Strategy.parse(s), BATCH, ()) for s in ("tp2", "tp2-recompute=attention"))
        assert kept == again


@pytest.mark.parametrize("t", [1, 2])
def test_selective_recomputation_keeps_results_of_products(t: int) -> None:
    """It is not the paper's, which computes the core of attention again and keeps 34sbh: kept are the input (2), and of
    each product the result: queries, keys and values (6/t), scores (2as/ht), their mixture (2/t), both outputs (2 + 2),
    what goes into GELU (8/t); and the copies of queries, keys and values (6/t) that batched products make."""
    scores = 2 * HEAD_COUNT * SEQUENCE / HIDDEN
    assert saved_bytes(f"tp{t}-recompute=selective") == SBH * (2 + 2 + 2 + (6 + 2 + 8 + 6 + scores) / t)
