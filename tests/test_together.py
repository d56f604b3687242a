"""Two ranks: what one of them finds is raised on both, whatever it is, and the job goes on afterwards."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import galvatron
from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from tests.marks import some_slow
from tests.ranks import RankFailure, run_ranks

pytestmark = pytest.mark.usefixtures("shared_captures")

WORDS, WIDTH, LENGTH = 24, 16, 6


class Words(nn.Module):
    """A small language model with dropout; `wrong` breaks its capture, or has it `compute` its labels."""

    def __init__(self, dropout: float = 0.0, wrong: str = "") -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.inner = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.dropout = dropout
        self.wrong = wrong

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        if self.wrong == "raises":
            raise KeyError("in forward")
        x = self.embedding(ids)
        for layer in self.inner:
            x = F.dropout(torch.tanh(layer(x)), self.dropout, self.training)
        if self.wrong == "branches" and x.sum() > 0:
            x = -x
        if self.wrong == "computes":
            labels = labels.where(labels != -1, -100)
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def new_model(**options: Any) -> Words:
    torch.manual_seed(0)
    return Words(**options).double()


def new_batch(samples: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randint(WORDS, (samples, LENGTH), generator=generator) for name in ("ids", "labels")}


sgd = partial(torch.optim.SGD, lr=0.1)


def trains_like_eager(compiled: galvatron.CompiledModel, optimizer: Any = sgd, steps: int = 2) -> None:
    model = new_model()
    updates = optimizer(model.parameters())
    for seed in range(steps):
        updates.zero_grad()
        loss = model(**new_batch(seed=seed))
        loss.backward()
        updates.step()
        torch.testing.assert_close(compiled.train_step(new_batch(seed=seed)), loss.detach(), rtol=1e-9, atol=0)
    for name, value in compiled.full_state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-9, atol=1e-12)


def error_of(call: Any, *args: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(GalvatronError) as caught:
        call(*args, **options)
    return type(caught.value).__name__, str(caught.value)


# A failed compilation.


def broken(parameters: Any) -> Any:
    raise OSError("no such file of options")


def break_lowering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("galvatron.passes.lower.shard.Shard.run", lambda *_: {}["a bug"])


def break_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("galvatron.api.capture_graph", lambda *_, **__: {}["a bug"])


def break_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("galvatron.api.load_module", lambda *_: {}["a bug"])


def break_filling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("galvatron.runtime.executor.materialize", lambda *_: {}["a bug"])


FAILURES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    # name: arguments of rank 0, those of rank 1, words of the error
    "plan": ({"plan": "pp2/m2/dp2"}, {"plan": "pp2/m2/dp2"}, "4 devices"),
    "capture": ({"wrong": "branches"}, {"wrong": "branches"}, "if self.wrong == "),
    "raw error in forward": ({"wrong": "raises"}, {"wrong": "raises"}, "in forward"),
    "argument": ({"max_grad_norm": -1}, {"max_grad_norm": -1}, "max_grad_norm must be"),
    "argument on rank 1": ({}, {"max_grad_norm": -1}, "max_grad_norm must be"),
    "argument on rank 0": ({"memory": "1 apple"}, {}, "apple"),
    "optimizer on rank 1": ({}, {"optimizer": broken}, "no such file of options"),
    "optimizer on rank 0": ({"optimizer": torch.optim.LBFGS}, {}, "closure"),
    "bug in capture": ({"bug": break_capture}, {}, "bug of Galvatron"),
    "bug in lowering on rank 1": ({}, {"bug": break_lowering}, "KeyError while running pass 'shard'"),
    "bug in loading on rank 0": ({"bug": break_loading}, {}, "bug of Galvatron"),
    "bug in filling on rank 1": ({}, {"bug": break_filling}, "bug of Galvatron"),
    "no optimizer on rank 1": ({}, {"optimizer": None}, "optimizer is given on rank 0 and not given on rank 1"),
    "other plan": ({"plan": "dp2"}, {"plan": "tp2"}, "plan is dp2 on rank 0 and tp2 on rank 1"),
    "other precision": ({"precision": "bf16"}, {}, "precision is bf16 on rank 0 and None on rank 1"),
    "other batch": ({}, {"samples": 6}, "example_inputs is"),
    "other mode": ({}, {"training": False}, "in training mode on rank 0 and 0 of"),
    "other weights": ({}, {"seed": 1}, "seed every rank alike"),
    "other model": ({}, {"dropout": 0.1, "frozen": True}, "the model is"),
    "other check": ({}, {"check_optimizer": False}, "check_optimizer is True on rank 0 and False on rank 1"),
}


def compile_with(**changes: Any) -> galvatron.CompiledModel:
    """Compiles a changed model with changed arguments."""
    model = new_model(**{key: changes.pop(key) for key in ("dropout", "wrong") if key in changes})
    model.train(changes.pop("training", True))
    model.head.weight.requires_grad_(not changes.pop("frozen", False))
    with torch.no_grad():
        model.head.weight += changes.pop("seed", 0)
    batch = new_batch(changes.pop("samples", 4))
    with pytest.MonkeyPatch.context() as patch:
        changes.pop("bug", lambda _: None)(patch)
        options: dict[str, Any] = {"plan": "dp2", "optimizer": sgd} | changes
        return galvatron.compile(model, batch, **options)


def fails_and_goes_on(world: rt.World, names: list[str]) -> list[tuple[str, str]]:
    arguments: list[Any] = [FAILURES[name][world.rank] for name in names]
    found = [error_of(compile_with, **changes) for changes in arguments]
    trains_like_eager(compile_with())
    return found


def both_ranks_fail_and_go_on(names: list[str]) -> None:
    answers = run_ranks(fails_and_goes_on, 2, names)
    for name, *found in zip(names, *answers, strict=True):
        assert found[0][0] == found[1][0], name
        for _, message in found:
            assert FAILURES[name][2] in message, name


def test_caught_errors_of_compile_leave_the_job_usable():
    both_ranks_fail_and_go_on(
        ["plan", "raw error in forward", "argument on rank 1", "optimizer on rank 1", "bug in lowering on rank 1"]
    )


def test_arguments_that_differ_between_ranks_are_refused():
    both_ranks_fail_and_go_on([name for name in FAILURES if name.startswith(("other", "no "))])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAILURES if not name.startswith(("other", "no "))])
def test_a_caught_error_of_compile_leaves_the_job_usable(name):
    both_ranks_fail_and_go_on([name])


# Steps.


def refused_steps(world: rt.World) -> list[tuple[str, str]]:
    compiled = compile_with()
    other = world.rank == 1
    found = [error_of(compiled.train_step, new_batch(seed=int(other)))]
    trains_like_eager(compiled)
    found += [
        error_of(compiled.train_step, new_batch(8 if other else 4)),
        error_of(compiled.train_step, {"ids": new_batch()["ids"]} if other else new_batch()),
        error_of(compiled.train_step, new_batch(5)),
        error_of(compiled.train_step if other else compiled.eval_step, new_batch()),
        error_of(compiled.load_full_state_dict, {} if other else compiled_state(compiled)),
        error_of(compiled.load_state, {**compiled.state(), "step": world.rank}),
        error_of(compiled.full_state_dict, rank0_only="yes" if other else False),
        error_of(compiled.full_gradients, rank0_only=other),
        error_of(compiled.full_gradients if other else compiled.full_state_dict),
    ]
    assert compiled.forward_backward(new_batch()).isfinite()
    return found


def compiled_state(compiled: galvatron.CompiledModel) -> dict[str, Tensor]:
    return new_model().state_dict()


def test_calls_that_differ_between_ranks_are_refused_on_both():
    answers = run_ranks(refused_steps, 2)
    words = [
        "the content of the batch is",
        "the batch is ids: int64[4, 6], labels: int64[4, 6] on rank 0 and ids: int64[8, 6]",
        "no input 'labels'",
        "5 samples",
        "the call is eval_step on rank 0 and train_step on rank 1",
        "the state has no ",
        "the state is RunState(step=0",
        "rank0_only must be True or False, not 'yes'",
        "rank0_only is False on rank 0 and True on rank 1",
        "the call is full_state_dict on rank 0 and full_gradients on rank 1",
    ]
    for index, expected in enumerate(words):
        for answer in answers:
            assert expected in answer[index][1], answer[index]


def outside(world: rt.World, plan: str) -> list[tuple[str, str]]:
    compiled = compile_with(plan=plan, optimizer=torch.optim.Adam, wrong="computes")
    before = compiled.full_state_dict()
    found = []
    for name, value in (("ids", 1000), ("labels", 1000 + WORDS), ("ids", -1), ("labels", WORDS)):
        batch = new_batch()
        batch[name][3, 2] = value
        for call in (compiled.train_step, compiled.eval_step):
            found.append(error_of(call, batch))
    batch = new_batch()
    batch["labels"][1:3] = -100
    assert compiled.eval_step(batch).isfinite()
    assert all(torch.equal(value, before[name]) for name, value in compiled.full_state_dict().items())
    return found


@pytest.mark.parametrize("plan", some_slow(["tp2"], ["m2/tp2-recompute"]))
def test_numbers_outside_of_a_sharded_vocabulary_are_refused(plan):
    for answer in run_ranks(outside, 2, plan):
        for (kind, message), (name, value) in zip(
            answer, [("ids", 1000)] * 2 + [("labels", 1024)] * 2 + [("ids", -1)] * 2 + [("labels", 24)] * 2, strict=True
        ):
            assert kind == "PlanError"
            assert f"{value} is outside of 0 to 23" in message
            assert ("(in layer" in message) == (name == "labels")
            assert f"batch input {name!r} has it in sample 3; nothing was updated" in message


def outside_of_a_whole_vocabulary(world: rt.World) -> None:
    """It is seen before the step in inputs as they are, and in the middle of it, which ends the job, in others."""
    program = compile_with()
    for name, value in (("ids", 1000), ("labels", 1000), ("labels", -1)):
        batch = new_batch()
        batch[name][3, 2] = value
        words = f"index {value} is outside of 0 to 23: batch input {name!r} has it in sample 3"
        with pytest.raises(GalvatronError, match=words):
            program.train_step(batch)
    batch = new_batch()
    batch["labels"][1:3] = -100
    program.train_step(batch)
    batch["labels"][3, 2] = 1000
    compile_with(wrong="computes").train_step(batch)


@pytest.mark.slow
def test_numbers_outside_of_a_whole_vocabulary():
    with pytest.raises(RankFailure) as caught:
        run_ranks(outside_of_a_whole_vocabulary, 2)
    assert "PlanError: a number in the batch is outside" in caught.value.errors[1]
    assert "Target 1000 is out of bounds" in caught.value.errors[1]


# Optimizers under plans.


def with_optimizer(world: rt.World, name: str, plan: str) -> None:
    optimizer = {"adafactor": partial(torch.optim.Adafactor, lr=0.1), "adamw": partial(torch.optim.AdamW, lr=0.1)}[name]
    trains_like_eager(compile_with(plan=plan, optimizer=optimizer), optimizer)


@pytest.mark.parametrize(
    ("name", "plan"),
    some_slow([("adafactor", "dp2"), ("adamw", "dp2-zero3")], [("adafactor", "pp2/m2/dp1"), ("adamw", "tp2")]),
)
def test_optimizers_train_like_eager(name, plan):
    run_ranks(with_optimizer, 2, name, plan)


class Renamed(torch.optim.SGD):
    """The same options, and perhaps another rule."""


def unequal_optimizers(world: rt.World) -> list[tuple[str, str]]:
    other = world.rank == 1
    found = [
        error_of(compile_with, optimizer=partial(torch.optim.SGD, lr=0.2 if other else 0.1)),
        error_of(compile_with, optimizer=torch.optim.Adam if other else sgd),
        error_of(compile_with, optimizer=lambda ps: torch.optim.SGD(ps[world.rank :], lr=0.1)),
        error_of(compile_with, optimizer=lambda ps: galvatron.JoinedOptimizer((Renamed if other else sgd)(ps, lr=0.1))),
    ]
    compiled = compile_with(optimizer=partial(torch.optim.AdamW, lr=torch.tensor(0.5)))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(compiled.optimizer, 0.5)
    for seed in range(2):
        compiled.train_step(new_batch(seed=seed))
        scheduler.step()
    before = compiled.full_state_dict()
    if other:
        scheduler.step()
    found.append(error_of(compiled.train_step, new_batch()))
    assert compiled.eval_step(new_batch()).isfinite()
    assert all(torch.equal(value, before[name]) for name, value in compiled.full_state_dict().items())
    if not other:
        scheduler.step()
    compiled.train_step(new_batch())
    compiled.optimizer.param_groups[0]["betas"] = (0.9, 0.5 if other else 0.9)
    return [*found, error_of(compiled.train_step, new_batch())]


def test_optimizers_that_differ_between_ranks_are_refused_before_the_update():
    words = [
        "lr in the optimizer of 'embedding.weight' is 0.1 on rank 0 and 0.2 on rank 1; nothing was updated",
        "the optimizer of 'embedding.weight' is SGD(",
        "the optimizer leaves out 1 of the 4 parameters",
        "the optimizer of 'embedding.weight' is SGD(",
        "lr in the optimizer of 'embedding.weight' is 0.125 on rank 0 and 0.0625 on rank 1",
        "betas in the optimizer of 'embedding.weight' is (0.9, 0.9) on rank 0 and (0.9, 0.5) on rank 1",
    ]
    for answer in run_ranks(unequal_optimizers, 2):
        for (_, message), expected in zip(answer, words, strict=True):
            assert expected in message


def embedding_apart(named_parameters: Any) -> torch.optim.Optimizer:
    pairs = list(named_parameters)
    groups = [[p for n, p in pairs if ("embedding" in n) == apart] for apart in (True, False)]
    rates = zip(groups, (0.1, 0.2), strict=True)
    return torch.optim.SGD([{"params": ps, "lr": rate} for ps, rate in rates if ps], momentum=0.9)


def other_groups_on_each_stage(world: rt.World) -> int:
    compiled = compile_with(plan="pp2/m2/dp1", optimizer=embedding_apart)
    names = [name for name, _ in new_model().named_parameters()]
    trains_like_eager(compiled, lambda ps: embedding_apart(zip(names, ps, strict=True)))
    return len(compiled.optimizer.param_groups)


def test_stages_may_have_other_groups():
    assert run_ranks(other_groups_on_each_stage, 2) == [2, 1]


def refused_optimizer(world: rt.World, plan: str) -> str:
    return error_of(compile_with, plan=plan, optimizer=torch.optim.Adafactor)[1]


@pytest.mark.parametrize("plan", some_slow(["dp2-zero1"], ["tp2"]))
def test_an_optimizer_that_is_not_elementwise_is_refused_where_parameters_are_cut(plan):
    for answer in run_ranks(refused_optimizer, 2, plan):
        assert "Adafactor is not element-wise" in answer and "check_optimizer=False" in answer


def other_states(world: rt.World) -> None:
    """States of an optimizer under another plan are refused at once, and change nothing."""
    states = {}
    for plan in ("dp2", "dp2-zero1", "tp2"):
        compiled = compile_with(plan=plan, optimizer=torch.optim.AdamW)
        compiled.train_step(new_batch())
        states[plan] = compiled.optimizer.state_dict()
    for other in ("dp2", "tp2"):
        with pytest.raises(GalvatronError, match=r"'exp_avg' of 'embedding.weight' has shape .* this rank's part"):
            compile_with(plan="dp2-zero1", optimizer=torch.optim.AdamW).optimizer.load_state_dict(states[other])
    compiled = compile_with(optimizer=torch.optim.AdamW)
    for wrong in ({}, {"state": {}, "param_groups": []}, {"state": {}, "param_groups": [{"params": [0]}]}):
        with pytest.raises(GalvatronError, match="state"):
            compiled.optimizer.load_state_dict(wrong)
    assert not compiled.optimizer.state
    compiled.optimizer.load_state_dict(states["dp2"])
    assert compiled.optimizer.state


@pytest.mark.slow
def test_states_of_other_layouts_are_refused():
    run_ranks(other_states, 2)


# Going on.


def resumed(world: rt.World, plan: str, precision: str | None) -> None:
    def new() -> galvatron.CompiledModel:
        model = new_model(dropout=0.5)
        if precision:
            model.float()
        return galvatron.compile(model, new_batch(), plan=plan, optimizer=torch.optim.AdamW, precision=precision)

    torch.manual_seed(5)
    whole = new()
    for seed in range(2):
        whole.train_step(new_batch(seed=seed))
    weights, own, state = whole.full_state_dict(), copy.deepcopy(whole.optimizer.state_dict()), whole.state()
    expected = [whole.train_step(new_batch(seed=seed)) for seed in range(2, 4)]
    torch.manual_seed(6)
    again = new()
    again.load_full_state_dict(weights)
    again.optimizer.load_state_dict(own)
    assert again.state() != state
    again.load_state(state)
    assert again.state() == state
    found = [again.train_step(new_batch(seed=seed)) for seed in range(2, 4)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for name, value in again.full_state_dict().items():
        assert torch.equal(value, whole.full_state_dict()[name]), name


@pytest.mark.parametrize(
    ("plan", "precision"),
    some_slow([("dp2-zero1", None)], [("pp2/m2/dp1", "fp16")]),
)
def test_a_run_goes_on_as_if_it_had_never_stopped(plan, precision):
    run_ranks(resumed, 2, plan, precision)
