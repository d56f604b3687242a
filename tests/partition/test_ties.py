"""Parameters that layers share: whole or in parts, as the plan says, and alike in all these layers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galvatron.costs.estimate import estimate_plan, setting_of
from galvatron.costs.events import collectives_s
from galvatron.costs.state import local_parameter
from galvatron.ir.capture import capture_graph
from galvatron.ir.cluster import Cluster
from galvatron.ir.graph import Value
from galvatron.ir.layout import BROADCAST, Layout, Shard, joined_layout, local_shape
from galvatron.ir.network import Level
from galvatron.ir.plan import Plan, Ties
from galvatron.ir.planned import with_plan, with_ties
from galvatron.ir.program import LayerClass, Program
from galvatron.ir.strategy import AxisRole, Strategy
from galvatron.ir.ties import tied_classes
from galvatron.ir.types import evaluate
from galvatron.ir.verify import verify
from galvatron.machine import Machine
from galvatron.partition import Partitioner
from galvatron.partition.boundary import ROLES
from galvatron.passes import FRONT_END, LOWERING
from galvatron.passes.pipeline import Pipeline
from tests.costs.communication import stage_communication
from tests.marks import some_slow
from tests.partition.test_partition import check_class, partitioner

VOCABULARY, WIDTH, LENGTH, BATCH = 101, 16, 12, 8
PADDED = Shard(0, padded=True)


class Tied(nn.Module):
    """An embedding, equal blocks, and a head with the embedding's table, which may be narrower than the blocks."""

    def __init__(self, width: int = WIDTH, scale_grad_by_freq: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, width, scale_grad_by_freq=scale_grad_by_freq)
        self.widen, self.narrow = (nn.Linear(width, WIDTH), nn.Linear(WIDTH, width)) if width < WIDTH else (None, None)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
            for _ in range(4)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.table(tokens)
        x = self.widen(x) if self.widen is not None else x
        for block in self.blocks:
            x = x + block(x)
        x = torch.tanh(self.narrow(x)) if self.narrow is not None else x
        logits = F.linear(self.norm(x), self.table.weight)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


@cache
def costed(width: int = WIDTH, scale_grad_by_freq: bool = False) -> Program:
    """The model with layers and costs, for four devices."""
    tokens = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    model = Tied(width, scale_grad_by_freq).double()
    captured = capture_graph(model, {"tokens": tokens, "labels": tokens}).program
    program = Pipeline.of((*FRONT_END, "annotate-costs")).run(captured)
    return replace(program, cluster=Cluster.parse("a100-80g:1x4"), batch_size=BATCH)


def table(split: Partitioner, strategy: str, *, whole: bool = False) -> dict[str, tuple[LayerClass, Layout]]:
    """The classes that share the vocabulary, each with the layout in which it reads it."""
    (tie,) = split.ties
    (piece,) = tie.pieces
    parsed = Strategy.parse(strategy)
    local = {cls: split.shard(cls, parsed, ((tie.name, None if whole else parsed),)) for cls, _ in piece}
    return {cls: (local[cls], local[cls].graph.values[formal].layout or ()) for cls, formal in piece}


def sizes(cls: LayerClass) -> set[object]:
    """Every size of a dimension in a local graph."""
    return {size for value in cls.graph.values.values() for size in value.type.shape}


@pytest.mark.parametrize(
    ("family", "strategy"),
    some_slow(
        [("gpt2", "tp2"), ("gpt2", "tp4+sp"), ("gpt2", "dp2-tp2"), ("gpt2", "tp2-cp2"), ("gpt2", "ulysses2-tp2")],
        [("t5", "tp2"), ("t5", "dp2-tp2+sp")],
    ),
)
def test_a_tied_vocabulary_is_sharded_by_rows(family: str, strategy: str) -> None:
    """Padded where it does not divide; nothing in any of the classes has a whole vocabulary."""
    torch.manual_seed(0)
    split, parsed = partitioner(family, vocab_size=VOCABULARY), Strategy.parse(strategy)
    for name, (local, layout) in table(split, strategy).items():
        assert layout == tuple(PADDED if axis.name == "tp" else BROADCAST for axis in parsed.mesh)
        assert VOCABULARY not in sizes(local)
        targets = {op.target for op in local.graph.ops}
        assert targets & {"spmd.embedding", "spmd.cross_entropy_loss"}
        assert not targets & {"aten.cross_entropy_loss.default"}
        border = split.borders[name]
        if "cp" not in strategy:
            whole = split.program.class_of[name].graph
            check_class(whole, local, border.differentiable, parsed.degree("dp"), VOCABULARY)


