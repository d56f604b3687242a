"""Optimizers whose rule reads whole parameters: trained as on one device, saved and resharded, under any plan."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from galvatron import JoinedOptimizer, WholeParameters, checkpoints, ema
from galvatron import runtime as rt
from galvatron.costs.estimate import estimate_plan
from galvatron.costs.sharded import ShardedCostModel
from galvatron.ir.planned import PlanShorthand
from galvatron.runtime.optimizers import build_optimizer
from galvatron.update_rules import with_rules
from tests.marks import some_slow
from tests.models import precise
from tests.parity.harness import BATCH_SIZE, Job, executor, job_of, planned, subject
from tests.parity.subjects import Batch
from tests.ranks import run_ranks

MODEL = "llama-tied"
"""Without biases of attention keys: their gradient is rounding, which Adafactor makes as large as any other."""
PLANS = ["m2/dp2-zero3", "m2/tp2", "m2/dp2", "m2/dp4-zero1", "m2/dp2-tp2-zero2", "pp2/m4/1f1b/dp2-zero3", "m2/tp2+sp",
         "pp2/m4/zbv/tp2", "m2/cp2-dp2-zero3", "m1/dp1"]  # fmt: skip
BEFORE, AFTER = 2, 2


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and "embed" not in name and "head" not in name


def muon(named_parameters: Any) -> torch.optim.Optimizer:
    """Matrices by Muon, and all else, in parts, by AdamW."""
    named = list(named_parameters)
    matrices = [p for name, p in named if is_matrix(name, p.shape) and p.dim() == 2 and p.numel()]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    rules: list[torch.optim.Optimizer] = [torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1)] if matrices else []
    return JoinedOptimizer(*rules, *([torch.optim.AdamW(others, lr=1e-2)] if others else []))


def adafactor(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(parameters, lr=1e-2, weight_decay=0.1)


class Own(torch.optim.Optimizer):
    """A user's own optimizer, which changes every parameter by itself."""

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-2) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's returns a loss
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter -= group["lr"] * self.direction(parameter, parameter.grad, self.state[parameter])

    def direction(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        raise NotImplementedError


class Lamb(Own):
    """Adam's direction, as long as the parameter is (You et al. 2020)."""

    def direction(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        if not state:
            state.update(mean=torch.zeros_like(gradient), square=torch.zeros_like(gradient))
        state["mean"].lerp_(gradient, 0.1)
        state["square"].lerp_(gradient.square(), 0.01)
        found = state["mean"] / (state["square"].sqrt() + 1e-6) + 0.1 * parameter
        return found * parameter.norm() / found.norm()


class Shampoo(Own):
    """Matrices between roots of the sums of their products with themselves (Gupta et al. 2018)."""

    def direction(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any]) -> Tensor:
        if gradient.dim() != 2:
            return gradient
        if not state:
            state.update(left=gradient.new_zeros(len(gradient), len(gradient)))
            state.update(right=gradient.new_zeros(gradient.size(1), gradient.size(1)))
        state["left"] += gradient @ gradient.T
        state["right"] += gradient.T @ gradient
        return inverse_root(state["left"]) @ gradient @ inverse_root(state["right"])


def inverse_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag((values.clamp_min(0) + 1e-2) ** -0.25) @ vectors.T


FACTORIES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "muon": muon,
    "adafactor": adafactor,
    "lamb": Lamb,
    "shampoo": Shampoo,
}


def whole(rule: str) -> WholeParameters:
    """What `compile` gets."""
    return WholeParameters(FACTORIES[rule], is_matrix if rule == "muon" else None)


def batches() -> list[Batch]:
    return [subject(MODEL).batch(BATCH_SIZE, seed) for seed in range(BEFORE + AFTER)]


def alone(rule: str) -> tuple[list[float], dict[str, Tensor]]:
    """Training in one process with plain PyTorch."""
    case = copy.deepcopy(subject(MODEL))
    optimizer = build_optimizer(FACTORIES[rule], dict(case.model.named_parameters()))
    losses = []
    for batch in batches():
        optimizer.zero_grad()
        with precise(case.model):
            loss = case.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, case.model.state_dict()


Run = tuple[list[float], dict[str, Tensor]]


def train(world: rt.World, job: Job, rule: str, steps: list[Batch], folder: str) -> Run:
    """On a rank: some steps, a checkpoint, and the others."""
    program = executor(world, job, optimizer=whole(rule))
    losses = [float(program.train_step(batch)) for batch in steps[:BEFORE]]
    checkpoints.Saver(world, program).save(Path(folder), step=BEFORE, keep=1, extra={})
    losses += [float(program.train_step(batch)) for batch in steps[BEFORE:]]
    return losses, program.full_state_dict(rank0_only=True)


def go_on(world: rt.World, job: Job, rule: str, steps: list[Batch], folder: str) -> Run:
    """On a rank: from that checkpoint."""
    program = executor(world, job, optimizer=whole(rule))
    checkpoints.load(world, program, Path(folder))
    return [float(program.train_step(batch)) for batch in steps[BEFORE:]], program.full_state_dict(rank0_only=True)


