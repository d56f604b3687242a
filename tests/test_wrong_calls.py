"""A hundred wrong calls of the public functions: each is a `GalvatronError` that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import galvatron
from galvatron import api, offline
from galvatron.errors import GalvatronError

NAN = float("nan")


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 4)
        self.head = nn.Linear(4, 8)
        self.unread = nn.Linear(2, 2)

    def forward(self, ids: Tensor, labels: Tensor, flag: bool = False) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.table(ids)), labels)


def batch(**changes: Any) -> dict[str, Any]:
    return {"ids": torch.arange(4), "labels": torch.arange(4), **changes}


@cache
def compiled() -> galvatron.CompiledModel:
    torch.manual_seed(0)
    return galvatron.compile(Tiny(), batch(), plan="m2/dp1", optimizer=torch.optim.SGD)


@cache
def program() -> galvatron.Program:
    return galvatron.capture(Tiny(), batch())


def changed(**changes: Any) -> dict[Any, Any]:
    """A state of the model, wrong in one place."""
    state: dict[Any, Any] = compiled().full_state_dict()
    for name, value in changes.items():
        state[name.replace("__", ".")] = value
    return state


def without(name: str, state: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in state.items() if key != name}


def masked() -> Tensor:
    return torch.masked.masked_tensor(torch.arange(4), torch.ones(4, dtype=torch.bool))


def made_for_inference() -> nn.Module:
    with torch.inference_mode():
        return Tiny()


def run_state(**changes: Any) -> dict[str, Any]:
    return {**compiled().state(), **changes}


compile_: Any = lambda **options: galvatron.compile(Tiny(), batch(), **{"plan": "dp1", **options})  # noqa: E731  # a table follows
public: Any = api  # wrong types are what this is about
alone: Any = offline
wrong: Any = compiled
sparse, nested = torch.eye(4).to_sparse(), torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])

CALLS: list[tuple[Callable[[], Any], str]] = [
    # compile: model and inputs
    (lambda: public.compile(Tiny, batch()), "must be a torch.nn.Module, not type"),
    (lambda: public.compile(None, batch()), "not NoneType"),
    (lambda: public.compile(nn.LazyLinear(4), (torch.ones(4, 4),)), "'weight' of the model has no shape yet"),
    (lambda: public.capture(nn.LazyLinear(4), (torch.ones(4, 4),)), "'weight' of the model has no shape yet"),
    (lambda: public.compile(Tiny(), None), "NoneType"),
    (lambda: public.compile(Tiny(), torch.arange(4)), "Tensor"),
    (lambda: public.compile(Tiny(), {}), "missing a required argument: 'ids'"),
    (lambda: public.compile(Tiny(), batch(more=torch.ones(4))), "unexpected keyword argument 'more'"),
    (lambda: public.compile(Tiny(), batch(ids=[0, 1])), "'ids' is a list"),
    (lambda: public.compile(Tiny(), batch(ids=5)), ""),
    (lambda: public.compile(torch.jit.script(Tiny()), batch()), "pass the model that torch.jit.script or torch.jit"),
    (lambda: public.compile(made_for_inference(), batch()), "'table.weight' of the model was made in torch.inference"),
    (lambda: public.compile(Tiny(), batch(ids=masked())), "is a MaskedTensor"),
    (lambda: public.compile(Tiny(), (torch.arange(4),)), "missing a required argument: 'labels'"),
    (lambda: public.compile(Tiny(), batch(ids=sparse)), "sparse"),
    (lambda: public.compile(Tiny(), batch(ids=nested)), "nested"),
    (lambda: public.compile(Tiny(), batch(ids=torch.ones(4, dtype=torch.complex64))), "complex64"),
    (lambda: public.compile(Tiny(), {5: torch.arange(4)}), "5"),
    (lambda: public.compile(Tiny(), batch(ids=torch.tensor(3), labels=torch.tensor(3))), "batch dimension"),
    (lambda: public.compile(Tiny(), batch(ids=torch.ones(4))), "table"),
    # compile: options
    (lambda: compile_(loss_fn=3), "loss_fn must be a function"),
    (lambda: compile_(loss_fn=lambda output: output), "loss_fn must take two arguments"),
    (lambda: compile_(loss_fn=lambda output, batch: batch["label"]), "loss_fn asks the batch for 'label'; it has"),
    (lambda: compile_(loss_fn=lambda output, inputs: None), "the loss is a NoneType"),
    (lambda: compile_(cluster=5), "a preset like 'a100-80g:2x8', not int"),
    (lambda: compile_(cluster=""), "cluster"),
    (lambda: compile_(cluster="a100-80g:0x1"), ""),
    (lambda: compile_(cluster="a100-80g:1x4"), "has 4 devices, but this job has 1"),
    (lambda: compile_(memory="-1GiB"), "is not a size in bytes"),
    (lambda: compile_(memory=-1), "cannot be negative"),
    (lambda: compile_(memory=0), "cannot be 0"),
    (lambda: compile_(memory=1.5), "is not a size in bytes"),
    (lambda: compile_(memory=True), "is not a size in bytes"),
    (lambda: compile_(plan=object()), "a plan is a Plan, a path or a shorthand"),
    (lambda: compile_(plan=""), "not empty text"),
    (lambda: compile_(plan="\0"), "unknown token"),
    (lambda: compile_(plan=5), "not int"),
    (lambda: compile_(plan=Path("no/such/file")), "no/such/file"),
    (lambda: compile_(plan=Path("/")), "/"),
    (lambda: compile_(plan="dp1/" * 2000), "dp1"),
    (lambda: compile_(plan="dp0"), "dp0"),
    (lambda: compile_(plan="m3/dp1"), "3 micro-batches"),
    (lambda: compile_(precision=5), "precision must be 'bf16' or 'fp16', or None"),
    (lambda: compile_(precision=torch.bfloat16), "precision must be"),
    (lambda: compile_(precision=["bf16"]), "precision must be"),
    (lambda: compile_(max_grad_norm=True), "max_grad_norm must be a positive number, not True"),
    (lambda: compile_(max_grad_norm=NAN), "max_grad_norm must be"),
    (lambda: compile_(max_grad_norm="1"), "max_grad_norm must be"),
    (lambda: compile_(max_grad_norm=10**400), "max_grad_norm must be"),
    (lambda: compile_(timeout_s=NAN), "timeout_s must be a positive number of seconds, not nan"),
    (lambda: compile_(timeout_s=-1), "timeout_s must be"),
    (lambda: compile_(timeout_s=10**5000), "timeout_s must be"),
    (lambda: compile_(timeout_s=True), "timeout_s must be"),
    (lambda: compile_(timeout_s=torch.ones(1)), "timeout_s must be"),
    (lambda: compile_(cache_dir=5), "cache_dir must be the path of a directory, not int"),
    (lambda: compile_(inductor="yes"), "inductor must be True or False, not 'yes'"),
    (lambda: compile_(detect_nonfinite=1), "detect_nonfinite must be True or False"),
    (lambda: compile_(check_optimizer=None), "check_optimizer must be True or False"),
    # compile: optimizers
    (lambda: compile_(optimizer=0.1), "optimizer must be a function"),
    (lambda: compile_(optimizer=torch.optim.SGD(Tiny().parameters())), "optimizer must be a function"),
    (lambda: compile_(optimizer=lambda: None), "given as optimizer= failed: TypeError"),
    (lambda: compile_(optimizer=lambda parameters: None), "returned NoneType"),
    (lambda: compile_(optimizer=lambda parameters: 1 / 0), "failed: ZeroDivisionError"),
    (lambda: compile_(optimizer=lambda parameters: torch.optim.SGD(Tiny().parameters())), "was not given"),
    (lambda: compile_(optimizer=torch.optim.LBFGS), "needs a closure"),
    (lambda: compile_(optimizer=torch.optim.SparseAdam), "does not support dense gradients"),
    (lambda: compile_(optimizer=partial(torch.optim.Adam, lr=-1.0)), "Invalid learning rate"),
    (lambda: public.compile(Tiny().requires_grad_(False), batch(), optimizer=torch.optim.SGD), "nothing to train"),
    # capture
    (lambda: public.capture("model", batch()), "must be a torch.nn.Module, not str"),
    (lambda: public.capture(Tiny(), "batch"), "str"),
    (lambda: public.capture(Tiny(), batch(), loss_fn="loss"), "loss_fn must be a function"),
    (lambda: public.capture(Tiny(), batch(), precision="fp8"), "precision must be"),
    (lambda: public.capture(nn.Linear(2, 2), (torch.ones(4, 2),)), "pass loss_fn(output, batch)"),
    # search
    (lambda: alone.search("p.gir", "a100-80g:1x1"), "a program is what galvatron.capture returns, not str"),
    (lambda: alone.search(Path("p.gir"), "a100-80g:1x1"), "parse_program"),
    (lambda: alone.search(None, "a100-80g:1x1"), "not NoneType"),
    (lambda: alone.search(program(), None), "a cluster is needed"),
    (lambda: alone.search(program(), 5), "not int"),
    (lambda: alone.search(program(), "nowhere:1x1"), "nowhere"),
    (lambda: alone.search(program(), "a100-80g:1x1", memory="1"), "libraries keep"),
    (lambda: alone.search(program(), "a100-80g:1x1", memory="lots"), "lots"),
    (lambda: alone.search(program(), "a100-80g:1x1", schedule="2f2b"), "2f2b"),
    (lambda: alone.search(program(), "a100-80g:1x1", schedule="zbv"), "no schedule of zbv runs"),
    (lambda: alone.search(program(), "a100-80g:1x1", schedule=5), "schedule"),
    (lambda: alone.search(program(), "a100-80g:1x1", global_batch_size=10**30), "at most"),
    (lambda: alone.search(program(), "a100-80g:1x1", global_batch_size=0), "positive whole number"),
    # estimate and emit
    (lambda: alone.estimate(5, "dp1", "a100-80g:1x1"), "not int"),
    (lambda: alone.estimate(program(), None, "a100-80g:1x1"), "not NoneType"),
    (lambda: alone.estimate(program(), "dp2", "a100-80g:1x1"), "2 devices"),
    (lambda: alone.estimate(program(), "dp1", "a100-80g:1x1", global_batch_size="4"), "positive whole number"),
    (lambda: alone.estimate(program(), "dp1", "a100-80g:1x1", global_batch_size=NAN), "positive whole number"),
    (lambda: alone.emit("p.gir", "dp1", "a100-80g:1x1"), "not str"),
    (lambda: alone.emit(program(), ["dp1"], "a100-80g:1x1"), "not list"),
    (lambda: alone.emit(program(), "dp1", "a100-80g:1x2"), "1 device"),
    (lambda: alone.emit(program(), "dp1", {}), "not dict"),
    # steps
    (lambda: wrong().train_step(None), "a batch is a mapping"),
    (lambda: wrong().train_step({}), "no input 'ids'"),
    (lambda: wrong().train_step({1: 2}), "1 is no name of an input"),
    (lambda: wrong().train_step(batch(more=torch.ones(4))), "not captured with"),
    (lambda: wrong().train_step(batch(flag=True)), "flag"),
    (lambda: wrong().train_step(batch(ids=None)), "'ids' is NoneType, not a tensor"),
    (lambda: wrong().train_step(batch(ids=torch.arange(4.0))), "has dtype torch.float32"),
    (lambda: wrong().train_step(batch(ids=torch.zeros(4, 1, dtype=torch.int64))), "has shape (4, 1)"),
    (lambda: wrong().train_step(batch(ids=torch.arange(5))), "same number of samples"),
    (lambda: wrong().train_step(batch(ids=torch.arange(0), labels=torch.arange(0))), "0 samples has no loss"),
    (lambda: wrong().train_step(batch(ids=torch.arange(4, device="meta"))), "on the meta device"),
    (lambda: wrong().train_step(batch(ids=masked())), "'ids' is a MaskedTensor"),
    (lambda: wrong().eval_step(batch(ids=FakeTensorMode().from_tensor(torch.arange(4)))), "'ids' is fake"),
    (lambda: wrong().train_step(batch(ids=sparse)), "sparse"),
    (lambda: wrong().train_step(batch(ids=nested)), "nested"),
    (lambda: wrong().train_step(batch(ids=torch.arange(4) + 1000)), "batch input 'ids' has it in sample"),
    (lambda: wrong().train_step(batch(labels=torch.arange(4) + 1000)), "index 1003 is outside of 0 to 7"),
    (lambda: wrong().eval_step(batch(ids=torch.arange(4) - 1)), "index -1 is outside of 0 to"),
    (lambda: wrong().eval_step(5), "a batch is a mapping"),
    (lambda: wrong().eval_step((1, 2, 3, 4)), "does not fit the model's forward"),
    (lambda: wrong().forward_backward("batch"), "a batch is a mapping"),
    # states
    (lambda: wrong().load_full_state_dict(None), "a state is a mapping from names to tensors, not NoneType"),
    (lambda: wrong().load_full_state_dict({}), "it is empty; full_state_dict gives a whole one"),
    (lambda: wrong().load_full_state_dict({NAN: torch.ones(1)}), "the model has no nan"),
    (lambda: wrong().load_full_state_dict(changed(tabel=torch.ones(1))), "the model has no 'tabel'"),
    (lambda: wrong().load_full_state_dict(without("head.bias", changed())), "no 'head.bias'"),
    (lambda: wrong().load_full_state_dict(changed(head__bias=3.0)), "'head.bias' is float in the state"),
    (lambda: wrong().load_full_state_dict(changed(head__bias=torch.ones(3))), "has shape (3,) in the state"),
    (lambda: wrong().load_full_state_dict(changed(head__bias=torch.arange(8))), "has dtype torch.int64"),
    (lambda: wrong().load_full_state_dict(changed(head__bias=torch.ones(8) * 1j)), "has dtype torch.complex64"),
    (lambda: wrong().load_full_state_dict(changed(head__bias=torch.ones(8, device="meta"))), "without values"),
    (lambda: wrong().load_full_state_dict(changed(unread__bias=torch.ones(8))), "has shape (8,) in the state"),
    (lambda: wrong().load_state(None), "is what compiled.state() returns, not NoneType"),
    (lambda: wrong().load_state({}), "has version None"),
    (lambda: wrong().load_state(run_state(version=2)), "has version 2"),
    (lambda: wrong().load_state(run_state(steps=1)), "no 'steps'; did you mean 'step'"),
    (lambda: wrong().load_state(without("seed", run_state())), "no 'seed'"),
    (lambda: wrong().load_state(run_state(step=-1)), "step of the state of a run must be a whole number"),
    (lambda: wrong().load_state(run_state(step=True)), "must be a whole number, not True"),
    (lambda: wrong().load_state(run_state(seed="0")), "seed of the state"),
    (lambda: wrong().load_state(run_state(loss_scale=NAN)), "loss_scale of the state"),
    (lambda: wrong().load_state(run_state(loss_scale=2.0)), "with loss scaling, but this one has none"),
    (lambda: wrong().optimizer.load_state_dict({}), "no state of an optimizer"),
    (lambda: wrong().optimizer.load_state_dict({"state": {}, "param_groups": []}), "0 groups of parameters"),
    (lambda: wrong().save_artifacts(5), "given by its path, not int"),
    (lambda: wrong().save_artifacts("/dev/null/nowhere"), "cannot be written into /dev/null/nowhere"),
    (lambda: wrong().save_artifacts("\0"), "none can be called"),
]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("number", range(len(CALLS)))
def test_a_wrong_call_is_refused_in_words(number):
    call, words = CALLS[number]
    with pytest.raises(GalvatronError) as caught:
        call()
    assert type(caught.value).__name__ != "InternalError"
    assert words in str(caught.value)


def test_nothing_has_changed_by_wrong_calls():
    before = compiled().full_state_dict()
    for call, _ in CALLS[CALLS.index(next(c for c in CALLS if c[1] == "a batch is a mapping")) :]:
        with pytest.raises(GalvatronError):
            call()
    assert all(torch.equal(value, before[name]) for name, value in compiled().full_state_dict().items())
    assert compiled().train_step(batch()).isfinite()
