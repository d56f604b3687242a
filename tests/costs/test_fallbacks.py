"""What sharding leaves whole: each reason for it, and what the cost model says that it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from galvatron.costs.events import kernels_s
from galvatron.costs.fallbacks import ClassStatistics, Fallback, sharding_statistics
from galvatron.costs.profile import profile_graph
from galvatron.errors import GalvatronError
from galvatron.ir.capture import capture_graph
from galvatron.ir.cluster import Cluster
from galvatron.ir.ops import table
from galvatron.ir.plan import Plan
from galvatron.ir.program import Form, LayerKind, Program
from galvatron.ir.strategy import Strategy
from galvatron.machine import Machine
from galvatron.partition.decisions import Reason
from galvatron.passes import FRONT_END, LOWERING
from galvatron.passes.pipeline import Pipeline
from tests.costs.communication import counts, layer_communication

BATCH, LENGTH, WIDTH = 8, 512, 1024


class Mixer(nn.Module):
    """A linear layer around some op on its hidden units."""

    def __init__(self, op: Callable[[torch.Tensor], torch.Tensor], hidden: int) -> None:
        super().__init__()
        self.op = op
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.op(self.up(x)))


class Model(nn.Module):
    def __init__(self, op: Callable[[torch.Tensor], torch.Tensor], hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Mixer(op, hidden) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x.square().sum()


def planned(op: Callable[[torch.Tensor], torch.Tensor], strategy: str, hidden: int = 4 * WIDTH) -> Program:
    """Three blocks with an op inside, all under one strategy, in two micro-batches."""
    with torch.device("meta"):
        model, batch = Model(op, hidden), {"x": torch.zeros(BATCH, LENGTH, WIDTH)}
    program = Pipeline.of((*FRONT_END, "annotate-costs")).run(capture_graph(model, batch).program)
    parsed = Strategy.parse(strategy)
    layers = sum(layer.kind is LayerKind.PLANNED for layer in program.layers)
    plan = Plan(
        program.fingerprint, global_batch_size=BATCH, world_size=parsed.devices, micro_batches=2, schedule="1f1b",
        stages=((parsed,) * layers,),
    )  # fmt: skip
    return replace(program, form=Form.PLANNED, cluster=Cluster.parse(f"a100-80g:1x{parsed.devices}"), plan=plan)


def statistics(program: Program) -> tuple[ClassStatistics, ...]:
    return sharding_statistics(program, Pipeline.of(LOWERING[:1]).run(program))


def rows(program: Program, target: str) -> list[Fallback]:
    """What the statistics say of one op of the model."""
    return [row for cls in statistics(program) for row in cls.fallbacks if row.target == target]


def along_hidden(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(-1)


def along_sequence(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(1)


def reasons(program: Program, target: str) -> set[Reason | None]:
    return {row.reason for row in rows(program, target)}


def test_an_op_along_the_dimension_of_the_axis_is_whole():
    assert reasons(planned(along_sequence, "cp4"), "aten.cumsum.default") == {Reason.INDIVISIBLE}
    assert reasons(planned(along_hidden, "tp4"), "aten.cumsum.default") == {Reason.INDIVISIBLE}
    assert not rows(planned(along_sequence, "tp4"), "aten.cumsum.default")
    assert not rows(planned(along_hidden, "cp4"), "aten.cumsum.default")


def test_an_op_without_dimensions_is_whole():
    flat = planned(lambda x: x + x.sum((1, 2)).cumsum(0)[:, None, None], "tp4")
    names = {row.target for cls in statistics(flat) for row in cls.fallbacks}
    assert "aten.cumsum.default" not in names, "small: a number per sample"
    whole = planned(lambda x: x.flip((1, 2)), "ulysses4")
    assert reasons(whole, "aten.flip.default") == {Reason.INDIVISIBLE}


def test_an_op_without_a_rule_is_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(table.OPERATORS, "cumsum")
    assert reasons(planned(along_sequence, "tp4"), "aten.cumsum.default") == {Reason.NO_RULE}


def test_a_role_keeps_the_residual_stream_whole():
    assert reasons(planned(torch.relu, "tp4"), "aten.add.Tensor") == {Reason.ROLE}
    assert not rows(planned(torch.relu, "tp4+sp"), "aten.add.Tensor")


def test_a_size_that_does_not_divide_is_whole():
    assert reasons(planned(torch.relu, "tp4", hidden=4 * WIDTH + 1), "aten.relu.default") == {Reason.SIZE}


def test_an_op_whose_split_costs_more_than_it_saves_is_whole():
    # a mean over the sequence could be split by hidden unit, at the price of an exchange each way
    program = planned(lambda x: x + x.mean(1, keepdim=True), "ulysses4")
    assert reasons(program, "aten.mean.dim") == {Reason.CHEAPER}


def test_two_axes_that_share_the_work_leave_nothing_whole():
    program = planned(torch.square, "ulysses2-tp2+sp")
    assert not rows(program, "aten.square.default")


def test_data_parallelism_leaves_nothing_whole():
    assert not [row for cls in statistics(planned(along_hidden, "dp4")) for row in cls.fallbacks if row.target]


def test_seconds_are_those_of_the_kernels_alone():
    program = planned(torch.relu, "tp4", hidden=4 * WIDTH + 1)
    assert program.cluster is not None
    (row,) = rows(program, "aten.relu.default")
    size = 4 * BATCH // 2 * LENGTH * (4 * WIDTH + 1)
    device = program.cluster.device
    # forward reads and writes one tensor, backward reads two and writes one
    work_s = (2 + 3) * size / (device.memory_bytes_per_s * dict(device.moving_share)["pointwise"])
    assert row.count == 1
    assert row.seconds == pytest.approx(work_s + 2 * device.kernel_launch_s)
    assert row.saved_s == pytest.approx(work_s * 3 / 4)


def test_the_rows_add_up_to_no_more_than_the_class():
    for op in (torch.relu, along_hidden):
        blocks = next(cls for cls in statistics(planned(op, "tp4")) if cls.layers == 3)
        assert 0 < sum(row.seconds for row in blocks.fallbacks) < blocks.compute_s


def test_compute_and_collectives_are_those_of_the_cost_model():
    program = planned(torch.relu, "tp2+sp")
    sharded = Pipeline.of(LOWERING).run(program)
    assert program.cluster is not None
    for cls in sharding_statistics(program, sharded):
        sent = layer_communication(sharded, cls.name)
        assert {(c.kind, (c.axis.size, c.axis.stride)): c.forward for c in cls.traffic if c.forward} == counts(
            sent.forward
        )
        assert {(c.kind, (c.axis.size, c.axis.stride)): c.backward for c in cls.traffic if c.backward} == counts(
            sent.backward
        )
        local = sharded.class_of[cls.name]
        differentiable = frozenset(v.name for v in (*local.graph.inputs, *local.graph.state))
        profile = profile_graph(local.graph, local.mesh, differentiable)
        most = kernels_s((*profile.forward, *profile.backward), Machine(program.cluster), BATCH // 2)
        assert 0 < cls.compute_s <= most


def test_programs_must_belong_together():
    program = planned(torch.relu, "tp2")
    with pytest.raises(GalvatronError, match="need the planned program and the sharded one"):
        sharding_statistics(program, program)
    other = replace(planned(along_hidden, "tp2"), classes=())
    with pytest.raises(GalvatronError, match="was not sharded from the program given"):
        sharding_statistics(replace(program, classes=other.classes, layers=()), Pipeline.of(LOWERING[:1]).run(program))
