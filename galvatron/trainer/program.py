"""From what `transformers.Trainer` is given to `galvatron.compile`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_optimizer import is_optimizer_factory

from galvatron import api
from galvatron.data.fetching import randomness_kept
from galvatron.data.options import is_stream, length_of
from galvatron.errors import GalvatronError, did_you_mean
from galvatron.ir.documents import shown
from galvatron.runtime.optimizers import OptimizerFactory

if TYPE_CHECKING:
    from galvatron.trainer.trainer import GalvatronTrainer

Schedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]

OF_THE_ARGUMENTS = frozenset({"optimizer", "precision", "max_grad_norm", "loss_fn", "inductor", "timeout_s"})
"""Options of `galvatron.compile` that follow from what `Trainer` is given."""

OPTIONS = frozenset(inspect.signature(api.compile).parameters) - OF_THE_ARGUMENTS - {"model", "example_inputs"}


def check_options(options: Mapping[str, Any]) -> None:
    """
    Raises:
        GalvatronError: these are no options of `galvatron.compile` for a trainer.
    """
    for name in options:
        if name in OF_THE_ARGUMENTS:
            raise GalvatronError(f"{name} follows from the arguments of the trainer: leave it out")
        if name not in OPTIONS:
            raise GalvatronError(f"GalvatronTrainer has no argument {name!r}; {did_you_mean(name, OPTIONS)}")


def check_optimizers(optimizers: Any) -> None:
    """
    Raises:
        GalvatronError: this is no pair of functions, each of which may be None.
    """
    if not isinstance(optimizers, (tuple, list)) or len(optimizers) != 2:
        raise GalvatronError("optimizers is a pair: what makes the optimizer, and what makes its scheduler")
    ready = torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler
    made = [value for value in optimizers if isinstance(value, ready)]
    if made:
        raise GalvatronError(
            f"a rank trains parameters of its own, which {type(made[0]).__name__} does not have: pass functions, as in "
            "optimizers=(lambda parameters: torch.optim.AdamW(parameters), lambda optimizer: LambdaLR(optimizer, ...)),"
            " or optimizer_cls_and_kwargs=(torch.optim.AdamW, {...})"
        )
    for value in optimizers:
        if value is not None and not callable(value):
            raise GalvatronError(f"optimizers has {shown(value)}, which is no function")


def check_data(*datasets: Any) -> None:
    """
    Args:
        datasets: each one, several by their names, or None.

    Raises:
        GalvatronError: one has no samples.
    """
    for one in datasets:
        for dataset in one.values() if isinstance(one, dict) else [one]:
            if length_of(dataset) == 0:
                raise GalvatronError("a data set is empty: leave it out")


def compiled_for(
    trainer: GalvatronTrainer, optimizer: OptimizerFactory | None, options: Mapping[str, Any]
) -> api.CompiledModel:
    """The program for batches of the training set, else for those of the evaluation. Collective.

    Args:
        optimizer: makes it; None, what the arguments say.
        options: of `galvatron.compile`.
    """
    args = trainer.args
    has_own_loss = trainer.label_smoother is not None or trainer.compute_loss_func is not None
    build = partial(optimizer_of, trainer) if optimizer is None else optimizer
    trainer.model.train()
    return api.compile(
        trainer.model,
        example(trainer),
        loss_fn=partial(loss_of, trainer) if has_own_loss else None,
        precision=None if args.mixed_precision == "no" else args.mixed_precision,
        optimizer=None if trainer.train_dataset is None else build,
        max_grad_norm=args.max_grad_norm if args.max_grad_norm > 0 else float("inf"),  # the norm is logged
        inductor=args.torch_compile,
        timeout_s=float(args.ddp_timeout),
        **{"outputs": [] if trainer.compute_metrics is None else ["logits"], **options},
    )


def example(trainer: GalvatronTrainer) -> dict[str, Any]:
    """The first samples of a data set as a batch."""
    dataset, samples = trainer.train_dataset, trainer.samples_of_a_step
    if dataset is None:
        dataset, samples = trainer.eval_dataset, trainer.args.eval_batch_size * trainer.args.world_size
        dataset = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
    if dataset is None:
        raise GalvatronError("a model is compiled for a batch: pass train_dataset= or eval_dataset=")
    dataset, collate = trainer.with_used_columns(dataset, "example")
    with randomness_kept():
        if is_stream(dataset):
            stream = iter(dataset)
            if stream is dataset:
                raise GalvatronError(
                    "the data set can be read once only (its __iter__ gives itself): make one that begins anew with "
                    "each iter()"
                )
            return dict(collate(list(islice(stream, samples))))
        return dict(collate([dataset[at % len(dataset)] for at in range(samples)]))


def loss_of(trainer: GalvatronTrainer, output: Any, batch: Mapping[str, Any]) -> Tensor:
    """The loss that `Trainer` computes of what a model returns, on a whole batch."""
    labels = batch["labels"]
    if trainer.compute_loss_func is not None:
        targets = labels[..., 1:] if trainer._loss_shifts_labels else labels
        return trainer.compute_loss_func(output, labels, num_items_in_batch=targets.ne(-100).sum())
    assert trainer.label_smoother is not None
    if _is_decoder(trainer.model):
        return trainer.label_smoother(output, labels, shift_labels=True)
    return trainer.label_smoother(output, labels)


def _is_decoder(model: Any) -> bool:
    """Whether `Trainer` smooths labels of a model that are shifted against its outputs; around adapters that is asked
    of the model inside."""
    inside = model.base_model.model if hasattr(model, "peft_config") else model
    return type(inside).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def optimizer_of(
    trainer: GalvatronTrainer, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> torch.optim.Optimizer:
    """The optimizer of the arguments over parameters of a rank, in the two groups of `Trainer`: with and without weight
    decay.

    Raises:
        GalvatronError: it is one that is built over the model.
    """
    args = trainer.args
    kind, options = trainer.optimizer_cls_and_kwargs or trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
    if is_optimizer_factory(kind) or {"params", "model", "optimizer_dict"} & options.keys():
        raise GalvatronError(
            f"GalvatronTrainer cannot honour optim={str(args.optim)!r}: it is built over the whole model, of which a "
            "rank has a part; choose another one, or pass optimizers=(function, None)"
        )
    decaying = set(trainer.get_decay_parameter_names(trainer.model))
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named_parameters:
        groups[name in decaying].append(parameter)
    return kind(
        [
            {"params": groups[True], "weight_decay": args.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        **options,
    )
