"""Adapters of `peft` of every kind that a decoder has compute what they compute in eager, or are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron import runtime as rt
from galvatron.errors import CaptureError
from tests.marks import some_slow
from tests.models import precise
from tests.ranks import run_ranks
from tests.weights.test_round_trip import batch, llama

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.usefixtures("shared_captures"), pytest.mark.filterwarnings("ignore")]

TARGETS = ["q_proj", "v_proj", "down_proj"]


def lora(**changes: Any) -> Any:
    return peft.LoraConfig(**({"r": 4, "target_modules": TARGETS, "init_lora_weights": False} | changes))


def merged(model: Any) -> Any:
    """With one adapter added to the base, beside another that trains."""
    model.merge_adapter()
    model.add_adapter("other", lora(r=2))
    model.set_adapter("other")
    return model


def another(model: Any) -> Any:
    """With an adapter that is not active."""
    model.add_adapter("other", lora(r=2, target_modules=["k_proj"]))
    return model


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any] | None]] = {
    "lora": (lora, None),
    "lora, all linear": (lambda: lora(target_modules="all-linear"), None),
    "lora, rank-stabilised": (lambda: lora(use_rslora=True), None),
    "lora, embedding": (lambda: lora(target_modules=["embed_tokens", "q_proj"]), None),
    "lora, biases": (lambda: lora(bias="lora_only"), None),
    "lora, merged": (lora, merged),
    "lora, one of two": (lora, another),
    "dora": (lambda: lora(use_dora=True), None),
    "ia3": (lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]), None),
    "vera": (lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]), None),
    "oft": (lambda: peft.OFTConfig(oft_block_size=4, target_modules=TARGETS, init_weights=False), None),
    "prompt tuning": (lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), None),
    "prefix tuning": (lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), None),
    "layer norms": (lambda: peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]), None),
}


def adapted(kind: str) -> Any:
    torch.manual_seed(0)
    config, change = KINDS[kind]
    model = peft.get_peft_model(llama(attention_bias=kind == "lora, biases").double(), config())
    return (model if change is None else change(model)).double()


def gradients(_: rt.World, kind: str, plan: str) -> tuple[float, dict[str, Tensor]]:
    model = adapted(kind)
    with precise(model):
        program = galvatron.compile(model, batch(), plan=plan)
    loss = float(program.forward_backward(batch()))
    return loss, program.full_gradients()


def in_eager(model: nn.Module) -> tuple[float, dict[str, Tensor]]:
    with precise(model):
        loss = model(**batch()).loss
    loss.backward()
    return float(loss), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("kind", "plan"),
    some_slow([("lora, embedding", "dp2")], [(kind, plan) for kind in KINDS for plan in ("dp2", "tp2", "dp2-zero3")]),
)
def test_a_kind_of_adapter_computes_what_it_does_in_eager(kind: str, plan: str) -> None:
    wanted_loss, wanted = in_eager(adapted(kind))
    for loss, found in run_ranks(gradients, 2, kind, plan, timeout=200):
        assert loss == pytest.approx(wanted_loss, rel=1e-9)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert float((found[name] - value).norm()) <= 1e-9 * float(value.norm()), name


@pytest.mark.parametrize(
    "config",
    [
        lambda: peft.LoHaConfig(r=4, target_modules=TARGETS, init_weights=False),
        lambda: peft.LoKrConfig(r=4, target_modules=TARGETS, init_weights=False),
    ],
    ids=["loha", "lokr"],
)
def test_adapters_that_draw_in_python_whether_they_take_part_are_refused(config: Callable[[], Any]) -> None:
    """Even where they always do: the branch is on a number that is drawn."""
    model = peft.get_peft_model(llama(), config())
    with pytest.raises(CaptureError, match=r"layer.py:\d+: `if \(not self.training\) or .*depends on the values of a"):
        galvatron.capture(model, batch())
