"""Arguments of `transformers.Trainer` that a compiled program carries out in its own way, and those that it cannot."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
import transformers
from transformers.debug_utils import DebugOption
from transformers.trainer_pt_utils import AcceleratorConfig

from galvatron import runtime as rt
from galvatron.errors import GalvatronError

UNTOUCHED = frozenset({
    "output_dir", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs",
    "warmup_steps", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "tf32",
    "use_cache", "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node",
    "logging_nan_inf_filter", "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name",
    "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "eval_strategy",
    "eval_steps", "eval_delay", "prediction_loss_only", "eval_on_start", "eval_do_concat_batches",
    "eval_accumulation_steps", "include_for_metrics", "save_only_model", "save_strategy", "save_steps",
    "save_total_limit", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
    "hub_revision", "metric_for_best_model", "greater_is_better", "restore_callback_states_from_checkpoint",
    "full_determinism", "seed", "data_seed", "remove_unused_columns", "label_names", "length_column_name",
    "skip_memory_metrics", "do_train", "do_eval", "do_predict", "resume_from_checkpoint", "local_rank",
})  # fmt: skip
"""What `transformers.Trainer` itself does is all there is to them."""

CARRIED_OUT = frozenset({
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "max_grad_norm",
    "label_smoothing_factor", "bf16", "fp16", "torch_compile", "include_num_input_tokens_seen",
    "load_best_model_at_end", "dataloader_drop_last", "dataloader_num_workers", "dataloader_prefetch_factor",
    "ddp_timeout",
})  # fmt: skip
"""Mean what they mean there, and are done here."""

Wanted = Callable[[Any, transformers.TrainingArguments], bool]


def _set(value: Any, _: transformers.TrainingArguments) -> bool:
    return bool(value)


def _cleared(value: Any, _: transformers.TrainingArguments) -> bool:
    return not value


_DDP = "gradients are summed as the plan says; leave it out"
_PLAN = "what is sharded is of the plan: pass plan=, or leave it to the search"
_RECOMPUTE = "what is recomputed is of the plan: pass plan= with -recompute, or leave it to the search"
_WHOLE_MODEL = "evaluation computes in the types of training: leave it out"
_WORKERS = "workers are started for each epoch, and give their batches in order: leave it out"

REFUSED: Mapping[str, tuple[Wanted, str]] = {
    "optim_target_modules": (_set, "it is for optimizers that look into the model; choose another optim"),
    "average_tokens_across_devices": (
        lambda value, args: not value and args.world_size > 1,
        "the loss is that of the whole global batch; leave it True",
    ),
    "bf16_full_eval": (_set, _WHOLE_MODEL),
    "fp16_full_eval": (_set, _WHOLE_MODEL),
    "activation_checkpointing": (_set, _RECOMPUTE),
    "activation_checkpointing_kwargs": (_set, _RECOMPUTE),
    "gradient_checkpointing": (_set, _RECOMPUTE),
    "gradient_checkpointing_kwargs": (_set, _RECOMPUTE),
    "torch_compile_backend": (lambda value, _: value not in (None, "inductor"), "layers are compiled by inductor"),
    "torch_compile_mode": (_set, "layers are compiled in inductor's default mode; leave it out"),
    "use_liger_kernel": (_set, "a model is compiled as it is written; leave it out"),
    "liger_kernel_config": (_set, "a model is compiled as it is written; leave it out"),
    "neftune_noise_alpha": (_set, "hooks would change the model; add the noise in the model's forward"),
    "torch_empty_cache_steps": (_set, "leave it out, and pass memory= for a smaller budget"),
    "auto_find_batch_size": (_set, "the search keeps within memory for the batch that it is given"),
    "eval_use_gather_object": (_set, "every rank has all outputs already; leave it out"),
    "batch_eval_metrics": (_set, "compute_metrics is called once, with all predictions"),
    "save_on_each_node": (_set, "all ranks save into one directory, which all of them must share"),
    "enable_jit_checkpoint": (_set, "ranks get a signal at different steps; save more often (save_steps)"),
    "push_to_hub": (_set, "save_model, then upload the folder with huggingface_hub"),
    "ignore_data_skip": (_set, "a run goes on with its next sample, and nothing is read twice for it; leave it out"),
    "use_cpu": (
        lambda value, _: value and torch.cuda.is_available(),
        "a program runs on the GPUs that it sees: hide them (CUDA_VISIBLE_DEVICES=)",
    ),
    "accelerator_config": (
        lambda value, _: value not in (None, AcceleratorConfig()),
        "batches are formed here, not by accelerate; leave it out",
    ),
    "parallelism_config": (_set, _PLAN),
    "dataloader_pin_memory": (
        lambda value, args: not value and args.device.type == "cuda",
        "batches for a GPU are in pinned memory; leave it out",
    ),
    "dataloader_persistent_workers": (_set, _WORKERS),
    "dataloader_multiprocessing_context": (_set, _WORKERS),
    "dataloader_in_order": (_cleared, _WORKERS),
    "train_sampling_strategy": (
        lambda value, _: value == "batch_rebalance",
        "it deals batches out to data-parallel ranks, which a plan may not have; use group_by_length",
    ),
    "ddp_find_unused_parameters": (lambda value, _: value is not None, _DDP),
    "ddp_bucket_cap_mb": (lambda value, _: value is not None, _DDP),
    "ddp_broadcast_buffers": (lambda value, _: value is not None, _DDP),
    "ddp_static_graph": (lambda value, _: value is not None, _DDP),
    "ddp_backend": (lambda value, _: value is not None, "NCCL carries what is on GPUs, gloo the rest; leave it out"),
    "fsdp": (_set, _PLAN),
    "fsdp_config": (_set, _PLAN),
    "deepspeed": (_set, _PLAN),
    "debug": (
        lambda value, _: DebugOption.UNDERFLOW_OVERFLOW in value or DebugOption.TPU_METRICS_DEBUG in value,
        "pass detect_nonfinite=True to the trainer",
    ),
}
"""What cannot be done: whether a value asks for it, and what to do instead."""


@dataclass
class GalvatronArguments(transformers.TrainingArguments):
    """`transformers.TrainingArguments` for jobs of several ranks: these meet as programs need it, over NCCL and gloo,
    and so that they meet again when the launcher starts them anew (`torchrun --max-restarts`)."""

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.cuda.is_available()  # ranks without it would not count each other
        super().__post_init__()

    @cached_property
    def _setup_devices(self) -> torch.device:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            rt.initialize("cpu" if self.use_cpu else None, timeout_s=float(self.ddp_timeout))
        return super()._setup_devices


def check_arguments(args: transformers.TrainingArguments) -> None:
    """
    Raises:
        GalvatronError: an argument asks for what a compiled program does not do, or what it means is not known here.
    """
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if field.name in REFUSED:
            asks_for_it, advice = REFUSED[field.name]
            if asks_for_it(value, args):
                raise GalvatronError(f"GalvatronTrainer cannot honour {field.name}={value!r}: {advice}")
        elif field.name not in UNTOUCHED | CARRIED_OUT and _is_of_transformers(field.name) and value != field.default:
            raise GalvatronError(
                f"{field.name}={value!r} is an argument of a newer transformers, which GalvatronTrainer does not know: "
                "leave it out"
            )
    if args.include_num_input_tokens_seen == "non_padding":
        raise GalvatronError(
            "GalvatronTrainer cannot honour include_num_input_tokens_seen='non_padding': a rank sees a part of the "
            "batch; 'all' counts every token"
        )
    if args.load_best_model_at_end and args.save_only_model:
        raise GalvatronError(
            "the best model is loaded from the state of its checkpoint: leave save_only_model or "
            "load_best_model_at_end out"
        )
    if args.mixed_precision not in ("no", "bf16", "fp16"):
        raise GalvatronError(f"there is no precision {args.mixed_precision!r}: leave it out, or pass bf16 or fp16")
    if any(os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true" for name in _WRAPPERS):
        raise GalvatronError(f"accelerate was told to use FSDP, DeepSpeed or Megatron: {_PLAN}; start with torchrun")
    if args.world_size != (ranks := int(os.environ.get("WORLD_SIZE", 1))):
        raise GalvatronError(
            f"these arguments are for {args.world_size} of the {ranks} ranks of this job: pass "
            "galvatron.GalvatronArguments instead of transformers.TrainingArguments"
        )
    if args.world_size > 1 and "gloo" not in dist.get_backend_config():
        raise GalvatronError(
            "the ranks have met over NCCL alone, and a program sends things of the host as well: pass "
            "galvatron.GalvatronArguments instead of transformers.TrainingArguments"
        )


_WRAPPERS = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


def _is_of_transformers(name: str) -> bool:
    return name in transformers.TrainingArguments.__dataclass_fields__
