"""Every argument of `Trainer` is carried out or refused by name."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from galvatron import GalvatronArguments, GalvatronTrainer
from galvatron.errors import GalvatronError
from galvatron.trainer.accelerator import BatchLoss, ProgramAccelerator
from galvatron.trainer.arguments import CARRIED_OUT, REFUSED, UNTOUCHED, check_arguments
from galvatron.trainer.checkpoints import put_beside
from galvatron.trainer.program import _is_decoder
from tests.trainer.small import Sentences, arguments, new_model

DOCUMENT = Path(__file__).parents[2] / "docs" / "trainer.md"

ASKED: dict[str, Any] = {
    "optim_target_modules": ["q_proj"],
    "bf16_full_eval": True,
    "fp16_full_eval": True,
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"every_n_layers": 2},
    "torch_compile_backend": "eager",
    "torch_compile_mode": "max-autotune",
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "neftune_noise_alpha": 5.0,
    "torch_empty_cache_steps": 3,
    "auto_find_batch_size": True,
    "eval_use_gather_object": True,
    "batch_eval_metrics": True,
    "save_on_each_node": True,
    "enable_jit_checkpoint": True,
    "push_to_hub": True,
    "ignore_data_skip": True,
    "accelerator_config": {"split_batches": True},
    "dataloader_persistent_workers": True,
    "dataloader_multiprocessing_context": "spawn",
    "dataloader_in_order": False,
    "train_sampling_strategy": "batch_rebalance",
    "ddp_find_unused_parameters": False,
    "ddp_bucket_cap_mb": 25,
    "ddp_broadcast_buffers": False,
    "ddp_static_graph": True,
    "debug": "underflow_overflow",
}
"""Of the arguments that are refused, values that a machine without accelerators takes."""


def test_every_argument_is_known_and_documented() -> None:
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert names == UNTOUCHED | CARRIED_OUT | REFUSED.keys()
    assert len(names) == len(UNTOUCHED) + len(CARRIED_OUT) + len(REFUSED)
    text = DOCUMENT.read_text()
    for name in sorted(CARRIED_OUT | REFUSED.keys()):
        assert re.search(rf"`{name}\b", text), name


@pytest.mark.parametrize("name", ASKED)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path: Path, name: str) -> None:
    asked = arguments(TrainingArguments, tmp_path, 1, **{name: ASKED[name]})
    with pytest.raises(GalvatronError, match=f"cannot honour {name}="):
        check_arguments(asked)


def test_arguments_of_one_process_are_refused_in_a_job_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = arguments(TrainingArguments, tmp_path, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(GalvatronError, match="for 1 of the 2 ranks of this job: pass galvatron.GalvatronArguments"):
        check_arguments(own)


@dataclasses.dataclass
class Newer(TrainingArguments):
    """Of a transformers that is still to come."""

    shrink_the_model: bool = False


def test_an_argument_of_a_newer_transformers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = arguments(Newer, tmp_path, 1, shrink_the_model=True)
    check_arguments(own)  # it is the user's
    monkeypatch.setitem(
        TrainingArguments.__dataclass_fields__, "shrink_the_model", Newer.__dataclass_fields__["shrink_the_model"]
    )
    check_arguments(arguments(Newer, tmp_path, 1))
    with pytest.raises(GalvatronError, match="shrink_the_model=True is an argument of a newer transformers"):
        check_arguments(own)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"args": {"include_num_input_tokens_seen": "non_padding"}}, "include_num_input_tokens_seen='non_padding'"),
    ({"args": {"save_only_model": True, "load_best_model_at_end": True, "save_strategy": "steps"}}, "the best model"),
    ({"model": None}, "pass model=, not model_init="),
    ({"plam": "dp1"}, "no argument 'plam'; did you mean 'plan'"),
    ({"precision": "bf16"}, "precision follows from the arguments"),
    ({"optimizers": torch.optim.SGD}, "optimizers is a pair"),
    ({"optimizers": (torch.optim.SGD([torch.zeros(1)]), None)}, "which SGD does not have: pass functions"),
    ({"optimizers": ("adamw", None)}, "'adamw', which is no function"),
    (
        {"optimizers": (torch.optim.SGD, None), "optimizer_cls_and_kwargs": (torch.optim.SGD, {})},
        "pass either optimizers= or optimizer_cls_and_kwargs=",
    ),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_wrong_calls(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    own: dict[str, Any] = {"eval_steps": 500, **given.get("args", {})}
    whole: dict[str, Any] = {"model": new_model(), "train_dataset": Sentences(8), "eval_dataset": Sentences(8)}
    whole |= given | {"args": arguments(GalvatronArguments, tmp_path, 1, **own)}
    with pytest.raises(GalvatronError, match=message):
        GalvatronTrainer(**whole)


def test_methods_that_would_not_be_called_cannot_be_overridden() -> None:
    with pytest.raises(GalvatronError, match="Own.compute_loss would not be called .* pass compute_loss_func="):
        type("Own", (GalvatronTrainer,), {"compute_loss": None})


def test_nor_can_they_by_a_class_beside() -> None:
    mixin = type("Mixin", (), {"compute_loss": None})
    with pytest.raises(GalvatronError, match="Own.compute_loss would not be called"):
        type("Own", (mixin, GalvatronTrainer), {})


def test_schedulers_may_be_classes(tmp_path: Path) -> None:
    args = arguments(GalvatronArguments, tmp_path, 1, eval_steps=500)
    schedule = torch.optim.lr_scheduler.ConstantLR
    GalvatronTrainer(
        new_model(), args, train_dataset=Sentences(8), eval_dataset=Sentences(8), optimizers=(None, schedule)
    )


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_labels_of_decoders_are_shifted_where_they_are_smoothed(name: str) -> None:
    model = type(name, (nn.Module,), {})()
    assert _is_decoder(model) and not _is_decoder(nn.Linear(2, 2))


def test_a_model_takes_the_place_of_a_model_alone(tmp_path: Path) -> None:
    folder, exported = tmp_path / "out", tmp_path / "exported"
    for where, names in (
        (folder, ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "own.safetensors"]),
        (exported, ["model.safetensors", "config.json"]),
    ):
        where.mkdir()
        for name in names:
            (where / name).touch()
    put_beside(exported, folder)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "own.safetensors"}
    exported.mkdir()
    (exported / "adapter_model.safetensors").touch()
    put_beside(exported, folder)
    assert (folder / "model.safetensors").exists(), "an adapter lies beside its base"


def test_only_the_loss_is_spread_over_samples() -> None:
    accelerator = ProgramAccelerator(lambda: None)  # type: ignore[arg-type,return-value]  # is not asked
    accelerator.evaluates(3)
    losses = BatchLoss.of(torch.tensor(2.0), 3).repeat(8)
    assert accelerator.gather_for_metrics(losses).tolist() == [2, 2, 2]
    assert accelerator.gather_for_metrics(torch.arange(3)).tolist() == [0, 1, 2]
    with pytest.raises(GalvatronError, match="has 6 rows, and the batch 3 samples"):
        accelerator.gather_for_metrics(torch.ones(6))
