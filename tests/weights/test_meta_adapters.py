"""Adapters of `peft` around a base that is on `meta`: nothing of the model exists whole, and `peft` starts adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from galvatron.weights import initialisers
from tests.marks import some_slow
from tests.models import precise
from tests.ranks import run_ranks
from tests.weights.test_round_trip import batch, llama

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.usefixtures("shared_captures"), pytest.mark.filterwarnings("ignore::FutureWarning")]

TARGETS = ["q_proj", "v_proj", "down_proj"]


def on_meta(*, adapters: str, **changes: Any) -> Any:
    """A Llama without values in adapters that have some (`real`), or have none yet."""
    config = peft.LoraConfig(r=4, target_modules=TARGETS, **changes)
    torch.manual_seed(1)
    with torch.device("meta"):
        base = llama().double()
        if adapters == "meta":
            return peft.get_peft_model(base, config).double()
    return peft.get_peft_model(base, config, low_cpu_mem_usage=adapters == "low memory").double()


def loss_and_state(world: rt.World, adapters: str, plan: str, source: str) -> tuple[float, dict[str, Tensor]]:
    model = on_meta(adapters=adapters, modules_to_save=["lm_head"])
    torch.manual_seed(0)
    with precise(model):
        program = galvatron.compile(model, batch(), plan=plan, weights=source)
    return float(program.eval_step(batch())), program.full_state_dict()


@pytest.mark.parametrize(
    ("adapters", "plan"),
    some_slow(
        [("real", "dp1")],
        [("low memory", "dp1"), ("meta", "dp2-zero3"), ("real", "tp2"), ("low memory", "pp2/m2/1f1b/dp1")],
    ),
)
def test_a_base_comes_from_files_and_its_adapters_from_peft(adapters: str, plan: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = llama().double()
    base.save_pretrained(tmp_path)
    for loss, state in run_ranks(loss_and_state, 1 if plan == "dp1" else 2, adapters, plan, str(tmp_path), timeout=200):
        with precise(base):
            assert loss == pytest.approx(float(base(**batch()).loss), rel=1e-12)  # the adapters add nothing yet
        own = {name: value for name, value in state.items() if "lora_" in name}
        assert len(own) == 12
        for name, value in own.items():
            most, bound = float(value.abs().max()), value.shape[1] ** -0.5
            assert most == 0 if "lora_B" in name else bound / 2 < most <= bound
        (copy,) = (value for name, value in state.items() if "modules_to_save" in name)
        assert torch.equal(copy, base.lm_head.weight)


def values(model: nn.Module) -> dict[str, Tensor]:
    state = rt.ModelState(model, seed=1, initialisers=initialisers(model))
    return dict(state.read([name for name, p in model.named_parameters() if p.requires_grad]))


def test_adapters_on_meta_begin_as_peft_has_them_begin() -> None:
    def adapted(config: Any) -> Any:
        with torch.device("meta"):
            return peft.get_peft_model(llama(), config)

    gaussian = values(adapted(peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="gaussian")))
    assert max(float(value.std()) for value in gaussian.values()) == pytest.approx(1 / 4, rel=0.2)
    embedded = values(adapted(peft.LoraConfig(r=4, target_modules=["embed_tokens"])))
    assert sorted(float(value.abs().max()) == 0 for value in embedded.values()) == [False, True]
    scaled = values(adapted(peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])))
    assert all(torch.equal(value, torch.ones_like(value)) for value in scaled.values())
    for config in (
        peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True),
        peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], init_ia3_weights=False),
    ):
        with pytest.raises(GalvatronError, match="on the meta device and nothing initialises it"):
            values(adapted(config))
