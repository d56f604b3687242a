"""Programs of two traces: each kind of step computes what its own trace does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import galvatron
from galvatron.errors import CheckError, GalvatronError
from galvatron.ir.capture import LossFunction, capture_graph, export
from galvatron.ir.capture.evaluation import in_evaluation
from galvatron.ir.capture.ways import _aligned
from galvatron.ir.either import EITHER, in_training, one_way
from galvatron.ir.graph import Graph
from galvatron.ir.program import Program
from galvatron.ir.text import parse_program, print_program
from galvatron.rewriting.sharing import numbered
from tests.marks import some_slow
from tests.parity import states, ways

BATCH = {"x": torch.linspace(-1, 1, 32, dtype=torch.float64).reshape(8, 4)}


class Net(nn.Module):
    """What is between two linear layers."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(4, 4), between, nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x))).square().mean()


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: Tensor) -> Tensor:
        return self.function(h, self.training)


def dropped_paths(h: Tensor, training: bool) -> Tensor:
    if not training:
        return h
    kept = torch.empty(h.shape[0], 1, dtype=h.dtype, device=h.device).bernoulli_(0.8)
    return h * kept / 0.8


def noise(h: Tensor, training: bool) -> Tensor:
    return h + torch.randn_like(h) if training else h


def table(h: Tensor, training: bool) -> Tensor:
    return h * torch.tensor([1.0, 2.0, 3.0, 5.0 if training else 4.0], dtype=h.dtype)


def signs(h: Tensor, training: bool) -> Tensor:
    zeros = torch.tensor([-0.0 if training else 0.0, 0.0, 1.0, 1.0], dtype=h.dtype)
    return h * (1 / zeros).clamp(-3, 3)


UNLIKE = {
    "paths": Function(dropped_paths),
    "noise": Function(noise),
    "table": Function(table),
    "signs": Function(signs),
    "in place": Function(lambda h, training: F.dropout(2 * h, 0.5, training, inplace=True)),
    "channels": nn.Dropout1d(0.5),
    "alpha": nn.AlphaDropout(0.5),
    "spectral": nn.utils.spectral_norm(nn.Linear(4, 4)),
    "parametrized": nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
}
ALIKE = {
    "dropout": nn.Dropout(0.5),
    "batch norm": nn.BatchNorm1d(4),
    "batch norm without averages": nn.BatchNorm1d(4, track_running_stats=False),
    "slopes": nn.RReLU(),
    "layer": nn.Sequential(nn.Unflatten(1, (1, 4)), nn.TransformerEncoderLayer(4, 2, 8), nn.Flatten()),
}


@pytest.mark.one_in(6)
@pytest.mark.parametrize("name", some_slow([*[*UNLIKE][:2], *[*ways.WAYS][:3]], [*UNLIKE, *ways.WAYS]))
def test_each_way_is_its_own_trace(name: str) -> None:
    model = (ways.model_of(name) if name in ways.WAYS else Net(UNLIKE[name])).double()
    batch = states.batch_of(8, 0) if name in ways.WAYS else BATCH
    loss_fn = ways.loss_of if name in ways.WAYS else None
    both = capture_graph(model, batch, loss_fn=loss_fn).program
    assert any(op.target == EITHER for op in both.required_graph.ops) and not both.unlike_evaluated
    assert parse_program(print_program(both)) == both
    with in_evaluation([model]):
        evaluated = capture_graph(model, batch, loss_fn=loss_fn).program
    own, wanted = (
        replace(program.required_graph, outputs=(program.output,)).without_dead_ops() for program in (both, evaluated)
    )
    assert shape(one_way(own, training=False)) == shape(wanted)
    trained = capture_trained(model, batch, loss_fn)
    assert shape(in_training(unchecked(both))) == shape(unchecked(trained))


def unchecked(program: Program) -> Graph:
    """What a program computes but for its checks, of which it has those of the other way, too."""
    return replace(program.required_graph, outputs=replace(program, checks=()).results).without_dead_ops()


