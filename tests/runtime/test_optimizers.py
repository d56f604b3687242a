"""Which optimizers may be given slices: a property that is found on small stand-ins, not a list of names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from galvatron.errors import GalvatronError
from galvatron.runtime.elementwise import Slices, Trained, check_optimizer
from galvatron.runtime.joined import JoinedOptimizer
from galvatron.runtime.optimizers import build_optimizer, optimizer_of_rank
from galvatron.runtime.options import GroupOptions
from galvatron.runtime.whole import WholeParameters
from tests.marks import some_slow

CPU = torch.device("cpu")
MATRICES = {f"layers.{i}.weight": Trained((256, 192), torch.float32) for i in range(3)}
MODEL = MATRICES | {
    "bias": Trained((256,), torch.float64),
    "kernel": Trained((16, 8, 3, 3), torch.float32),
    "scale": Trained((), torch.float32),
    "half": Trained((64, 64), torch.bfloat16),
}
CUTS = {
    "rows": Slices(dims=frozenset({0})),
    "columns": Slices(dims=frozenset({1})),
    "ranges": Slices(ranges=True),
}


class Handwritten(torch.optim.Optimizer):
    """A step for each parameter by itself: `rule(parameter, gradient, rate)` is what is taken off."""

    def __init__(self, parameters: Iterable[Any], rule: Callable[..., Tensor], lr: float = 1e-2) -> None:
        super().__init__(parameters, {"lr": lr})
        self.rule = rule

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's returns a loss
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter -= self.rule(parameter, parameter.grad, group["lr"])


def trust_ratio(parameter: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """As LARS and LAMB."""
    return rate * gradient * parameter.norm() / gradient.norm()


def centralised(parameter: Tensor, gradient: Tensor, rate: float) -> Tensor:
    return rate * (gradient - gradient.mean())


def by_rows(parameter: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """Adaptive along the last dimension, as Adam-mini with a number per row: columns may not be cut, rows may."""
    return rate * gradient / gradient.norm(dim=-1, keepdim=True) if gradient.dim() > 1 else rate * gradient


def blockwise(parameter: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """In blocks of 256 as optimizers with 8-bit states, which leave small tensors alone."""
    if gradient.numel() < 4096:
        return rate * gradient
    flat = gradient.flatten()
    blocks = nn.functional.pad(flat, (0, -flat.numel() % 256)).view(-1, 256)
    step = blocks.abs().amax(1, keepdim=True) / 127
    return rate * ((blocks / step).round() * step).view(-1)[: flat.numel()].view_as(gradient)


class Together(torch.optim.Optimizer):
    """Divides all gradients by the norm of all of them."""

    def __init__(self, parameters: Iterable[Any], lr: float = 1e-2) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's returns a loss
        trained = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm().double() for p in trained]).norm()
        with torch.no_grad():
            for p in trained:
                p -= self.param_groups[0]["lr"] * (p.grad / norm).to(p.dtype)


ELEMENTWISE = {
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": torch.optim.Adam,
    "amsgrad": partial(torch.optim.Adam, amsgrad=True, weight_decay=0.1),
    "adamw": torch.optim.AdamW,
    "foreach": partial(torch.optim.AdamW, foreach=True),
    "fused": partial(torch.optim.AdamW, fused=True),
    "tensor rate": partial(torch.optim.AdamW, lr=torch.tensor(1e-3)),
    "rate zero": partial(torch.optim.AdamW, lr=0.0),
    "maximize": partial(torch.optim.Adam, maximize=True),
    "rmsprop": partial(torch.optim.RMSprop, centered=True, momentum=0.9),
    "adagrad": torch.optim.Adagrad,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adamax": torch.optim.Adamax,
    "adadelta": torch.optim.Adadelta,
    "asgd": torch.optim.ASGD,
    "rprop": torch.optim.Rprop,
    "sign": lambda ps: Handwritten(ps, lambda p, g, rate: rate * g.sign()),
}


def check(factory: Any, slices: Slices, model: dict[str, Trained] = MODEL, own: Any = None) -> frozenset[str]:
    return check_optimizer(partial(build_optimizer, factory), model, tuple(model) if own is None else own, slices, CPU)


OFTEN = ("sgd", "adamw", "foreach", "fused", "tensor rate", "rate zero", "adagrad", "rprop")


@pytest.mark.parametrize("name", some_slow(OFTEN, ELEMENTWISE))
def test_elementwise_optimizers_take_any_slices(name):
    check(ELEMENTWISE[name], Slices(frozenset({0, 1, 2}), ranges=True))
    check(ELEMENTWISE[name], Slices(), own=tuple(MODEL)[2:5])


@pytest.mark.parametrize("cut", some_slow(["rows", "ranges"], ["columns"]))
@pytest.mark.parametrize(
    "factory",
    [
        torch.optim.Adafactor,
        partial(torch.optim.Muon, lr=0.02),
        lambda ps: Handwritten(ps, trust_ratio),
        lambda ps: Handwritten(ps, centralised),
        lambda ps: Handwritten(ps, blockwise),
        Together,
    ],
    ids=["adafactor", "muon", "trust ratio", "centralised", "blockwise", "together"],
)
def test_other_optimizers_are_refused_for_slices_and_taken_for_whole_parameters(factory, cut):
    with pytest.raises(GalvatronError, match="is not element-wise.*without ZeRO.*check_optimizer=False"):
        check(factory, CUTS[cut], MATRICES)
    assert isinstance(check(factory, Slices(), MATRICES), frozenset)


def test_only_what_the_plan_needs_is_asked_for():
    factory = lambda ps: Handwritten(ps, by_rows)  # noqa: E731  # reads like the others
    check(factory, CUTS["rows"], MATRICES)
    with pytest.raises(GalvatronError, match="given a slice of dim 1"):
        check(factory, CUTS["columns"], MATRICES)
    check(torch.optim.Adafactor, Slices(), MATRICES, own=list(MATRICES)[:1])
    with pytest.raises(GalvatronError, match="given the parameters of some layers"):
        check(Together, Slices(), MATRICES, own=list(MATRICES)[:1])


def test_parameters_that_are_given_whole_must_not_depend_on_each_other():
    everything = tuple(MATRICES)
    check_optimizer(partial(build_optimizer, torch.optim.Adafactor), MATRICES, everything, Slices(), CPU, everything)
    with pytest.raises(GalvatronError, match="given gradients of some parameters"):
        check_optimizer(partial(build_optimizer, Together), MATRICES, everything, Slices(), CPU, everything)


@pytest.mark.slow
def test_what_is_not_said_to_be_read_whole_must_be_element_wise_on_one_device_too():
    def matrices_in_rows(named_parameters):
        named = list(named_parameters)
        matrices = [p for name, p in named if "layers" in name]
        return JoinedOptimizer(torch.optim.Muon(matrices), torch.optim.SGD([p for n, p in named if "layers" not in n]))

    trained = {name: nn.Parameter(torch.zeros(one.shape, dtype=one.dtype)) for name, one in MODEL.items()}

    def made(which: Callable[[str, tuple[int, ...]], bool]) -> torch.optim.Optimizer:
        rule = WholeParameters(matrices_in_rows, which)
        whole = rule.of({name: one.shape for name, one in MODEL.items()})
        return optimizer_of_rank(rule, trained, MODEL, Slices(), CPU, check=True, whole=whole)

    assert isinstance(made(lambda name, shape: "layers" in name), JoinedOptimizer)
    with pytest.raises(GalvatronError, match="as some plan gives it, it updates 'layers.1.weight'.*let which="):
        made(lambda name, shape: name == "layers.0.weight")


def test_rules_that_cannot_be_joined_or_called_are_refused():
    one = torch.optim.SGD([nn.Parameter(torch.ones(2))])
    for wrong, words in [
        ((), "not of none"),
        ((3,), "not of int"),
        ((JoinedOptimizer(one),), "join all of them in one"),
    ]:
        with pytest.raises(GalvatronError, match=words):
            JoinedOptimizer(*wrong)  # type: ignore[arg-type]
    with pytest.raises(GalvatronError, match="which= of WholeParameters must be a function"):
        WholeParameters(torch.optim.Adafactor, 3)  # type: ignore[arg-type]
    with pytest.raises(GalvatronError, match="takes a function from parameters"):
        WholeParameters(one)  # type: ignore[arg-type]


def test_groups_by_name_and_by_dimension():
    def factory(named_parameters):
        decays = [p for name, p in named_parameters if p.dim() > 1]
        others = [p for name, p in named_parameters if p.dim() <= 1]
        return torch.optim.AdamW([{"params": decays}, {"params": others, "weight_decay": 0.0, "lr": 0.0}])

    check(factory, Slices(frozenset({0, 1}), ranges=True))
    check(factory, Slices(ranges=True), own=list(MODEL)[:2])

    def only_the_bias_differs(named_parameters):
        return torch.optim.SGD([{"params": [p], "lr": 0.1 if n == "bias" else 0.2} for n, p in named_parameters])

    check(only_the_bias_differs, Slices(ranges=True), own=list(MODEL)[1:])


def test_options_that_follow_from_the_place_in_the_list_are_refused():
    def decaying(parameters):
        return torch.optim.SGD([{"params": [p], "lr": 0.1 * 0.9**i} for i, p in enumerate(parameters)])

    check(decaying, Slices(ranges=True))
    with pytest.raises(GalvatronError, match=r"gives 'layers.1.weight' lr=0.1 .* and 0.09.* in the whole model"):
        check(decaying, Slices(ranges=True), own=list(MODEL)[1:])


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (torch.optim.LBFGS, "the step of LBFGS needs a closure"),
        (lambda ps: 1 / 0, "given as optimizer= failed: ZeroDivisionError"),
        (lambda ps: torch.optim.SGD, "returned type, not a torch.optim.Optimizer"),
        (lambda ps: None, "returned NoneType"),
        (lambda ps: torch.optim.SGD([nn.Parameter(torch.ones(3))]), r"1 tensors .* first of shape \(3,\)"),
        (lambda ps: torch.optim.SGD(ps[1:3]), r"leaves out 5 of the 7 .* 'layers.0.weight', .*requires_grad_\(False\)"),
        (torch.optim.SparseAdam, "SparseAdam fails .* does not support dense gradients"),
        (partial(torch.optim.Adam, lr=-1.0), "failed: ValueError: Invalid learning rate"),
        (lambda ps: Handwritten(ps, lambda p, g, rate: torch.zeros_like(p)), "does not move"),
        (lambda ps: Handwritten(ps, lambda p, g, rate: rate * torch.randn_like(p)), "is not element-wise"),
    ],
)
def test_what_cannot_train_is_refused(factory, message):
    with pytest.raises(GalvatronError, match=message):
        check(factory, Slices(ranges=True))


def test_the_check_leaves_everything_as_it_was(capsys):
    made = []

    def factory(parameters):
        print("making an optimizer")
        made.append(torch.optim.AdamW(parameters))
        return made[-1]

    trained = {"weight": nn.Parameter(torch.ones(1, 100))}
    before = torch.get_rng_state()
    optimizer = optimizer_of_rank(
        factory, trained, {"weight": Trained((20, 10), torch.float32)}, CUTS["ranges"], CPU, check=True
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert made[-1] is optimizer and not optimizer.state and trained["weight"].grad is None
    assert torch.equal(trained["weight"], torch.ones(1, 100)) and optimizer.param_groups[0]["lr"] == 1e-3
    assert capsys.readouterr().out == "making an optimizer\n"


def test_states_are_checked_before_they_are_loaded():
    def named(names: str) -> torch.optim.Optimizer:
        trained = {name: nn.Parameter(torch.ones(4, 2)) for name in names}
        factory = lambda named_parameters: torch.optim.AdamW(named_parameters)  # noqa: E731  # reads its name
        model = {name: Trained((4, 2), torch.float32) for name in names}
        optimizer = optimizer_of_rank(factory, trained, model, Slices(), CPU, check=True)
        for parameter in trained.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        return optimizer

    optimizer = named("ab")
    before = optimizer.state_dict()
    wrong = copy.deepcopy(before)
    wrong["state"][1]["exp_avg_sq"] = torch.ones(1, 8)
    for state, words in [
        (named("ba").state_dict(), "has 'b' where the optimizer has 'a'"),
        (named("a").state_dict(), r"has 1 parameters, but that of the optimizer 2 \(a, b\)"),
        (wrong, r"'exp_avg_sq' of 'b' has shape \(1, 8\), but this rank's part of the parameter has \(4, 2\)"),
    ]:
        with pytest.raises(GalvatronError, match=words):
            optimizer.load_state_dict(state)
        assert all(
            value is other
            for own, old in zip(optimizer.state_dict()["state"].values(), before["state"].values(), strict=True)
            for value, other in zip(own.values(), old.values(), strict=True)
        )
    optimizer.load_state_dict(copy.deepcopy(before))


def test_a_rank_without_parameters_has_an_optimizer():
    model = {"weight": Trained((4, 2), torch.float32)}
    optimizer = optimizer_of_rank(torch.optim.AdamW, {}, model, Slices(), CPU, check=True)
    assert len(optimizer.param_groups) == 1
    optimizer.step()


def test_nothing_to_train():
    with pytest.raises(GalvatronError, match="nothing to train"):
        optimizer_of_rank(torch.optim.AdamW, {}, {}, Slices(), CPU, check=True)


def options_of(pipeline_rank: int, groups: list[dict[str, Any]], holders: dict[str, tuple[int, ...]]) -> GroupOptions:
    """Of an optimizer whose groups name their parameters."""
    trained = {name: nn.Parameter(torch.ones(2)) for group in groups for name in group["params"]}
    optimizer = torch.optim.SGD([{**group, "params": [trained[n] for n in group["params"]]} for group in groups])
    catalogue: Any = SimpleNamespace(holders=holders, mesh=SimpleNamespace(pipeline_rank=pipeline_rank))
    return GroupOptions(optimizer, trained, catalogue)


def test_digests_of_options_follow_from_each_parameter():
    holders = {"a": (0,), "b": (0,), "tied": (0, 1), "c": (1,)}
    first = options_of(0, [{"params": ["a", "b", "tied"], "lr": 0.1}], holders)
    alone, tied, none = first.digests()
    assert none is None
    apart = options_of(0, [{"params": ["tied", "b"], "lr": 0.1}, {"params": ["a"], "lr": 0.1}], holders)
    assert apart.digests() == [alone, tied, None]
    changed = options_of(0, [{"params": ["tied", "b"], "lr": 0.1}, {"params": ["a"], "lr": 0.2}], holders)
    assert changed.digests()[0] != alone and changed.digests()[1] == tied
    last = options_of(1, [{"params": ["c"], "lr": 0.3}, {"params": ["tied"], "lr": 0.1}], holders)
    assert last.digests()[:2] == [None, tied]
    group = first._optimizer.param_groups[0]
    group["lr"] = 0.2
    assert first.digests()[1] not in (tied, None)
    group.update(lr=torch.tensor(0.1, dtype=torch.float64), step=3)
    assert first.digests() == [alone, tied, None]
    group["params"].pop()
    assert first.digests()[1] != tied
