"""Trains one rank's stage: the step, its gradients, its optimizer, and whole tensors in and out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from galvatron.errors import GalvatronError, PlanError
from galvatron.runtime import failure, full_state
from galvatron.runtime.activity import communicating, now
from galvatron.runtime.clock import clock_of
from galvatron.runtime.communication import phase
from galvatron.runtime.inputs import read_batch
from galvatron.runtime.materialize import ModelState, materialize
from galvatron.runtime.parameters import Parameters
from galvatron.runtime.pipeline import Pipeline, ScheduleName
from galvatron.runtime.scaling import LossScaler
from galvatron.runtime.stage import Stage

OptimizerFactory = Callable[[list[Any]], torch.optim.Optimizer]
"""From this rank's parameters, or from (name, parameter) pairs where the argument is called `named_parameters`."""


class Executor:
    """One rank's part of the training program. Every method is collective: all ranks call it alike.

    Args:
        stage: this rank's generated stage.
        microbatches: into how many parts the batch is cut.
        schedule: "gpipe" or "1f1b"; means nothing on a single stage.
        optimizer: from this rank's parameters to an optimizer; it updates slices, so its rule must be element-wise.
        max_grad_norm: gradients are scaled so that their norm over the whole model is at most this.
        model: names and first values of the user's model; without it the stages' own names are used, and the stage has
            been given values before.
        seed: of all random numbers, the same on every rank.
        scaler: scales the loss of a stage in float16; steps whose gradients overflow are skipped.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        microbatches: int = 1,
        schedule: ScheduleName = "1f1b",
        optimizer: OptimizerFactory | None = None,
        max_grad_norm: float | None = None,
        model: ModelState | None = None,
        seed: int = 0,
        scaler: LossScaler | None = None,
    ) -> None:
        if microbatches < 1 or schedule not in ("gpipe", "1f1b"):
            raise PlanError(f"{microbatches} micro-batches under schedule {schedule!r}: need at least 1, gpipe or 1f1b")
        self.stage = stage
        self.stage.random.job = seed
        self.mesh = stage.mesh
        self.microbatches = microbatches
        self.max_grad_norm = max_grad_norm
        self.scaler = scaler
        if scaler is not None and stage.index == stage.count - 1:
            stage.register_forward_hook(lambda *call: scaler.start(call[2]))
        with failure.guarded("start"):
            self._catalogue = full_state.Catalogue(stage)
            self._names = full_state.Names(self._catalogue, model)
            ties = self._catalogue.tie_groups()
        self._copies = {name: len(stages) for name, stages in self._catalogue.holders.items()}
        now.stages = (stage.index,)
        now.clock = clock_of(self.mesh.world.device)
        self._pipeline = Pipeline(stage, microbatches, schedule)
        blank = [name for name in stage.state_specs if stage.table(name)[name].is_meta]
        with failure.guarded("start"):
            self._parameters = Parameters([stage], ties, microbatches)
            if model is not None:
                materialize(stage, model, blank, self._parameters.write)
        self.optimizer = None if optimizer is None else _optimizer(optimizer, self._parameters.trained)

    def forward_backward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Gradients of the loss on the global batch, without an update.

        Args:
            batch: the whole batch, on every rank.

        Returns:
            The loss on the whole batch, the same float64 scalar on every rank.

        Raises:
            PlanError: the batch does not fit the plan.
            RankError: another rank failed.
        """
        loss, _ = self._run(batch, with_norm=False)
        if self.scaler is not None:
            self._parameters.scale_gradients(loss.new_tensor(1 / self.scaler.scale))
        return loss

    def train_step(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`forward_backward`, clipping, and one optimizer update; returns the loss before the update.

        With a scaler, a step whose gradients overflow updates nothing.
        """
        if self.optimizer is None:
            raise GalvatronError("train_step needs an optimizer: pass `optimizer=` when compiling")
        scale = 1.0 if self.scaler is None else self.scaler.scale
        loss, squared_norm = self._run(batch, with_norm=self.max_grad_norm is not None or self.scaler is not None)
        if self.scaler is not None and not self.scaler.accepts(squared_norm):
            return loss
        self._parameters.unscale(scale, squared_norm.sqrt() / scale, self.max_grad_norm)
        self.optimizer.step()
        self._parameters.publish()
        return loss

    def gradient_norm(self) -> Tensor:
        """The global norm of the gradients of the last step, as a float64 scalar on every rank."""
        with self._guarded("gradient_norm"):
            total = self._parameters.squared_norm(self._copies)
            if self.mesh.world.size > 1:
                with phase("totals"), communicating("all_reduce", dist.group.WORLD, total):
                    dist.all_reduce(total)
            return total.sqrt()

    def full_state_dict(self, *, rank0_only: bool = False) -> dict[str, Tensor]:
        """The model's `state_dict`: whole tensors on the CPU; with `rank0_only`, empty on the other ranks."""
        with self._guarded("full_state_dict"):
            persistent = {self._names.aliases[name] for name in self._names.persistent if name in self._names.aliases}
            wanted = [name for name in self._catalogue.entries if name in persistent]
            whole = self._catalogue.gather(wanted, self._parameters.read, rank0_only=rank0_only)
        if rank0_only and self.mesh.world.rank != 0:
            return {}
        return {
            name: whole[self._names.aliases[name]] if name in self._names.aliases else self._names.unused[name]
            for name in self._names.persistent
        }

    def full_gradients(self, *, rank0_only: bool = False) -> dict[str, Tensor]:
        """The gradients of the last step, like `full_state_dict`; parameters that the program does not use or train are
        left out.
        """
        with self._guarded("full_gradients"):
            entries = self._catalogue.entries.values()
            wanted = [entry.name for entry in entries if entry.requires_grad]
            whole = self._catalogue.gather(wanted, self._parameters.read_gradient, rank0_only=rank0_only)
        return {name: whole[own] for name, own in self._names.aliases.items() if own in whole}

    def load_full_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Take over whole tensors under the model's names; every rank passes the same mapping.

        Raises:
            PlanError: a name is missing or unknown, or a shape differs; nothing was changed then.
        """
        full_state.load(self.stage, self._parameters, self._names, values)

    def _run(self, batch: Mapping[str, Tensor], *, with_norm: bool) -> tuple[Tensor, Tensor]:
        """The loss and, when asked for, the squared gradient norm."""
        inputs = read_batch(self.stage, batch, self.microbatches, self.mesh.world.device)
        with self._guarded(f"stage {self.mesh.stage}"):
            self.stage.global_batch_size = inputs.samples
            self.stage.random.step += 1
            self._parameters.start()
            statistics = self._statistics(inputs.whole)
            keywords = [{**own, **statistics} for own in inputs.microbatches]
            local_loss = self._pipeline.run(keywords, inputs.samples)
            self._parameters.finish()
            totals = torch.stack([self._share_of_loss(local_loss), local_loss.new_zeros(())])
            if with_norm:
                totals[1] = self._parameters.squared_norm(self._copies)
            if self.mesh.world.size > 1:
                with phase("totals"), communicating("all_reduce", dist.group.WORLD, totals):
                    dist.all_reduce(totals)
        return totals[0], totals[1]

    def _statistics(self, whole: dict[str, Tensor]) -> dict[str, Any]:
        step = getattr(self.stage, "step", None)
        if step is None:
            return {}
        with torch.no_grad():
            return step(**whole)

    def _share_of_loss(self, local: Tensor) -> Tensor:
        """What this rank adds to the loss: ranks whose loss is equal, not a term of the sum, add equal fractions."""
        terms = 1
        for axis in self.stage.loss_axes:
            terms *= axis.size
        return local * (terms / len(self.mesh.ranks))

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        with failure.guarded(what):
            try:
                yield
            except RuntimeError as error:
                root = _root_cause(error)
                if root is error:
                    raise
                raise root from None


def _optimizer(factory: OptimizerFactory, trained: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a rank. One that has nothing to train gets an empty tensor: its learning rate still counts."""
    named = list(trained.items()) or [("", nn.Parameter(torch.empty(0)))]
    try:
        wants_names = "named_parameters" in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a callable that does not tell
        wants_names = False
    return factory(named if wants_names else [parameter for _, parameter in named])


def _root_cause(error: BaseException) -> BaseException:
    """The error inside the wrappers that `torch.distributed.pipelining` puts around what a stage raises."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error