def capture_trained(model: nn.Module, batch: states.Batch, loss_fn: LossFunction | None) -> Program:
    """The trace in training alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_with_evaluation", lambda captured, *_: captured)
        return capture_graph(model, batch, loss_fn=loss_fn).program


def shape(graph: Graph) -> list[tuple[str, tuple[object, ...]]]:
    """What a graph computes, whatever things are called in it, but for what operators leave out in evaluation."""
    switches = ("train", "training", "dropout_p")
    ops = [op.changed(**{s: False for s in switches if op.get(s)}) for op in numbered(graph).ops]
    return [(op.target, op.map_refs(lambda name: name.partition(".")[0]).args) for op in ops]


@pytest.mark.parametrize("name", ALIKE)
def test_what_operators_leave_out_needs_no_second_trace(name: str) -> None:
    program = capture_graph(Net(ALIKE[name]).double(), BATCH).program
    assert not program.unlike_evaluated
    assert not any(op.target == EITHER for op in program.required_graph.ops)


def test_constants_are_the_same_if_their_bits_are() -> None:
    model = Net(Function(signs)).double()
    found = float(galvatron.compile(model, BATCH, plan="m1/dp1").forward_backward(BATCH))
    assert abs(found - float(model(**BATCH).detach())) <= 1e-12 * abs(found)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [*UNLIKE, *ALIKE])
def test_an_evaluation_is_that_of_the_model(name: str) -> None:
    model = Net({**UNLIKE, **ALIKE}[name]).double()
    compiled = galvatron.compile(model, BATCH, plan="m1/dp1")
    found = float(compiled.eval_step(BATCH))
    with torch.no_grad():
        expected = float(model.eval()(**BATCH))
    model.train()
    assert abs(found - expected) <= 1e-12 * abs(expected)


def test_the_code_says_what_only_training_does() -> None:
    (source,) = galvatron.compile(Net(Function(dropped_paths)).double(), BATCH, plan="m2/dp1").sources.values()
    assert "    if training:\n" in source and " if training else " in source


def always(h: Tensor, training: bool) -> Tensor:
    return F.dropout(h, 0.5)


def only_there(h: Tensor, training: bool) -> Tensor:
    return h if training else F.dropout(h, 0.5, training=True)


def fails(h: Tensor, training: bool) -> Tensor:
    if not training:
        raise ValueError("no evaluation")
    return h


def branches(h: Tensor, training: bool) -> Tensor:
    return h if training or h.sum() > 0 else 2 * h


@pytest.mark.parametrize(
    ("function", "line", "why"),
    [
        (always, "return F.dropout", "dropout.* is called to train there, too"),
        (only_there, "return h if training else", "dropout.* is called to train there, too"),
        (fails, "raise ValueError", "no evaluation"),
        (branches, "return h if training or", "depends on the values"),
    ],
)
def test_what_cannot_be_evaluated_is_only_trained(
    function: Callable[[Tensor, bool], Tensor], line: str, why: str
) -> None:
    model = Net(Function(function)).double()
    with pytest.warns(UserWarning, match=f"(?s){line}.*{why}"):
        compiled = galvatron.compile(model, BATCH, plan="m1/dp1")
    assert parse_program(print_program(compiled.program)) == compiled.program
    compiled.forward_backward(BATCH)
    for evaluates in (compiled.eval_step, lambda batch: compiled(**batch)):
        with pytest.raises(GalvatronError, match=f"(?s){line}.*{why}.*model.eval"):
            evaluates(BATCH)
    compiled.forward_backward(BATCH)


def test_a_model_in_evaluation_mode_has_one_way() -> None:
    model = Net(Function(dropped_paths)).double().eval()
    assert not any(op.target == EITHER for op in capture_graph(model, BATCH).program.required_graph.ops)


class Given(nn.Module):
    """What a function gives of logits and labels, if it has any."""

    def __init__(self, function: Callable[[Tensor, Tensor | None, bool], dict[str, Tensor]]) -> None:
        super().__init__()
        self.head, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        return self.function(self.head(x), y, self.training)


LABELLED = {**BATCH, "y": torch.arange(8) % 4}


def given_once(h: Tensor, y: Tensor | None, training: bool) -> dict[str, Tensor]:
    loss = F.cross_entropy(h, y) if y is not None else h.mean()
    return {"loss": loss, "h": h, "twice": h if training else 2 * h, "total": loss if training else loss + 1}


def test_what_is_one_value_in_training_may_be_several_in_evaluation() -> None:
    model = Given(given_once).double()
    found = galvatron.compile(model, LABELLED, outputs=["h", "twice", "total"], plan="m1/dp1")(**LABELLED)
    with torch.no_grad():
        expected = model.eval()(**LABELLED)
    assert found.loss is not None
    torch.testing.assert_close(found.loss, expected["loss"])
    for name in ("h", "twice", "total"):
        torch.testing.assert_close(found[name], expected[name])


def forced(h: Tensor, y: Tensor | None, training: bool) -> dict[str, Tensor]:
    h = h + F.one_hot(y, 4) if training and y is not None else h
    return {"loss": h.mean() if y is None else F.cross_entropy(h, y), "h": h}


def test_a_prediction_needs_no_labels_that_only_training_reads() -> None:
    model = Given(forced).double()
    found = galvatron.compile(model, LABELLED, outputs=["h"], plan="m1/dp1").predict(BATCH)
    torch.testing.assert_close(found["h"], model.head(BATCH["x"]).detach())


class Checked(nn.Module):
    """Checks its values in one mode, or in both."""

    def __init__(self, modes: tuple[bool, ...]) -> None:
        super().__init__()
        self.head, self.modes = nn.Linear(4, 1), modes

    def forward(self, x: Tensor) -> Tensor:
        if self.training in self.modes and (x > 2).any():
            raise ValueError("too much")
        return self.head(x).square().mean()


@pytest.mark.parametrize("modes", [(True,), (False,), (True, False)])
def test_a_check_is_that_of_its_mode(modes: tuple[bool, ...]) -> None:
    compiled = galvatron.compile(Checked(modes).double(), BATCH, plan="m2/dp1")
    for mode, step in ((True, compiled.forward_backward), (False, compiled.eval_step)):
        step(BATCH)
        with pytest.raises(CheckError, match="too much") if mode in modes else contextlib.nullcontext():
            step({"x": 3 * BATCH["x"]})


class Overridden(nn.Module):
    """Has modes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.norm, self.doubles = nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False), True

    def train(self, mode: bool = True) -> Overridden:
        self.doubles = mode
        self.head.requires_grad_(mode)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.head(x))
        return (2 * h if self.doubles else h).square().sum(1).sin().mean()


