"""`GalvatronTrainer`: `transformers.Trainer` around a compiled program (`docs/trainer.md`)."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from galvatron.compiled import CompiledModel
from galvatron.data.options import is_stream
from galvatron.errors import GalvatronError
from galvatron.runtime import Part
from galvatron.runtime.optimizers import OptimizerFactory
from galvatron.trainer.accelerator import BatchLoss, ProgramAccelerator, Stepped
from galvatron.trainer.arguments import check_arguments
from galvatron.trainer.checkpoints import STATE, is_complete, last_checkpoint, put_beside
from galvatron.trainer.loading import IDLE, Loaded, Source, StreamedTurns, Turns, loader_of
from galvatron.trainer.predictions import predictions
from galvatron.trainer.program import Schedule, check_data, check_optimizers, check_options, compiled_for


class GalvatronTrainer(transformers.Trainer):
    """Trains a model as `transformers.Trainer` does, on one compiled program over all ranks.

    Args:
        model, args, data_collator, train_dataset, eval_dataset, processing_class, compute_loss_func, compute_metrics,
        callbacks, optimizer_cls_and_kwargs, preprocess_logits_for_metrics: see `transformers.Trainer`. The model may be
            on `meta`.
        optimizers: a function that makes the optimizer (see `galvatron.compile`) and one that makes a scheduler from an
            optimizer; None, what `args` say.
        whole_batches: every rank loads all samples of a batch, for a collator whose rows depend on each other, such as
            one that pads to the longest.
        options: of `galvatron.compile`: `plan`, `memory`, `weights`, `dynamic` and so on.

    Attributes:
        compiled: the compiled program, from the first call that needs it on.

    Raises:
        GalvatronError: an argument asks for what cannot be done; it says what to do instead.
    """

    _CALLED_BY_NOBODY: ClassVar[Mapping[str, str]] = {
        "compute_loss": "pass compute_loss_func=",
        "create_optimizer": "pass optimizers= or optimizer_cls_and_kwargs=",
        "create_optimizer_and_scheduler": "pass optimizers=",
        "get_train_dataloader": "pass train_dataset= and data_collator=",
        "get_eval_dataloader": "pass eval_dataset= and data_collator=",
        "get_test_dataloader": "pass data_collator=",
        "get_batch_samples": "pass data_collator=",
        "_prepare_inputs": "pass data_collator=",
        "compute_loss_context_manager": "pass compute_loss_func=",
        "autocast_smart_context_manager": "pass bf16=True or fp16=True",
    }
    """Methods that a program does not come by, and what there is instead."""

    model: Any  # of whatever class

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, advice in cls._CALLED_BY_NOBODY.items():
            if getattr(cls, name) is not getattr(GalvatronTrainer, name):
                raise GalvatronError(f"{cls.__name__}.{name} would not be called by a compiled program: {advice}")

    def __init__(
        self,
        model: nn.Module | None = None,
        args: transformers.TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Any = None,
        compute_loss_func: Callable[..., Tensor] | None = None,
        compute_metrics: Callable[..., dict[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[OptimizerFactory | None, Schedule | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        whole_batches: bool = False,
        **options: Any,
    ) -> None:
        if model_init is not None or model is None:
            raise GalvatronError("a program is compiled once: pass model=, not model_init=")
        check_options(options)
        check_optimizers(optimizers)
        if optimizers[0] is not None and optimizer_cls_and_kwargs is not None:
            raise GalvatronError("pass either optimizers= or optimizer_cls_and_kwargs=, not both")
        self._build, self._schedule = optimizers
        self._whole_batches, self._options = whole_batches, options
        check_data(train_dataset, eval_dataset)
        self._turns: Turns | StreamedTurns | None = None
        self._loaders: dict[tuple[str, int], Loaded] = {}
        super().__init__(
            model=model,  # type: ignore[arg-type]  # of whatever class
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )

    def create_accelerator_and_postprocess(self) -> None:
        """In place of `accelerate`'s own, which would wrap the model."""
        check_arguments(self.args)
        self.args._n_gpu = min(self.args.n_gpu, 1)  # those of other ranks may be seen
        self.accelerator = ProgramAccelerator(lambda: self.compiled)
        self.gather_function = self.accelerator.gather_for_metrics
        self.is_deepspeed_enabled = self.is_fsdp_enabled = False

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """It stays where it is: a program has values of its own."""

    # ---- The program ----

    @cached_property
    def compiled(self) -> CompiledModel:
        """The program for batches of the training set, else for those of the evaluation. Collective at first."""
        return compiled_for(self, self._build, self._options)

    @property
    def samples_of_a_step(self) -> int:
        """Those of a global batch."""
        return self.get_total_train_batch_size(self.args)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """That of the program, for schedulers and callbacks."""
        self.optimizer = Stepped(self.compiled.optimizer, device_placement=False)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The one that was asked for, else that of the arguments."""
        if self._schedule is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = self._schedule(self.optimizer if optimizer is None else optimizer)
        return self.lr_scheduler

    # ---- Data ----

    def with_used_columns(self, dataset: Any, description: str) -> tuple[Any, Callable[[Any], Any]]:
        """A data set and a collator without what forward does not take."""
        datasets = sys.modules.get("datasets")  # else this is none of its data sets
        if datasets is not None and isinstance(dataset, datasets.Dataset):
            return self._remove_unused_columns(dataset, description=description), self.data_collator
        return dataset, self._get_collator_with_removed_columns(self.data_collator, description=description)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Any] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader[Any]:
        accumulated = self.args.gradient_accumulation_steps if is_training else 1
        samples = batch_size * self.args.world_size
        key = description, id(dataset)
        if key not in self._loaders:
            used, collate = self.with_used_columns(dataset, description)
            sampler = None if sampler_fn is None or is_stream(used) else sampler_fn(used)
            source = Source(dataset, used, collate, sampler, samples, accumulated)
            name = "train" if is_training else f"{description.lower()} {len(self._loaders)}"
            # Metrics need the labels of all samples on every rank, as the outputs are.
            whole = self._whole_batches or (not is_training and bool(self.compiled.program.outputs))
            self._loaders[key] = Loaded.of(self.compiled, source, self.args, name, whole_batches=whole)
        turns = self._loaders[key].turns(anew=is_training)
        if is_training:
            self._turns = turns
        return loader_of(turns)

    # ---- Steps ----

    def training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """A step on a global batch, with its update; nothing in the turns before it.

        Returns:
            The loss on the whole batch.
        """
        if inputs is IDLE:
            return torch.zeros((), device=self.args.device)
        model.train()
        return self.compiled.train_step(inputs).to(self.args.device)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        """A step counts what its loss is a mean over."""

    def _track_num_input_tokens(self, inputs: Mapping[str, Any]) -> None:
        if self.args.include_num_input_tokens_seen != "no" and isinstance(inputs, Part):
            self.state.num_input_tokens_seen += self._elements(inputs)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> float:
        """This rank's share of those of a step, as `Trainer` counts them."""
        if not isinstance(inputs, Part) or not hasattr(self.model, "num_parameters"):
            return 0
        parameters = self.model.num_parameters(exclude_embeddings=True)
        return 6 * self._elements(inputs) * parameters / self.args.world_size

    def _elements(self, part: Part) -> int:
        """Of the main input of a global batch; none of one that could not be loaded, which the step tells."""
        if part.error is not None:
            return 0
        main = part.get(getattr(self.model, "main_input_name", "input_ids"))
        return 0 if main is None else part.samples * math.prod(main.shape[1:])

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """The loss of a global batch, and unless it alone is wanted, what the model returns besides and the labels."""
        assert isinstance(inputs, Part)
        self.accelerator.evaluates(inputs.samples)
        if inputs.error is not None:
            self.compiled.eval_step(inputs)  # which tells the other ranks, and raises
        labels = [inputs.get(name) for name in self.label_names]
        has_labels = all(label is not None for label in labels) if labels else self.can_return_loss
        if prediction_loss_only:
            return (BatchLoss.of(self.compiled.eval_step(inputs), inputs.samples) if has_labels else None), None, None
        found = predictions(self.compiled, inputs, with_loss=has_labels)
        usual = getattr(getattr(self.model, "config", None), "keys_to_ignore_at_inference", ())
        ignored = usual if ignore_keys is None else ignore_keys
        logits = tuple(value for name, value in found.items() if name not in ignored)
        given = tuple(labels) if has_labels else None
        loss = None if found.loss is None else BatchLoss.of(found.loss, inputs.samples)
        return loss, _only(logits), None if given is None else _only(given)

    def evaluation_loop(self, dataloader: DataLoader[Any], *arguments: Any, **options: Any) -> EvalLoopOutput:
        """See `transformers.Trainer.evaluation_loop`: of data that do not say how many they are, this counts the
        samples of all ranks."""
        begun = self.accelerator.evaluated_in_all
        found = super().evaluation_loop(dataloader, *arguments, **options)
        return found._replace(num_samples=self.accelerator.evaluated_in_all - begun)

    # ---- Checkpoints ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """See `transformers.Trainer.train`. The model has its trained values afterwards, unless it is on `meta`."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self._folder)
            if resume_from_checkpoint is None:
                raise GalvatronError(f"there is no checkpoint to go on from in {self.args.output_dir}")
        if isinstance(resume_from_checkpoint, str) and not is_complete(Path(resume_from_checkpoint)):
            raise GalvatronError(
                f"{resume_from_checkpoint} is no checkpoint that GalvatronTrainer can go on from: it has no state of a "
                "program (save_only_model?), or was not finished"
            )
        result = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._give_values_back()
        return result

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def _give_values_back(self) -> None:
        state = self.model.state_dict()
        if any(value.is_meta for value in state.values()):
            return
        for name, value in self.compiled.full_state_dict().items():
            state[name].data.copy_(value)  # not in sight of the program, which has these values

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if state_dict is not None:
            raise GalvatronError("a program saves its own values: leave state_dict out")
        folder = self._folder if output_dir is None else Path(output_dir)
        exported = folder / ".exported"
        if self.args.should_save:
            shutil.rmtree(exported, ignore_errors=True)
        self.compiled.export(exported)
        if not self.args.should_save:
            return
        put_beside(exported, folder)
        processing = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if processing is not None:
            processing.save_pretrained(folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = self._folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():  # of a run that was killed, or of another one
            shutil.rmtree(folder)
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.lr_scheduler is not None
        extra = {"scheduler": self.lr_scheduler.state_dict(), "samples of a step": self.samples_of_a_step}
        self.compiled.save(Path(output_dir) / STATE, step=self.state.global_step, extra=extra)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.lr_scheduler is not None
        found = self.compiled.load(Path(checkpoint) / STATE)
        saved, own = found.extra.get("samples of a step"), self.samples_of_a_step
        if saved != own:
            raise GalvatronError(
                f"{checkpoint} is of a run with {saved} samples in a step, and this one has {own}: choose "
                f"per_device_train_batch_size x ranks x gradient_accumulation_steps = {saved}"
            )
        self.lr_scheduler.load_state_dict(found.extra["scheduler"])
        if isinstance(self._turns, StreamedTurns):
            self._turns.goes_on(found.step)

    def _load_best_model(self) -> None:
        self.compiled.load(Path(str(self.state.best_model_checkpoint)) / STATE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Values are loaded with the optimizer's state, once the program is there."""

    def _save_rng_state(self, output_dir: str) -> None:
        """Random numbers are of the program and its loaders, which save their own."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """See `_save_rng_state`."""

    def hyperparameter_search(self, *_: Any, **options: Any) -> Any:
        """
        Raises:
            GalvatronError: always.
        """
        raise GalvatronError("a program is compiled once: make a trainer for each choice of hyperparameters")


def _only(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else values
