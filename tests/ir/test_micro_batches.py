"""What couples the samples of a batch, and what does not: the state of a loss over the micro-batches of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galvatron.errors import PlanError, VerifyError
from galvatron.ir.capture import capture_graph
from galvatron.ir.graph import Graph
from galvatron.ir.micro_batches import SAME, SUM, Along, batch_state, counts, coupling, epilogue_coupling, flow
from galvatron.ir.program import LayerKind, Program
from galvatron.ir.types import BATCH, MICRO_BATCHES, TensorType
from galvatron.ir.verify import verify
from galvatron.passes import FRONT_END
from galvatron.passes.pipeline import Pipeline
from tests.marks import some_slow


class Ends(nn.Module):
    """A matrix, then whatever is to be tried."""

    def __init__(self, then: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.then = nn.Linear(6, 6), then
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.first(x))


def program_of(then: Callable[[Any, Tensor], Tensor]) -> Program:
    captured = capture_graph(Ends(then), {"x": torch.zeros(8, 6)})
    return Pipeline.of(FRONT_END).run(captured.program)


def local(program: Program, plan: str) -> Program:
    """The program as two devices run it."""
    return Pipeline.parse(f"annotate-costs{{cluster=a100-80g:1x2}},use-plan{{plan={plan}}},shard,redistribute").run(
        program
    )


def with_micro_batches(program: Program, count: int) -> Program:
    """An edit of the plan alone."""
    assert program.plan is not None
    return replace(program, plan=replace(program.plan, micro_batches=count))


def _two_views(z: Tensor, size: int) -> Tensor:
    return (F.normalize(z[:size], dim=-1) * F.normalize(z[size:], dim=-1)).sum(-1).mean()


ADDITIVE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "mean": lambda self, h: h.pow(2).mean(),
    "two means": lambda self, h: h.pow(2).mean() - 3 * h.abs().sum(1).mean(),
    "along other dims": lambda self, h: (h.softmax(1).var(1) * h.amax(1)).sum(),
    "penalty on weights": lambda self, h: h.pow(2).mean() + 0.1 * self.first.weight.pow(2).sum().sqrt(),
    "scaled by a parameter": lambda self, h: h.pow(2).mean() * self.scale.exp() + self.scale,
    "a number": lambda self, h: 1 - h.pow(2).mean(),
    "numbers and penalties": lambda self, h: 2 + (h.abs().mean() - self.scale) / 3 - self.first.bias.sum(),
    "another type": lambda self, h: h.pow(2).mean().double() + 1,
    "stacked terms": lambda self, h: torch.stack([h.pow(2).mean(), self.scale, h.abs().mean()]).sum(),
    "flattened": lambda self, h: h.reshape(-1).pow(2).mean(),
    "two views": lambda self, h: _two_views(self.first(torch.cat([h, h.tanh()])), h.shape[0]),
    "repeated samples": lambda self, h: h.repeat_interleave(2, 0).repeat(3, 1).pow(2).mean(),
    "images": lambda self, h: F.max_pool2d(F.conv_transpose2d(h[:, None, None], h.new_ones(1, 2, 2, 2)), 2).mean(),
    "a parameter per sample": lambda self, h: torch.cat([h, self.scale.expand(len(h), 1)], 1).tanh().mean(),
    "a number per sample": lambda self, h: (h.mean(1) * h.new_full((len(h),), len(h))).mean(),
    "no samples at all": lambda self, h: self.first.weight.pow(2).sum(),
}

_SIZE = "has the batch size for a size that is not of its samples"

COUPLED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "root": (lambda self, h: h.pow(2).mean().sqrt(), "sqrt is not linear in a sum over the batch"),
    "product of means": (lambda self, h: h.mean() * h.abs().mean(), "mul is not linear in a sum over the batch"),
    "ratio of sums": (lambda self, h: h.abs().sum() / h.pow(2).sum(), "div is not linear in a sum over the batch"),
    "clamped": (lambda self, h: h.mean().clamp(min=0), "clamp is not linear in a sum over the batch"),
    "exponent": (lambda self, h: h.pow(2).mean().pow(2), "pow is not linear in a sum over the batch"),
    "centred": (lambda self, h: (h - h.mean(0)).pow(2).mean(), "sub reads a sum over the batch"),
    "largest": (lambda self, h: h.abs().amax(0).sum(), "amax works across the samples of the batch"),
    "ranks": (lambda self, h: h.sort(0)[0][0].sum(), "sort works across the samples of the batch"),
    "softmax over samples": (lambda self, h: h.softmax(0).pow(2).sum(), "softmax works across the samples"),
    "products": (lambda self, h: (h @ h.T).exp().mean(), "matmul pairs samples with one another"),
    "reversed": (lambda self, h: (h * h.flip(0)).mean(), "flip works across the samples of the batch"),
    "repeated once per sample": (lambda self, h: h.repeat(len(h), 1).pow(2).mean(), f"repeat {_SIZE}"),
    "once for each other": (lambda self, h: h[:, None].expand(-1, len(h), -1).tanh().mean(), f"expand {_SIZE}"),
    "filler per sample": (lambda self, h: F.pad(h, (0, len(h))).exp().mean(), f"pad {_SIZE}"),
    "one column more": (lambda self, h: h[:, :1].expand(-1, len(h) + 1).exp().mean(), f"expand {_SIZE}"),
    "square": (lambda self, h: (h.mean(1) * h.new_ones(len(h), len(h)).sum(1)).mean(), f"full {_SIZE}"),
    "column of the batch size": (lambda self, h: h.repeat(1, 9)[:, len(h)].exp().mean(), f"select {_SIZE}"),
    "rolled by the batch size": (lambda self, h: (h * h.roll(len(h), 1)).mean(), f"roll {_SIZE}"),
    "neighbours": (lambda self, h: (h - h.roll(1, 0)).pow(2).mean(), "roll works across the samples of the batch"),
}

IN_THE_MIDDLE = (
    "root", "centred", "largest", "softmax over samples", "products", "reversed", "repeated once per sample",
    "filler per sample", "rolled by the batch size", "neighbours",
)  # fmt: skip
"""One of each kind."""

LOCAL_PLANS = ("m1/dp2", "m1/tp2", "m1/cp2")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ADDITIVE)
def test_sums_over_samples_add_up(name: str) -> None:
    program = program_of(ADDITIVE[name])
    assert coupling(program) is None
    assert not any(layer.kind is LayerKind.EPILOGUE for layer in program.layers)
    for plan in LOCAL_PLANS:
        verify(with_micro_batches(local(program, plan), 2))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", COUPLED)
def test_an_end_that_couples_samples_is_an_epilogue(name: str) -> None:
    then, reason = COUPLED[name]
    program = program_of(then)
    assert coupling(program) is None
    assert program.layers[-1].kind is LayerKind.EPILOGUE
    found = str(epilogue_coupling(program))
    assert reason in found and f"{__file__.rpartition('/')[2]}:" in found


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", some_slow(IN_THE_MIDDLE, COUPLED))
def test_a_middle_that_couples_samples_is_named(name: str) -> None:
    """What is coupled goes through another matrix: there is no end to set apart."""
    then, reason = COUPLED[name]

    def in_the_middle(self: Any, h: Tensor) -> Tensor:
        return F.mse_loss(self.first(h * then(self, h)), h)

    program = program_of(in_the_middle)
    assert not any(layer.kind is LayerKind.EPILOGUE for layer in program.layers)
    assert reason in str(coupling(program))
    for plan in LOCAL_PLANS:
        with pytest.raises(VerifyError, match="2 micro-batches do not add up to the batch") as caught:
            verify(with_micro_batches(local(program, plan), 2))
        assert reason in str(caught.value)


@cache
def penalised() -> Program:
    return program_of(ADDITIVE["penalty on weights"])


def test_what_every_micro_batch_has_alike_is_divided_by_their_number() -> None:
    shares = [op for cls in penalised().classes for op in cls.graph.ops if MICRO_BATCHES in op.args]
    assert [op.target for op in shares] == ["aten.div.Tensor"]


def test_a_term_that_is_not_counted_once_is_named() -> None:
    program = penalised()

    def uncounted(graph: Graph) -> Graph:
        ops = tuple(replace(op, args=(op.args[0], 1.0)) if op.args[1:] == (MICRO_BATCHES,) else op for op in graph.ops)
        return replace(graph, ops=ops)

    broken = replace(program, classes=tuple(replace(c, graph=uncounted(c.graph)) for c in program.classes))
    assert "add adds what has no samples in it" in str(coupling(broken))


def test_the_number_of_micro_batches_may_stand_nowhere_else() -> None:
    program = penalised()
    head = program.classes[-1]
    last = head.graph.ops[-1]
    divided = replace(last, target="aten.div.Tensor", args=(last.args[0], MICRO_BATCHES))
    weighted = replace(last, kwargs=(("alpha", MICRO_BATCHES),))
    for scaled in (divided, weighted):
        broken = replace(head, graph=replace(head.graph, ops=(*head.graph.ops[:-1], scaled)))
        assert "counts micro-batches" in str(coupling(replace(program, classes=(*program.classes[:-1], broken))))


AROUND_A_ROOT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a number": lambda self, h: (h.pow(2).mean() + 1).sqrt() * h.pow(2).mean(),
    "a parameter": lambda self, h: (h.pow(2).mean() + self.scale).sqrt() * h.pow(2).mean(),
    "a penalty": lambda self, h: (h.pow(2).sum() + self.first.weight.pow(2).sum()).sqrt() * h.pow(2).sum(),
}
"""What has no samples, added to a sum over them that an epilogue reads once more."""


@pytest.mark.parametrize("name", AROUND_A_ROOT)
def test_shares_of_micro_batches_are_added_up_before_the_epilogue(name: str) -> None:
    program = program_of(AROUND_A_ROOT[name])
    assert program.layers[-1].kind is LayerKind.EPILOGUE
    assert coupling(program) is None
    epilogue = program.class_of[program.layers[-1].cls].graph
    assert not any(map(counts, epilogue.ops))
    assert any(counts(op) for cls in program.classes for op in cls.graph.ops)


def test_an_epilogue_has_no_shares() -> None:
    program = program_of(AROUND_A_ROOT["a number"])
    cls = program.class_of[program.layers[-1].cls]
    last = cls.graph.ops[-1]
    share = replace(last, target="aten.div.Tensor", args=(last.args[0], MICRO_BATCHES))
    broken = replace(cls, graph=replace(cls.graph, ops=(*cls.graph.ops[:-1], share)))
    classes = tuple(broken if c is cls else c for c in program.classes)
    assert "counts micro-batches" in str(coupling(replace(program, classes=classes)))


def test_an_epilogue_is_given_no_more_than_micro_batches_make_up() -> None:
    """What is the same in each would be added up, and statistics of a step are not to be shares."""
    program = program_of(COUPLED["products"][0])
    first, last = program.layers
    given = program.class_of[first.cls].graph
    (collected,) = given.outputs
    weight = next(value.name for value in given.state if len(value.type.shape) == 2)
    tail = program.class_of[last.cls]
    rows = replace(tail.graph.inputs[0], type=given.values[weight].type)
    same = replace(tail, graph=replace(tail.graph, inputs=(rows,)))
    broken = replace(program.class_of[first.cls], graph=replace(given, outputs=(weight,)))
    assert collected != weight
    assert "reads %model.out, which micro-batches do not make up" in str(
        coupling(replace(program, classes=(broken, same)))
    )


def test_states_of_batch_inputs() -> None:
    assert batch_state(TensorType("f32", (BATCH, 3))) == Along(0, 1)
    assert batch_state(TensorType("f32", (4, 6 * BATCH))) == Along(1, 6)
    assert batch_state(TensorType("f32", (4, 6))) is SAME


def test_a_flow_says_the_state_of_every_value() -> None:
    graph = penalised().class_of["model"].graph if "model" in penalised().class_of else penalised().classes[-1].graph
    found = flow(graph, {value.name: batch_state(value.type) for value in graph.inputs})
    assert found.states[graph.outputs[-1]] is SUM
    assert found.states.keys() == graph.values.keys()


def test_a_search_for_several_micro_batches_is_refused_where_they_do_not_add_up() -> None:
    then, reason = COUPLED["root"]
    program = program_of(lambda self, h: F.mse_loss(self.first(h * then(self, h)), h))
    planning = [
        "annotate-costs{cluster=a100-80g:1x2}",
        "enumerate-strategies{roles=[dp,tp],zero=[0],recompute=[none]}",
        "prune",
        "search{micro_batches=2}",
    ]
    with pytest.raises(PlanError, match=f"2 micro-batches do not add up.*{reason}.*use 1 micro-batch"):
        Pipeline.parse(",".join(planning)).run(program)


@pytest.mark.parametrize("name", ["columns", "a column", "the largest"])
def test_a_program_that_holds_for_small_batches_is_verified_at_such(name: str) -> None:
    """There are as many columns as samples, or more: what ops give at large batches says nothing."""
    then: Callable[[Any, Tensor], Tensor] = {
        "columns": lambda self, h: h.repeat(1, 9)[:, : len(h)].exp().mean(),
        "a column": lambda self, h: h.repeat(1, 9)[:, len(h)].exp().mean(),
        "the largest": lambda self, h: h.repeat(1, 9).topk(len(h), dim=1).values.exp().mean(),
    }[name]
    program = program_of(then)
    assert program.batch_sizes.most in (53, 54)
    verify(program)
    verify(local(program, "m1/dp2"))
