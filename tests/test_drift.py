"""A model that is changed after it was compiled: what the program does not see is said aloud, at the next call."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron.drift import ModelWatch
from galvatron.errors import CaptureError, GalvatronError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2))
        self.unread = nn.Linear(2, 2)
        self.register_buffer("scale", torch.full((2,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x) * self.scale).pow(2).mean()


BATCH = {"x": torch.linspace(-1, 1, 16).view(4, 4)}


def new_compiled(model: nn.Module) -> galvatron.CompiledModel:
    return galvatron.compile(model, BATCH, plan="dp1", optimizer=partial(torch.optim.SGD, lr=0.1))


@pytest.fixture(scope="module")
def pair() -> tuple[Model, galvatron.CompiledModel]:
    model = Model()
    return model, new_compiled(model)


def add_one(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor += 1


@pytest.mark.parametrize(
    ("register", "who"),
    [
        (lambda m: m.inner[0].weight.register_hook(abs), "parameter 'inner.0.weight'"),
        (lambda m: m.inner[0].bias.register_post_accumulate_grad_hook(abs), "parameter 'inner.0.bias'"),
        (lambda m: m.inner[3].register_full_backward_pre_hook(abs), "module 'inner.3'"),
        (lambda m: m.register_full_backward_hook(abs), "the model"),
    ],
)
def test_a_hook_on_the_backward_is_refused_until_it_is_removed(pair, register: Any, who: str):
    model, compiled = pair
    handle = register(model)
    with pytest.raises(GalvatronError, match=f"{who} was given a hook on its backward after the model was compiled"):
        compiled.forward_backward(BATCH)
    compiled.eval_step(BATCH)
    handle.remove()
    compiled.forward_backward(BATCH)


@pytest.mark.parametrize(
    ("change", "back", "words"),
    [
        (lambda m: m.eval(), lambda m: m.train(), "the model was switched to evaluation mode"),
        (lambda m: m.inner[2].eval(), lambda m: m.train(), "module 'inner.2' was switched to evaluation mode"),
        (lambda m: m.inner[0].requires_grad_(False), lambda m: m.requires_grad_(), "'inner.0.weight' was frozen"),
        (lambda m: m.scale.requires_grad_(), lambda m: m.scale.requires_grad_(False), "buffer 'scale' was unfrozen"),
    ],
)
def test_a_change_is_refused_until_it_is_undone(pair, change: Any, back: Any, words: str):
    model, compiled = pair
    change(model)
    for call in (compiled.train_step, compiled.forward_backward):
        with pytest.raises(GalvatronError, match=words):
            call(BATCH)
    back(model)
    compiled.train_step(BATCH)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: add_one(m.inner[0].weight), "parameter 'inner.0.weight' was changed in place"),
        (lambda m: add_one(m.scale), "buffer 'scale' was changed in place"),
        (lambda m: m.load_state_dict(Model().state_dict()), "was changed in place"),
        (lambda m: setattr(m.inner[3], "bias", nn.Parameter(torch.ones(2))), "'inner.3.bias' was replaced"),
        (lambda m: setattr(m, "scale", torch.ones(2)), "buffer 'scale' was replaced"),
    ],
)
def test_new_values_are_refused_until_they_are_loaded(pair, change: Any, words: str):
    model, compiled = pair
    change(model)
    for call in (compiled.train_step, compiled.eval_step):
        with pytest.raises(GalvatronError, match=rf"{words}.*load_full_state_dict\(model.state_dict\(\)\)"):
            call(BATCH)
    compiled.load_full_state_dict(model.state_dict())
    model.eval()
    torch.testing.assert_close(compiled.eval_step(BATCH).float(), model(**BATCH).detach())
    model.train()


def test_evaluation_needs_no_switch_of_the_mode(pair):
    model, compiled = pair
    before = compiled.eval_step(BATCH)
    model.eval()
    assert torch.equal(compiled.eval_step(BATCH), before)
    model.train()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.to("meta"),
        lambda m: m.unread.requires_grad_(False),
        lambda m: add_one(m.unread.weight),
        lambda m: delattr(m, "unread"),
        lambda m: m(**BATCH).backward(),
        lambda m: m.zero_grad(),
    ],
    ids=["moved away", "frozen, not read", "changed, not read", "gone, not read", "eager step", "no gradients"],
)
def test_what_does_not_matter_is_no_reason_to_stop(change: Callable[[Model], Any]):
    model = Model()
    compiled = new_compiled(model)
    change(model)
    compiled.train_step(BATCH)


def test_a_model_that_is_gone_is_not_asked():
    model = Model()
    compiled = new_compiled(model)
    del model
    gc.collect()
    compiled.train_step(BATCH)


def test_the_watch_sees_tied_parameters_and_inference_tensors():
    model = Model()
    model.inner[3].weight = model.unread.weight
    with torch.inference_mode():
        model.scale = torch.ones(2)
    watch = ModelWatch(model, ["inner.3.weight", "scale"])
    watch.check(training=True)
    add_one(model.unread.weight)
    with pytest.raises(GalvatronError, match="changed in place"):
        watch.check(training=True)


# Where a step is called from.


def test_a_step_trains_wherever_it_is_called_from():
    def trained(context: Any) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(0)
        compiled = new_compiled(Model())
        with context:
            inputs = {name: value.clone() for name, value in BATCH.items()}
            loss = compiled.train_step(inputs)
            assert not loss.requires_grad and not compiled.eval_step(inputs).requires_grad
        return loss, compiled.full_state_dict()

    loss, weights = trained(torch.enable_grad())
    assert not torch.equal(weights["inner.0.weight"], dict(Model().named_parameters())["inner.0.weight"])
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        other, changed = trained(context)
        assert torch.equal(loss, other)
        assert all(torch.equal(value, changed[name]) for name, value in weights.items())


# What a model does not own is not trained.


OUTER = nn.Linear(8, 8)
FROZEN = nn.Linear(8, 8).requires_grad_(False)


class Outside(nn.Module):
    """Reads a module that is none of its own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.how = how
        self.listed = [nn.Parameter(torch.zeros(8)), OUTER.weight.detach() * 2, OUTER.bias * 2]

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        if self.how == "global":
            x = OUTER(x)
        if self.how == "frozen":
            x = FROZEN(x)
        if self.how == "listed":
            x = x + self.listed[0]
        if self.how == "computed":
            x = x * self.listed[2]
        if self.how == "detached":
            x = x * OUTER.bias.detach() + self.listed[1].sum() + OUTER.weight.shape[0]
        if self.how == "no_grad":
            with torch.no_grad():
                scale = OUTER.bias * 2
            x = x * scale
        return x.pow(2).mean()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("global", r"test_drift.py:\d+: `x = OUTER\(x\)`: a parameter of shape \(8, 8\) .* not among the model's"),
        ("listed", r"`x = x \+ self.listed\[0\]`: a parameter of shape \(8,\)"),
        ("computed", r"`x = x \* self.listed\[2\]`: a tensor of shape \(8,\)"),
    ],
)
def test_parameters_outside_of_the_model_are_refused(how, words):
    with pytest.raises(CaptureError, match=words):
        galvatron.capture(Outside(how), BATCH)
    with pytest.raises(CaptureError):
        galvatron.capture(Outside(how), BATCH, precision="bf16")


