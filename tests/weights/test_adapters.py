"""Adapters of `peft`: trained as it trains them, saved as it saves them, over a base that is in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import galvatron
from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from galvatron.ir.planned import PlanShorthand
from galvatron.weights import ModelForm
from tests.marks import some_slow
from tests.models import precise
from tests.ranks import run_ranks
from tests.weights.test_round_trip import batch, llama

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.usefixtures("shared_captures"), pytest.mark.filterwarnings("ignore::FutureWarning")]

STEPS = 3
PLANS = ["dp2-zero3", "dp1", "tp2", "pp2/m2/1f1b/dp1", "dp2-tp2-zero3", "pp2/m2/zbv/dp2-zero3", "tp2+sp-recompute"]


def adapted(base: nn.Module | None = None, **changes: Any) -> Any:
    """A Llama with adapters whose products are not zero."""
    torch.manual_seed(1)
    settings: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    config = peft.LoraConfig(**settings, init_lora_weights=False, **changes)
    torch.manual_seed(0)
    return peft.get_peft_model(llama().double() if base is None else base, config).double()


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def exports(world: rt.World, plan: str, target: str) -> list[float]:
    model = adapted()
    with precise(model):
        program = galvatron.compile(model, batch(), plan=plan, optimizer=adamw)
        losses = [float(program.train_step(batch())) for _ in range(STEPS)]
    program.export(target)
    return losses


def config_in(folder: Path) -> dict[str, Any]:
    """What it says; sets are lists in any order in it."""
    found = json.loads((folder / "adapter_config.json").read_text())
    return {key: sorted(value) if isinstance(value, list) else value for key, value in found.items()}


@pytest.mark.parametrize("plan", some_slow(PLANS[:1], PLANS))
def test_an_adapter_is_the_one_that_peft_trains(plan: str, tmp_path: Path) -> None:
    run_ranks(exports, PlanShorthand.parse(plan).world_size, plan, str(tmp_path / "ours"), timeout=200)
    model = adapted()
    optimizer = adamw([p for p in model.parameters() if p.requires_grad])
    for _ in range(STEPS):
        optimizer.zero_grad()
        with precise(model):
            model(**batch()).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "theirs")
    assert config_in(tmp_path / "ours") == config_in(tmp_path / "theirs")
    ours = peft.PeftModel.from_pretrained(llama().double(), tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(llama().double(), tmp_path / "theirs")
    compared = [name for name in ours.state_dict() if "lora" in name]
    assert len(compared) == 12
    for name in compared:
        one, other = ours.state_dict()[name], theirs.state_dict()[name]
        assert one.dtype == other.dtype == torch.float64
        assert float((one - other).norm() / other.norm()) <= 1e-9, name


def with_another_base() -> Any:
    """The same adapters around a base with other values."""
    model = adapted()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.add_(1.0)
    return model


def with_more_adapters(model: Any) -> Any:
    """One that is not active, and one that is beside the first."""
    for name in ("idle", "second"):
        torch.manual_seed(3)
        model.add_adapter(name, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    return model


def reads_a_base(_: rt.World, source: str, several: bool) -> dict[str, Tensor]:
    model = with_another_base()
    model = with_more_adapters(model) if several else model
    return galvatron.compile(model, batch(), plan="dp1", weights=source).full_state_dict()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("several", [False, True])
def test_weights_of_a_base_fill_a_model_with_adapters(several: bool, tmp_path: Path) -> None:
    """Its adapters keep their values, what they wrap has those of the files."""
    wanted = with_more_adapters(adapted()) if several else adapted()
    torch.manual_seed(0)
    llama().double().save_pretrained(tmp_path)
    (found,) = run_ranks(reads_a_base, 1, str(tmp_path), several)
    assert found.keys() == wanted.state_dict().keys()
    for name, value in wanted.state_dict().items():
        assert torch.equal(found[name], value), name


def test_several_active_adapters_are_not_saved() -> None:
    several = adapted()
    several.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    several.base_model.set_adapter(["default", "other"])
    form = ModelForm.of(several)  # it can be trained
    with pytest.raises(GalvatronError, match="2 active adapters"):
        form.in_type(None)
