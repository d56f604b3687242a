"""The cost model of sharded graphs: what a strategy divides, what it adds."""

from __future__ import annotations

from dataclasses import astuple, fields, replace

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron.costs.estimate import cost_model, estimate_plan
from galvatron.costs.model import LayerCost
from galvatron.costs.objective import Setting, layer_cost
from galvatron.costs.sharded import ShardedCostModel
from galvatron.errors import PlanError
from galvatron.ir.cluster import Cluster
from galvatron.ir.layout import Axis
from galvatron.ir.planned import resolve
from galvatron.ir.program import Program
from galvatron.ir.strategy import Strategy
from galvatron.ir.zero import BUCKET_BYTES
from galvatron.passes.planning.annotate_costs import AnnotateCosts
from tests.ir.programs import D, H, S, V, clustered, rounded
from tests.parity.harness import costed

EMBEDDING, BLOCK, HEAD = 0, 1, 5
FOUR = Axis("dp", 4, 1)


@pytest.fixture(scope="module")
def program() -> Program:
    return replace(clustered(), cluster=Cluster.parse("a100-80g:1x4"))


@pytest.fixture(scope="module")
def model(program: Program) -> ShardedCostModel:
    assert program.cluster is not None
    return ShardedCostModel(program, program.cluster)


@pytest.fixture(scope="module")
def shared() -> ShardedCostModel:
    """Of one block that is applied again and again."""
    return ShardedCostModel(costed("shared")[0], Cluster.parse("a100-80g:1x4"))


def cost(model: ShardedCostModel, index: int, strategy: str, micro_batch: int = 8) -> LayerCost:
    """The cost of a layer where shared parameters are whole."""
    ties = tuple((name, None) for name in model.tied())
    return model.layer(index, Strategy.parse(strategy), micro_batch, ties)


def test_data_parallelism_divides_activations_and_adds_synchronisation(model: ShardedCostModel) -> None:
    whole, split = cost(model, BLOCK, "dp1"), cost(model, BLOCK, "dp4")
    assert split.saved_bytes == whole.saved_bytes / 4
    assert split.state_bytes == whole.state_bytes == 4 * 4 * (2 * D * H + D)
    assert split.communication_s == whole.communication_s == 0
    assert whole.sync_s == 0
    # Gradients are summed in buckets, of which a layer is a part.
    assert split.bucket_bytes == whole.state_bytes / 4
    bucket_s = model.machine.collective_s("all_reduce", BUCKET_BYTES, FOUR)
    assert split.sync_s == pytest.approx(bucket_s * split.bucket_bytes / BUCKET_BYTES)
    assert split.start_s == pytest.approx(model.machine.collective_s("all_reduce", 0, FOUR))


def test_tensor_parallelism_divides_parameters_and_communicates(model: ShardedCostModel) -> None:
    whole, split = cost(model, BLOCK, "dp1"), cost(model, BLOCK, "dp1-tp4")
    assert split.state_bytes < whole.state_bytes
    assert split.saved_bytes < whole.saved_bytes
    assert split.forward_communication_s > 0


def test_costs_depend_on_the_local_batch_only(model: ShardedCostModel) -> None:
    assert cost(model, BLOCK, "dp4", 8).saved_bytes == cost(model, BLOCK, "dp2", 4).saved_bytes
    assert cost(model, BLOCK, "dp4", 8).forward_s == cost(model, BLOCK, "dp2", 4).forward_s


def test_masters_and_what_is_in_their_type(program: Program, model: ShardedCostModel) -> None:
    """Per element 2 bytes that the layers read, and 4 each of master, gradient and two moments."""
    assert program.cluster is not None
    short = ShardedCostModel(rounded(program), program.cluster)
    elements = 2 * D * H + D
    assert cost(short, BLOCK, "dp1").state_bytes == 18 * elements
    assert cost(short, BLOCK, "dp4-zero1").state_bytes == (2 + 4 + 12 / 4) * elements
    assert cost(short, BLOCK, "dp4-zero3").state_bytes == 16 / 4 * elements  # whole values alone have the other type
    # Values are gathered in the type of the layers; buckets have so many bytes of that.
    bucket_s = short.machine.collective_s("all_gather", BUCKET_BYTES, FOUR)
    for of, size in ((model, 4), (short, 2)):
        assert cost(of, BLOCK, "dp4-zero1").bucket_bytes == size * elements
        assert cost(of, BLOCK, "dp4-zero1").publish_s == pytest.approx(bucket_s * size * elements / BUCKET_BYTES)
    for of, moved in ((model, 7 * 4), (short, 7 * 4 + 4 + 2)):
        assert cost(of, BLOCK, "dp1").update_s == pytest.approx(of.machine.moved_s(moved * elements))