class Merged(Overridden):
    """Changes its weights from mode to mode."""

    def eval(self) -> Overridden:
        self.head.weight.data *= 2
        return super().eval()


def test_a_model_has_its_own_evaluation_mode() -> None:
    model = Overridden().double()
    compiled = galvatron.compile(model, BATCH, plan="m1/dp1")
    assert model.doubles and model.training and model.head.weight.requires_grad
    found = float(compiled.eval_step(BATCH))
    assert abs(found - float(model.eval()(**BATCH).detach())) <= 1e-12 * abs(found)


def test_weights_that_change_with_the_mode_are_only_trained() -> None:
    model = Merged().double()
    before = model.head.weight.detach().clone()
    with pytest.warns(UserWarning, match=r"self.head.weight.data \*= 2.*own eval\(\)"):
        compiled = galvatron.compile(model, BATCH, plan="m1/dp1")
    assert torch.equal(model.head.weight, before)
    compiled.forward_backward(BATCH)
    with pytest.raises(GalvatronError, match=r"own eval\(\)"):
        compiled.eval_step(BATCH)


def test_an_evaluation_has_no_gradients() -> None:
    model = Net(Function(lambda h, training: 2 * h if torch.is_grad_enabled() else h)).double()
    compiled = galvatron.compile(model, BATCH, plan="m1/dp1")
    found = float(compiled.eval_step(BATCH))
    trained = float(compiled.forward_backward(BATCH))
    with torch.no_grad():
        expected = float(model(**BATCH))
    assert abs(found - expected) <= 1e-12 * abs(found)
    assert abs(trained - float(model(**BATCH).detach())) <= 1e-12 * abs(trained)


few = st.lists(st.integers(0, 3), max_size=12)


@settings(max_examples=300)
@given(few, few)
def test_alignment_is_as_long_as_can_be(ones: list[int], others: list[int]) -> None:
    steps = list(_aligned(ones, others))
    assert [i for i, _ in steps if i is not None] == list(range(len(ones)))
    assert [j for _, j in steps if j is not None] == list(range(len(others)))
    pairs = [(i, j) for i, j in steps if i is not None and j is not None]
    assert all(ones[i] == others[j] for i, j in pairs)
    longest = [[0] * (len(others) + 1) for _ in range(len(ones) + 1)]
    for i, one in enumerate(ones):
        for j, other in enumerate(others):
            longest[i + 1][j + 1] = longest[i][j] + 1 if one == other else max(longest[i][j + 1], longest[i + 1][j])
    assert len(pairs) == longest[-1][-1]