def assert_same(found: Run, wanted: Run) -> None:
    for loss, other in zip(found[0], wanted[0][-len(found[0]) :], strict=True):
        assert abs(loss - other) <= 1e-9 * abs(other)
    for name, value in wanted[1].items():
        error = float((found[1][name] - value).norm() / value.norm().clamp_min(1e-12))
        assert error <= 1e-9, f"{name} is off by {error:.1e}"


@pytest.mark.parametrize(
    ("rule", "plan"),
    some_slow(
        [("muon", PLANS[0])],
        [(rule, plan) for rule in ("muon", "adafactor") for plan in PLANS]
        + [(rule, plan) for rule in ("lamb", "shampoo") for plan in PLANS[1:6:2]],
    ),
)
def test_trains_as_one_device_and_goes_on_under_another_plan(rule: str, plan: str, tmp_path: Path) -> None:
    wanted = alone(rule)
    size = PlanShorthand.parse(plan).world_size
    arguments = rule, batches(), str(tmp_path)
    assert_same(run_ranks(train, size, job_of(MODEL, planned(MODEL, plan, size)), *arguments, timeout=200)[0], wanted)
    other = PLANS[(PLANS.index(plan) + 1) % len(PLANS)]
    size = PlanShorthand.parse(other).world_size
    assert_same(run_ranks(go_on, size, job_of(MODEL, planned(MODEL, other, size)), *arguments, timeout=200)[0], wanted)


def sent(world: rt.World, job: Job, rule: str, batch: Batch) -> list[tuple[str, int]]:
    """On a rank: what is sent for the update, by kind, with its bytes."""
    program = executor(world, job, optimizer=whole(rule))
    with rt.CommunicationCounter() as counter:
        program.train_step(batch)
    return [(kind, size) for (kind, _), size in counter.payload_bytes("parameters").items()]


@pytest.mark.slow
def test_owners_alone_get_parameters_and_are_sent_what_the_costs_say() -> None:
    program = with_rules(planned(MODEL, "m2/tp2", 2), whole("adafactor"))
    model = ShardedCostModel(program, program.required_cluster)
    strategy = program.required_plan.stages[0][0]
    states = {
        name: state
        for layer in model.layers
        for name, state in model._state(layer, strategy, program.required_plan.ties).parameters.items()
    }
    found = run_ranks(sent, 2, job_of(MODEL, program), "adafactor", batches()[0], timeout=200)
    assert {kind for of_rank in found for kind, _ in of_rank} == {"all_to_all"}
    stated = 2 * sum(state.brought_bytes + state.given_bytes for state in states.values())
    assert sum(size for of_rank in found for _, size in of_rank) == pytest.approx(stated, rel=0.05)


def state_bytes(world: rt.World, job: Job, rule: str, averaged: bool, batch: Batch) -> int:
    """On a rank: of the tensors that the optimizer keeps, numbers left out."""
    factory = optimizer_of(rule, averaged)
    program = executor(world, job, optimizer=factory)
    program.train_step(batch)
    assert program.optimizer is not None
    kept = [value for state in program.optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in kept if isinstance(value, Tensor) and value.numel() > 1)


def optimizer_of(rule: str, averaged: bool) -> Any:
    """By the name of a rule of this file or of `PLAIN`, with averages of what it trains if these are wanted."""
    wanted = whole(rule) if rule in FACTORIES else PLAIN[rule]
    if not averaged:
        return wanted
    if isinstance(wanted, WholeParameters):
        return replace(wanted, build=lambda named_parameters: ema(build_optimizer(wanted, dict(named_parameters))))
    return lambda parameters: ema(wanted(parameters))


PLAIN: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
}


@pytest.mark.parametrize(
    ("rule", "averaged", "plan"),
    some_slow(
        [("muon", True, "m2/dp2-zero2")],
        [
            *[(rule, rule == "momentum", plan) for rule in PLAIN for plan in ("m2/dp2-zero3", "m2/tp2")],
            *[("adafactor", False, plan) for plan in ("m2/dp2", "m2/dp2-zero1", "m2/tp2", "pp2/m4/1f1b/dp1")],
            ("lamb", False, "m2/tp2"),
            ("shampoo", False, "m2/dp2-zero3"),
            ("muon", False, "pp2/m4/1f1b/dp2-zero1"),
        ],
    ),
)
def test_the_state_of_an_optimizer_takes_what_is_predicted(rule: str, averaged: bool, plan: str) -> None:
    size = PlanShorthand.parse(plan).world_size
    program = with_rules(planned(MODEL, plan, size), optimizer_of(rule, averaged))
    stages = estimate_plan(program, program.required_plan)[1]
    stated = sum(stage.state.optimizer for stage in stages) * size / len(stages)
    found = run_ranks(state_bytes, size, job_of(MODEL, program), rule, averaged, batches()[0], timeout=200)
    assert sum(found) == pytest.approx(stated, rel=1e-9)