def test_a_tied_parameter_is_paid_once_on_a_stage(model: ShardedCostModel) -> None:
    head = cost(model, HEAD, "dp4")
    (tie,) = head.repeated
    assert tie.layer == EMBEDDING and tie.state.total == 4 * 4 * V * D
    together, apart = head.on_stage(EMBEDDING), head.on_stage(BLOCK)
    assert together.state_bytes == 0 and together.update_s == pytest.approx(0)
    assert apart.state_bytes == tie.state.total
    assert apart.sync_s == pytest.approx(head.sync_s) and apart.across_s == tie.across_s


def test_values_between_layers(model: ShardedCostModel) -> None:
    dp, tp = Strategy.parse("dp4-tp1"), Strategy.parse("dp1-tp4")
    assert model.boundary_bytes(BLOCK, dp, 8) == 8 / 4 * S * D * 4
    assert model.boundary_bytes(BLOCK, tp, 8) == 8 * S * D * 4
    assert model.boundary_bytes(HEAD + 1, dp, 8) == 0
    assert model.transfer_s(BLOCK, tp, 8) > model.transfer_s(BLOCK, dp, 8) > 0
    assert model.conversion_s(BLOCK, dp, dp, 8) == 0
    assert model.conversion_s(BLOCK, dp, tp, 8) > 0
    assert model.conversion_s(BLOCK, dp, tp, 8) == model.conversion_s(HEAD, dp, tp, 8)


def test_every_strategy_follows_every_other(model: ShardedCostModel) -> None:
    strategies = [Strategy.parse(s) for s in ("dp4-tp1", "dp2-tp2", "tp2-dp2", "dp1-tp4")]
    for before in strategies:
        for after in strategies:
            assert 0 <= model.conversion_s(BLOCK, before, after, 8) < 1e-3


def test_equal_layers_are_of_one_kind(model: ShardedCostModel) -> None:
    kinds = model.kinds()
    assert len(set(kinds)) == 5  # embedding, the block after it, blocks between blocks, the one before the head, head
    assert kinds[2] == kinds[3]


def test_annotated_costs_are_those_of_one_device(program: Program) -> None:
    costed = AnnotateCosts().run(program)
    block = costed.class_of["block"].cost
    assert block is not None
    assert str(block.forward_flop) == f"{4 * S * D * H}*B"
    assert str(block.backward_flop) == f"{8 * S * D * H}*B"
    assert block.parameter_bytes == 4 * (2 * D * H + D)


def test_estimate_adds_up(program: Program) -> None:
    costed = AnnotateCosts().run(program)
    plan = resolve(costed, "pp2/m4/1f1b/dp2-tp1", 8, 4)
    step_time_s, stages = estimate_plan(costed, plan)
    times = [stage.micro_batch_s for stage in stages]
    assert step_time_s == pytest.approx(sum(times) + 3 * max(times) + max(stage.step_s for stage in stages))
    assert [stage.in_flight for stage in stages] == [2, 1]
    for stage in stages:
        busy_s = 4 * stage.micro_batch_s + stage.step_s
        assert stage.bubble_s == pytest.approx(step_time_s - busy_s)
        assert stage.bubble_s >= -1e-12
        assert stage.compute_s == pytest.approx(sum(layer.cost.compute_s for layer in stage.layers))
    assert stages[0].transfer_s == 0 < stages[1].transfer_s


def test_estimate_refuses_what_check_refuses(program: Program) -> None:
    costed = AnnotateCosts().run(program)
    plan = resolve(costed, "dp4", 8, 4)
    with pytest.raises(PlanError, match="another model"):
        estimate_plan(costed, replace(plan, fingerprint="0"))
    with pytest.raises(PlanError, match="has no cluster"):
        cost_model(replace(costed, cluster=None))


