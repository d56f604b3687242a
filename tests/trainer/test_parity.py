"""Training under a plan is training by `transformers.Trainer` on one device: what is logged, evaluated and learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from galvatron import runtime as rt
from tests.marks import some_slow
from tests.ranks import run_ranks
from tests.trainer.small import Sentences, new_model, plain_trainer, trained, trainer

pytestmark = pytest.mark.usefixtures("shared_captures")


def rows_scaled(output: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
    """For `compute_loss_func`."""
    logits, targets = output["logits"][:, :-1], labels[:, 1:]
    each = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=-100)
    return 2 * each.sum() / num_items_in_batch


VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no clipping": {"args": {"max_grad_norm": 0.0, "train_sampling_strategy": "sequential"}},
    "dropped": {"args": {"dataloader_drop_last": True, "max_grad_norm": 0.1, "data_seed": 3}},
    "smoothed": {"args": {"label_smoothing_factor": 0.1}},
    "own loss": {"compute_loss_func": rows_scaled},
    "own optimizer": {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})},
    "loss alone": {"compute_metrics": None, "args": {"dataloader_num_workers": 1}},
}


def on_ranks(world: rt.World, folder: Path, plan: str, variant: str) -> Any:
    return trained(trainer(folder, plan, world.size, **VARIANTS[variant]))


def check(found: Any, folder: Path, variant: str) -> None:
    """`Trainer` adds losses up in float32, and so does this model its logits."""
    wanted, values = trained(plain_trainer(folder / "plain", **VARIANTS[variant]))
    logs, own = found
    assert [log.keys() for log in logs] == [log.keys() for log in wanted]
    for log, other in zip(logs, wanted, strict=True):
        assert log == pytest.approx(other, rel=1e-6), log
    for name, value in values.items():
        torch.testing.assert_close(own[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("variant", some_slow(["as it is"], VARIANTS))
def test_one_device(tmp_path: Path, variant: str) -> None:
    check(on_ranks(rt.World(0, 1, torch.device("cpu")), tmp_path / "own", "m2/dp1", variant), tmp_path, variant)


CASES = [
    ("dp2-zero3", "as it is"),
    ("pp2/m2/1f1b/dp1", "as it is"),
    ("tp2", "as it is"),
    ("dp2", "dropped"),
    ("dp2", "smoothed"),
    ("pp2/m2/1f1b/dp1", "own loss"),
    ("dp2-zero2", "own optimizer"),
    ("dp2", "loss alone"),
    ("dp2-tp2", "as it is"),
    ("pp2/m2/1f1b/dp2", "no clipping"),
]


@pytest.mark.parametrize(("plan", "variant"), some_slow(CASES[:1], CASES))
def test_several_ranks(tmp_path: Path, plan: str, variant: str) -> None:
    ranks = 4 if plan in ("dp2-tp2", "pp2/m2/1f1b/dp2") else 2
    for found in run_ranks(on_ranks, ranks, tmp_path / "own", plan, variant, timeout=240):
        check(found, tmp_path, variant)


def test_a_saved_model_is_the_one_that_was_trained(tmp_path: Path) -> None:
    made = trainer(tmp_path, "dp1", args={"max_steps": 2, "eval_strategy": "no"})
    before = new_model().state_dict()
    made.train()
    made.save_model()
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    for name, value in read.state_dict().items():
        assert torch.equal(value, made.model.state_dict()[name]) and not torch.equal(value, before[name])
    found = made.predict(Sentences(9, seed=1))  # type: ignore[arg-type]  # Trainer wants one of its own data sets
    with torch.no_grad():
        torch.testing.assert_close(torch.as_tensor(found.predictions), read(Sentences(9, seed=1).ids).logits)
    assert found.metrics is not None and found.metrics["test_rows"] == 9