@pytest.mark.parametrize("how", ["frozen", "detached", "no_grad"])
def test_what_needs_no_gradient_is_a_constant(how):
    model = Outside(how)
    compiled = galvatron.compile(model, BATCH, plan="dp1")
    torch.testing.assert_close(compiled.forward_backward(BATCH).float(), model(**BATCH).detach())


class Criterion(nn.Module):
    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1).requires_grad_(trained)

    def forward(self, output: Tensor, batch: Any) -> Tensor:
        return self.head(output.view(1)).sum()

    def method(self, output: Tensor, batch: Any) -> Tensor:
        return self(output, batch)


@pytest.mark.parametrize("form", [lambda c: c, lambda c: c.method, lambda c: lambda output, batch: c(output, batch)])
def test_a_loss_function_with_parameters(form):
    with pytest.raises(CaptureError, match=r"self.head\(output.view\(1\)\).sum\(\)`: a parameter .*such as a loss"):
        galvatron.capture(Outside(""), BATCH, loss_fn=form(Criterion(trained=True)))
    model, criterion = Outside(""), Criterion(trained=False)
    compiled = galvatron.compile(model, BATCH, loss_fn=form(criterion), plan="dp1")
    expected = criterion(model(**BATCH), BATCH).detach()
    torch.testing.assert_close(compiled.forward_backward(BATCH).float(), expected)