def test_a_layer_with_all_its_parameters_beside_it_pays_for_none_of_them(shared: ShardedCostModel) -> None:
    """They are synchronised together: what one tie takes off is what the collective takes less, not one of its own."""
    again = next(c for i in range(len(shared.layers)) if len((c := cost(shared, i, "dp4", 4)).repeated) > 1)
    beside = again.on_stage(0)
    assert again.sync_s > 0 and beside.sync_s == pytest.approx(0, abs=1e-12)
    assert beside.state_bytes == 0 and beside.update_s == pytest.approx(0, abs=1e-12)


def test_new_values_beside_a_tie_that_is_kept_whole_are_gathered_by_themselves() -> None:
    """At level 2 the values of a layer are in one collective, whatever else is summed in buckets."""
    program = costed("gpt")[0]
    model = ShardedCostModel(program, Cluster.parse("a100-80g:1x4"))
    tied = next(iter(model.tied().values()))
    names = set(model.layers[tied[0]].state).difference(*(model.layers[index].state for index in tied[1:]))
    own_bytes = sum(program.state_of[name].type.bytes for name in names)
    found = cost(model, tied[0], "dp4-zero2", 4)
    assert found.bucket_bytes and names
    assert found.publish_s == pytest.approx(model.machine.collective_s("all_gather", float(own_bytes), FOUR))


def test_what_the_forward_has_gathered_is_not_gathered_again(model: ShardedCostModel) -> None:
    """In the last layer, where its backward follows at once; and never what a backward does not read."""
    strategy, again = Strategy.parse("dp4-zero3"), Strategy.parse("dp4-zero3-recompute")
    ties = tuple((name, strategy.keeping) for name in model.tied())
    head, block, embedding = (model.layer(index, strategy, 8, ties) for index in (HEAD, BLOCK, EMBEDDING))

    def gathered_s(index: int, schedule: str, degree: int) -> float:
        setting = Setting(16, 2, schedule, degree, ties=ties)
        return layer_cost(model, setting, index, strategy).on_stage(0).backward_gather_s

    assert gathered_s(HEAD, "1f1b", 1) == gathered_s(HEAD, "1f1b", 2) == gathered_s(HEAD, "gpipe", 1) == 0
    assert gathered_s(HEAD, "gpipe", 2) == pytest.approx(head.backward_gather_s / 2) and head.backward_gather_s > 0
    assert gathered_s(BLOCK, "1f1b", 1) == block.backward_gather_s == block.forward_gather_s > 0
    assert embedding.backward_gather_s == 0 < embedding.forward_gather_s
    recomputed = model.layer(EMBEDDING, again, 8, ties)
    assert recomputed.backward_gather_s == recomputed.forward_gather_s


class Scaled(nn.Module):
    """A loss that couples samples, scaled by a parameter that the first layer has too."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        for layer in self.layers:
            x = layer(x).relu()
        return (x.pow(2).mean() + 1).sqrt() * self.scale.sum()


@pytest.mark.parametrize("strategy", ["dp4-zero2", "dp4-zero3"])
def test_a_tie_of_the_epilogue_takes_off_nothing_that_a_micro_batch_does_not_pay(strategy: str) -> None:
    program = galvatron.capture(Scaled(), {"x": torch.randn(8, 6)})
    model = ShardedCostModel(AnnotateCosts().run(program), Cluster.parse("a100-80g:1x4"))
    parsed = Strategy.parse(strategy)
    last = model.layer(len(model.layers) - 1, parsed, 8, tuple((name, parsed.keeping) for name in model.tied()))
    (scale,) = last.repeated
    assert scale.backward_gather_s == scale.reduce_s == 0 < scale.state.total
    beside = last.on_stage(0)
    assert (beside.backward_gather_s, beside.reduce_s) == (last.backward_gather_s, last.reduce_s)
    apart = {"repeated", "contention", "state", "extra"}
    figures = [field.name for field in fields(LayerCost) if field.name not in apart]
    assert all(getattr(beside, name) >= 0 for name in figures)
    assert all(size >= 0 for memory in (beside.state, beside.extra) for size in astuple(memory))