def test_a_tied_vocabulary_is_whole_where_the_plan_says_so() -> None:
    split = partitioner("gpt2", vocab_size=VOCABULARY)
    found = table(split, "dp2-tp2", whole=True)
    assert all(layout == (BROADCAST, BROADCAST) for _, layout in found.values())
    assert all("padded=True" not in str([v.layout for v in local.graph.values.values()]) for local, _ in found.values())


@pytest.mark.one_in(2)
@pytest.mark.parametrize("strategy", ["tp4", "dp2-tp2+sp", "tp2-cp2", "ulysses2-tp2"])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_what_crosses_the_border_of_a_class_is_the_same_either_way(family: str, strategy: str) -> None:
    split = partitioner(family, vocab_size=VOCABULARY)
    parts, whole = (table(split, strategy, whole=whole) for whole in (False, True))

    def crossing(cls: LayerClass) -> list[object]:
        names = [*(value.name for value in cls.graph.inputs), *cls.graph.outputs]
        values = [cls.graph.values[name] for name in names]
        return [(value.type, joined_layout(value.layout or (), cls.mesh)) for value in values]

    for name, (local, _) in parts.items():
        assert crossing(local) == crossing(whole[name][0])


def test_classes_that_would_choose_differently_follow_the_head() -> None:
    """A table that is narrower than the blocks could be sharded along its width, at the price of whole logits."""
    program = costed(WIDTH // 2)
    assert program.cluster is not None
    found = table(Partitioner(program, program.cluster), "tp2")
    assert len(found) == 2
    assert all(layout == (PADDED,) for _, layout in found.values())


def test_what_one_class_cannot_read_in_slices_is_whole_in_all() -> None:
    """Gradients scaled by how often a token occurs want whole rows."""
    program = costed(scale_grad_by_freq=True)
    assert program.cluster is not None
    found = table(Partitioner(program, program.cluster), "tp2")
    assert all(layout == (BROADCAST,) for _, layout in found.values())


def test_classes_that_share() -> None:
    (tie,) = tied_classes(partitioner("t5", vocab_size=VOCABULARY).program)
    assert tie.name == "shared.weight"
    assert tie.classes == ("embedding", "embedding_1", "head")
    (piece,) = tie.pieces
    assert {cls for cls, _ in piece} == set(tie.classes)


@pytest.mark.parametrize(
    ("strategies", "kept"),
    [
        (("dp2-tp2", "dp2-tp2"), "dp2-tp2"), (("dp1-tp2", "tp2"), "tp2"), (("tp4", "tp4-recompute"), "tp4"),
        (("dp2-tp2", "tp2-dp2"), None), (("tp4", "tp4+sp"), None), (("tp4", "dp4"), None), (("dp4", "dp4"), None),
        (("cp2-ulysses2",), None), (("dp4-zero2", "dp4-zero2"), "dp4-zero2"), (("tp2-dp2", "tp2-dp2-zero1"), None),
        (("dp1-zero3",), None),
    ],
)  # fmt: skip
def test_what_a_plan_leaves_out_about_ties(strategies: tuple[str, ...], kept: str | None) -> None:
    """In parts where all layers would keep them so. Recomputation is each layer's own."""
    stage = tuple(map(Strategy.parse, strategies))
    plan = Plan("", BATCH, 4, micro_batches=1, schedule="gpipe", stages=(stage,))
    tied = {"table.weight": tuple(range(len(stage)))}
    assert with_ties(plan, tied).ties == (("table.weight", Strategy.parse(kept) if kept else None),)
    whole = replace(plan, ties=(("table.weight", None),))
    assert with_ties(whole, tied) == whole


@pytest.mark.parametrize("name", sorted(ROLES))
def test_a_strategy_says_whether_it_cuts_parameters(name: str) -> None:
    """As the roles of its axes do."""
    strategy = Strategy((AxisRole(name, 2),))
    assert strategy.keeping == (strategy if ROLES[name].matrices or ROLES[name].routes else None)


END, MIDDLE = "dp2-tp2", "dp4"
PLANS: dict[str, tuple[tuple[tuple[str, ...], ...], Layout, int]] = {
    "all alike": (((END,) * 6,), (BROADCAST, PADDED), 0),
    "the ends alike": (((END, *(MIDDLE,) * 4, END),), (BROADCAST, PADDED), 0),
    "the ends differ": (((MIDDLE, *(END,) * 5),), (BROADCAST,), 0),
    "the ends differ in the order of axes": (((END,) * 5 + ("tp2-dp2",),), (BROADCAST, BROADCAST), 0),
    "on two stages": ((("tp2",) * 3, ("tp2",) * 3), (PADDED,), 0),
    "on two stages that differ": ((("tp2",) * 3, ("tp2", "tp2", "dp2")), (BROADCAST,), 0),
    "ZeRO": (((f"{END}-zero2",) * 6,), (BROADCAST, PADDED), 2),
    "ZeRO on two stages": ((("dp2-zero3",) * 3, ("dp2-zero3",) * 3), (BROADCAST,), 3),
    "the ends differ in ZeRO": (((f"{END}-zero1",) * 5 + (END,),), (BROADCAST, BROADCAST), 0),
    "all alike, but whole": (((END,) * 6,), (BROADCAST, BROADCAST), 0),
    "ZeRO on two stages, but whole": ((("dp2-zero3",) * 3, ("dp2-zero3",) * 3), (BROADCAST,), 0),
}


def planned(stages: tuple[tuple[str, ...], ...], ties: Ties = ()) -> Program:
    program = costed()
    parsed = tuple(tuple(map(Strategy.parse, stage)) for stage in stages)
    plan = Plan(program.fingerprint, BATCH, 4, micro_batches=2, schedule="gpipe", stages=parsed, ties=ties)
    # Without latency the bytes of several messages cost what they do in one.
    cluster = replace(Cluster.parse("a100-80g:1x4"), levels=(Level("node", 4, 250e9, 0.0),))
    return with_plan(replace(program, cluster=cluster), plan)


@pytest.mark.parametrize("name", PLANS)
def test_every_stage_keeps_what_was_estimated(name: str) -> None:
    """One layout on all stages, and the bytes of the emitted state are those of the estimate."""
    stages, layout, level = PLANS[name]
    program = planned(stages, (("table.weight", None),) if name.endswith("whole") else ())
    assert program.plan is not None
    staged = Pipeline.of(LOWERING).run(program)
    verify(staged)
    for stage, report in zip(staged.stages, estimate_plan(program, program.plan)[1], strict=True):
        kept_bytes = 0.0
        for kept in stage.state:
            declared = staged.state_of[kept.state]
            shape = local_shape(declared.type.shape, kept.layout, kept.mesh)
            local = Value(kept.state, declared.type.with_shape(shape), kept.layout)
            trained = local_parameter(declared, local, kept.mesh, kept.zero).kept.total
            kept_bytes += trained if declared.trainable else evaluate(local.type.bytes, 1)
            if kept.state == "table.weight" and stage.index == 0:
                assert (kept.layout, kept.zero) == (layout, level)
        assert report.state_bytes == kept_bytes


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("strategy", ["dp4", "dp2-tp2"])
def test_a_shared_parameter_is_sent_as_often_as_was_estimated(strategy: str, level: int) -> None:
    """Within a micro-batch, where the layers that share are on one stage."""
    program = planned(((f"{strategy}-zero{level}" if level else strategy,) * 6,))
    assert program.plan is not None and program.cluster is not None
    sent = stage_communication(Pipeline.of(LOWERING).run(program))
    events = (*sent.forward, *sent.backward, *sent.state.forward, *sent.state.backward)
    share = BATCH // 2 // Strategy.parse(strategy).degree("dp")
    (report,) = estimate_plan(program, program.plan)[1]
    in_report_s = report.awaited_s + sum(
        getattr(report, f"{kind}{how}_s") for kind in ("gather", "reduce") for how in ("", "_hidden")
    )
    machine, turns = Machine(program.cluster), setting_of(program, program.plan).turning_share
    sent_s = collectives_s(events, machine, share) - turns * collectives_s(sent.kept, machine, share)
    assert in_report_s == pytest.approx(sent_s, rel=1e-9)
