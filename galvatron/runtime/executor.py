"""Trains one rank's stages: the step, its gradients, its optimizer, and whole tensors in and out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from galvatron.errors import GalvatronError, PlanError
from galvatron.runtime import comm, failure, full_state, giving, updates
from galvatron.runtime.agreement import agree
from galvatron.runtime.bounds import Reading, bounds
from galvatron.runtime.comm import now
from galvatron.runtime.elementwise import Trained
from galvatron.runtime.held import HeldState
from galvatron.runtime.inputs import StageInputs, batch_size, read_batch
from galvatron.runtime.materialize import ModelState, materialize
from galvatron.runtime.metrics import Meter, StepMetrics
from galvatron.runtime.nonfinite import NonFiniteDetector
from galvatron.runtime.optimizers import OptimizerFactory, optimizer_of_rank
from galvatron.runtime.options import GroupOptions
from galvatron.runtime.parameters import Parameters
from galvatron.runtime.pieces import Piece, pieces_of
from galvatron.runtime.pipeline import Pipeline
from galvatron.runtime.recording import Recorder
from galvatron.runtime.rows import Part, Reads, Rows, RowTable, Sizes
from galvatron.runtime.run_state import RunState
from galvatron.runtime.scaling import LossScaler
from galvatron.runtime.stage import Stage, StateSpec
from galvatron.runtime.statistics import prepare, statistics
from galvatron.runtime.whole import WholeParameters, WholeUpdate
from galvatron.schedules import Schedule

Batch = Mapping[str, Tensor | int | float]
"""The tensors of a batch by name, and its numbers that change from step to step; of a `Part` those of the samples that
this rank has."""


class Executor:
    """One rank's part of the training program. Every method is collective: all ranks call it alike.

    Args:
        stages: this rank's generated stages, ascending.
        microbatches: into how many parts a batch is cut, or fewer where it or the schedule does not allow as many.
        schedule: see `galvatron.schedules`; which of "gpipe" and "1f1b" means nothing on a single stage.
        shards: what every micro-batch must divide into: the common multiple of the plan's data-parallel degrees.
        optimizer: from this rank's parameters to an optimizer; where they are slices its rule must be element-wise, or
            it says what it reads whole (`galvatron.runtime.whole`).
        check_optimizer: prove that it is (`galvatron.runtime.elementwise`).
        max_grad_norm: gradients are scaled so that their norm over the whole model is at most this.
        model: names and first values of the user's model; without it the stages' own names are used, and the stages
            have been given values before.
        seed: of all random numbers, the same on every rank.
        scaler: scales the loss of a stage in float16; steps whose gradients overflow are skipped.
        detect_nonfinite: find the first layer whose results or gradients are not finite.
        batched: the inputs that hold samples, on dim 0; None, all that have dimensions.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        microbatches: int = 1,
        schedule: str = "1f1b",
        shards: int = 1,
        optimizer: OptimizerFactory | None = None,
        check_optimizer: bool = True,
        max_grad_norm: float | None = None,
        model: ModelState | None = None,
        seed: int = 0,
        scaler: LossScaler | None = None,
        detect_nonfinite: bool = False,
        batched: Collection[str] | None = None,
    ) -> None:
        self.stages = tuple(stages)
        self.mesh = stages[0].mesh
        self.microbatches = microbatches
        self.max_grad_norm = max_grad_norm
        self.held = HeldState(stages)
        self._whole_rows: dict[int, Rows] = {}
        self._notes: dict[bool, bool] = {}
        self._outside: Tensor
        self._unreached: list[str] = []
        self._verdict: Reading | None
        self._batched = batched
        held = self.mesh.stages
        self._place = f"stage {held[0]}" if len(held) == 1 else f"stages {', '.join(map(str, held))}"
        on_loss = None if scaler is None else scaler.start
        checked = _checked(schedule, stages, microbatches)
        self._sizes = Sizes(checked, self.mesh.pipeline_degree, microbatches, shards)
        self._pipeline = Pipeline(
            stages,
            checked,
            on_loss=on_loss,
            on_backward=lambda: self._parameters.settle(),
            on_forwards=self._judge,
        )
        for stage in stages:
            stage.random.job = seed
        self.scaler = scaler
        with failure.guarded("start"):
            self._catalogue = full_state.Catalogue(self.held)
            shared = self._catalogue.shared_groups()
        self._copies = {name: len(holders) for name, holders in self._catalogue.holders.items()}
        now.stages = self.mesh.stages
        blank = [name for name in self.held.state_specs if self.held.get(name).is_meta]
        whole = self._read_whole(optimizer)
        with failure.guarded("start"):
            ties = {name: group for name, group in shared.items() if self._catalogue.entries[name].kind == "parameter"}
            self._parameters = Parameters(stages, ties)
            rule = isinstance(optimizer, WholeParameters)
            self.whole_update = WholeUpdate(whole, self._parameters, self.held) if rule else None
        self._shared_updates = updates.shared(stages, shared, self._catalogue.holders)
        # From here on nothing waits for other ranks, so that an error of one rank can be told to the others.
        self._names = full_state.ModelNames(self._catalogue, model)
        if model is not None:
            materialize(stages, model, blank, self._parameters.write, self._parameters)
        self._detector = None
        if detect_nonfinite:
            count = len(self.mesh.holders)
            self._detector = NonFiniteDetector(stages, count, self.mesh.world, backward=scaler is None)
        self._meter = Meter(self.mesh.world, [self.held.get(name) for name in self.held.state_specs])
        self.optimizer, self.options = None, None
        if optimizer is not None:
            updated = self.updated
            self.optimizer = optimizer_of_rank(
                optimizer,
                updated,
                self._trained(),
                self._parameters.slices,
                self.mesh.world.device,
                check=check_optimizer,
                whole=whole,
            )
            self.options = GroupOptions(self.optimizer, updated, self._catalogue)

    def _read_whole(self, optimizer: OptimizerFactory | None) -> frozenset[str]:
        """The parameters of the model that its optimizer's rule reads whole. Collective where it says which."""
        if not isinstance(optimizer, WholeParameters):
            return frozenset()
        entries = self._catalogue.entries.values()
        shapes = {entry.name: entry.shape for entry in entries if entry.requires_grad}
        found, error = frozenset[str](), None
        try:
            found = optimizer.of(shapes)
        except GalvatronError as wrong:
            error = wrong
        held = {f"the way in which {n!r} is read": "whole" if n in found else "in parts" for n in shapes}
        agree(self.mesh.world, "compile", error, held=held)
        return found

    @property
    def metrics(self) -> StepMetrics:
        """Figures of the last step. Not collective.

        Raises:
            GalvatronError: there was none.
        """
        return self._meter.read()

    def pending_metrics(self) -> Callable[[], StepMetrics]:
        """Reads these figures later. Not collective."""
        return self._meter.pending()

    def saving(self) -> AbstractContextManager[None]:
        """Around what holds training up for a checkpoint: see `StepMetrics.saving_s`."""
        return self._meter.saving()

    def recorder(self) -> Recorder:
        """Records steps, when it is told to. Not collective."""
        return Recorder(self.stages, self._pipeline, self._meter)

    @property
    def recent(self) -> list[StepMetrics]:
        """Figures of the last steps, but for the very first one."""
        return self._meter.recent()

    @property
    def names(self) -> frozenset[str]:
        """The parameters and buffers that the program reads, on whatever rank."""
        return frozenset(self._catalogue.entries)

    @property
    def model_names(self) -> frozenset[str]:
        """Every name that the model has for a parameter or buffer, read or not."""
        return frozenset(self._names.aliases) | self._names.unused.keys()

    def forward_backward(self, batch: Batch) -> Tensor:
        """Gradients of the loss on the global batch, without an update of what is trained.

        Args:
            batch: the whole batch, on every rank; or, as a `Part`, what this rank reads of it.

        Returns:
            The loss on the whole batch, the same float64 scalar on every rank.

        Raises:
            PlanError: the batch does not fit the plan.
            RankError: another rank failed.
            CheckError: a check of values that the model makes itself does not hold; nothing was updated.
            NonFiniteError: with `detect_nonfinite`, a result or a gradient is not finite; nothing was updated.
        """
        rows = self._rows(batch)
        with self._meter.step(self._with_samples(batch), rows.samples):
            loss, _ = self._run(batch, rows, with_norm=False)
            scale = self._scale(rows)
            if scale != 1:
                self._parameters.scale_gradients(loss.new_full((), 1 / scale))
        return loss

    def train_step(self, batch: Batch) -> Tensor:
        """`forward_backward`, clipping, and one optimizer update; returns the loss before the update.

        With a scaler, a step whose gradients overflow updates nothing that is trained.
        """
        if self.optimizer is None:
            raise GalvatronError("train_step needs an optimizer: pass `optimizer=` when compiling")
        rows = self._rows(batch)
        scale, with_norm = self._scale(rows), self.max_grad_norm is not None or self.scaler is not None
        with self._meter.step(self._with_samples(batch), rows.samples):
            loss, squared_norm = self._run(batch, rows, with_norm=with_norm)
            if self.scaler is None or self.scaler.accepts(squared_norm):
                self._meter.start_update()
                with failure.guarded("the update"):
                    self._parameters.unscale(scale, squared_norm.sqrt() / scale, self.max_grad_norm)
                    with nullcontext() if self.whole_update is None else self.whole_update.gathered(self._unreached):
                        self.optimizer.step()
                    self._parameters.publish()
        return loss

    def eval_step(self, batch: Batch) -> Tensor:
        """The loss on the global batch without dropout, by the running statistics of batch norms: forward only, nothing
        of the training changes.

        Args, result and errors are those of `forward_backward`.
        """
        loss, _ = self._evaluate(batch, give=False)
        return loss

    def outputs(self, batch: Batch, *, complete: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss as `eval_step` gives it, and by name what the model returns besides: whole, on every rank, in the
        order of the batch. Unless the batch is `complete`, the model's own checks are left out.
        """
        return self._evaluate(batch, give=True, checked=complete)

    def _evaluate(self, batch: Batch, *, give: bool, checked: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self._rows(batch)
        inputs = read_batch(self.stages, batch, rows, self.mesh.world.device)
        self._take_numbers(batch)
        with failure.guarded(self._place), torch.no_grad(), _evaluating(self.stages):
            keywords, last, _ = self._keywords(rows, inputs)
            bounds.start(checked=checked)
            giving.ask(self.stages, wanted=give)
            run = self._pipeline.run(keywords, rows.slots, rows.micro_batches, epilogue=last, backward=False)
            loss = self._share_of_loss(run, rows)
            totals = torch.cat([loss.view(1), self._outside])
            if self.mesh.world.size > 1:
                comm.all_reduce(totals, comm.all_ranks(), phase="totals").wait()
        self._check_bounds(self._verdict or Reading(totals[1:]), batch, checked=checked)
        if not give:
            return totals[0], {}
        with failure.guarded(self._place):
            return totals[0], giving.gathered(self.stages, self.mesh, rows.samples)

    def gradient_norm(self) -> Tensor:
        """The global norm of the gradients of the last step, as a float64 scalar on every rank."""
        with failure.guarded("gradient_norm"):
            total = self._parameters.squared_norm(self._copies)
            if self.mesh.world.size > 1:
                comm.all_reduce(total, comm.all_ranks(), phase="totals").wait()
            return total.sqrt()

    def full_state_dict(self, *, rank0_only: bool = False) -> dict[str, Tensor]:
        """The model's `state_dict`: whole tensors on the CPU; with `rank0_only`, empty on the other ranks."""
        persistent = {self._names.aliases[name] for name in self._names.persistent if name in self._names.aliases}
        wanted = [name for name in self._catalogue.entries if name in persistent]
        whole = self._whole(wanted, rank0_only=rank0_only)
        if rank0_only and self.mesh.world.rank != 0:
            return {}
        return {
            name: whole[self._names.aliases[name]] if name in self._names.aliases else self._names.unused[name].clone()
            for name in self._names.persistent
        }

    def whole_tensors(self, names: Iterable[str]) -> Iterator[Tensor]:
        """Whole tensors of the model's `state_dict`, in order, on the CPU of rank 0; none on the others. Each is
        gathered when it is asked for; every rank goes through them.
        """
        for name in names:
            if name in self._names.unused:
                yield from [self._names.unused[name]] if self.mesh.world.rank == 0 else []
            else:
                yield from self._whole([self._names.aliases[name]], rank0_only=True).values()

    def _whole(self, held_names: Iterable[str], *, rank0_only: bool) -> dict[str, Tensor]:
        with failure.guarded("whole tensors"):
            return dict(self._catalogue.gather(held_names, self._parameters.read, rank0_only=rank0_only))

    def full_gradients(self, *, rank0_only: bool = False) -> dict[str, Tensor]:
        """The gradients of the last step, like `full_state_dict`; parameters that the program does not use or train, or
        that nothing in the step has reached, are left out.
        """
        with failure.guarded("full_gradients"):
            whole = dict(self.gradients(rank0_only=rank0_only))
        return {name: whole[own] for name, own in self._names.aliases.items() if own in whole}

    def gradients(self, *, rank0_only: bool) -> Iterator[tuple[str, Tensor]]:
        """The same one by one, by the names that the program has for parameters: each is gathered when it is asked for,
        so every rank goes through them, if to no end."""
        unreached, pipeline = {*self._unreached}, self.mesh.pipeline
        if pipeline is not None:
            unreached.update(*comm.gather_objects(self._unreached, pipeline, phase="whole tensors"))
        trained = [entry.name for entry in self._catalogue.entries.values() if entry.requires_grad]
        wanted = [name for name in trained if name not in unreached]
        return self._catalogue.gather(wanted, self._parameters.read_gradient, rank0_only=rank0_only)

    def held_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """On rank 0 all that the program reads of the model, whole, one by one; every rank goes through them."""
        return self._catalogue.gather(self._catalogue.entries, self._parameters.read, rank0_only=True)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """After the `with` block nothing is left of `forward_backward` in it: gradients, buffers, random numbers and
        figures are what they were. Gradients wait on the host meanwhile."""
        with self._meter.undisturbed(), self._put_back():
            yield

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        steps = [(stage.random, stage.random.step) for stage in self.stages]
        buffers = [(buffer, buffer.clone()) for stage in self.stages for buffer in stage.buffers()]
        trained = self._parameters.trained.values()
        gradients = [(p, None if p.grad is None else p.grad.to("cpu", copy=True)) for p in trained]
        unreached = self._unreached
        try:
            yield
        finally:
            self._unreached = unreached
            for random, step in steps:
                random.step = step
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
                for parameter, gradient in gradients:
                    if gradient is not None and parameter.grad is not None:
                        parameter.grad.copy_(gradient)
                    else:
                        parameter.grad = None if gradient is None else gradient.to(parameter.device)

    def load_full_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Take over whole tensors under the model's names; every rank passes the same mapping.

        Raises:
            PlanError: a name is missing or unknown, or a value is no such tensor; nothing was changed then.
        """
        full_state.check(self._catalogue, self._names, values)
        full_state.load(self.held, self._parameters, self._names, values)

    def row_table(self, usual: int, unequal: str) -> RowTable:
        """Who reads which samples of batches; arguments as of `RowTable`. Collective."""
        own, world = Reads.of(self.stages), self.mesh.world
        with failure.guarded("dataloader"):
            reads = [own] if world.size == 1 else comm.gather_objects(own, comm.all_ranks(), phase="batch")
            prepare(self.stages)
        return RowTable(reads, world.rank, self._sizes, usual=usual, unequal=unequal)

    def pieces(self) -> list[Piece]:
        """What this rank has of each parameter and buffer. Not collective."""
        return list(pieces_of(self.stages, self._catalogue, self._names, self._parameters))

    def trained_pieces(self) -> list[Piece]:
        """What this rank's optimizer updates of each parameter. Not collective."""
        updates, whole = self.updated, {} if self.whole_update is None else self.whole_update.parameters
        found: list[Piece] = []
        for piece in self.pieces():
            own = updates.get(piece.held_as)
            if own is not None and piece.held_as in whole:
                assert self.whole_update is not None
                spec = StateSpec(piece.name, piece.spec.shape, own.dtype, (), "parameter")
                owned = self.whole_update.owns(piece.held_as)
                found.append(Piece(piece.name, piece.held_as, spec, own, 0, own.numel(), piece.first, updated=owned))
            elif own is not None:
                found.append(piece)
        return found

    @property
    def updated(self) -> dict[str, nn.Parameter]:
        """What the optimizer gets, by name."""
        trained = self._parameters.trained
        return trained if self.whole_update is None else self.whole_update.over(trained)

    def publish(self) -> None:
        """Values of `pieces` were written: make all copies of them equal."""
        with failure.guarded("the new values"):
            self._parameters.publish()

    def state(self) -> dict[str, Any]:
        """What `RunState.read` reads. Not collective."""
        random, scaler = self.stages[0].random, self.scaler
        scale, good_steps = (None, 0) if scaler is None else (scaler.scale, scaler.good_steps)
        return RunState(random.step, random.job, scale, good_steps).to_dict()

    def load_state(self, state: RunState) -> None:
        """Go on from there."""
        for stage in self.stages:
            stage.random.step, stage.random.job = state.step, state.seed
        if self.scaler is not None and state.loss_scale is not None:
            self.scaler.scale, self.scaler.good_steps = state.loss_scale, state.good_steps

    def check(self, batch: Batch) -> None:
        """
        Raises:
            PlanError: the batch does not fit the plan.
        """
        self._rows(batch)

    def check_full_state_dict(self, values: Any) -> None:
        """What `load_full_state_dict` raises."""
        full_state.check(self._catalogue, self._names, values)

    def _trained(self) -> dict[str, Trained]:
        """All parameters that some rank trains, in the order of the model."""
        entries = (self._catalogue.entries[name] for name in dict.fromkeys(self._names.aliases.values()))
        return {entry.name: Trained(entry.shape, entry.dtype) for entry in entries if entry.requires_grad}

    def _run(self, batch: Batch, rows: Rows, *, with_norm: bool) -> tuple[Tensor, Tensor]:
        """The loss and, when asked for, the squared norm of the gradients, which are `_scale` times the true ones."""
        inputs = read_batch(self.stages, batch, rows, self.mesh.world.device)
        self._take_numbers(batch)
        with failure.guarded(self._place):
            for stage in self.stages:
                stage.random.step += 1
            updates.forget(self.stages)
            giving.ask(self.stages, wanted=False)
            keywords, last, found = self._keywords(rows, inputs)
            self._parameters.start(rows.micro_batches)
            bounds.start()
            if self._detector is not None:
                self._detector.start()
            local_loss = self._pipeline.run(keywords, rows.slots, rows.micro_batches, epilogue=last)
            self._parameters.finish()
            if self._detector is not None:
                self._detector.finish()
            totals = self._meter.totals(
                self._share_of_loss(local_loss, rows),
                self._parameters.squared_norm(self._copies) if with_norm else None,
                self._outside,
                self._scale(rows),
            )
            if self.mesh.world.size > 1:
                comm.all_reduce(totals, comm.all_ranks(), phase="totals").wait()
        self._check_bounds(self._verdict or Reading(totals[2:4]), batch)
        # Here nothing fails any more, and a step whose gradients overflow has had a forward as well.
        with failure.guarded("the new values of state"):
            self._unreached = updates.close(self.stages, found)
            self._parameters.forget(self._unreached)
            updates.write(self.stages, self._shared_updates)
        return totals[0], totals[1]

    def _judge(self) -> None:
        """The forwards have ended: all that a batch is refused for is known, and read by a rank that is alone while the
        last backward runs."""
        self._outside = bounds.outside(self.mesh.world.device)
        self._verdict = Reading(self._outside) if self.mesh.world.size == 1 else None

    def _check_bounds(self, outside: Reading, batch: Batch, *, checked: bool = True) -> None:
        """
        Args:
            outside: `Bounds.outside`, of all ranks.

        Raises:
            PlanError: an index was outside of what is looked up, on some rank.
            CheckError: a check of the model failed, on some rank.
        """
        if checked not in self._notes:  # the same in all such steps, so that those that note nothing wait for no device
            self._notes[checked] = outside.read()[1] > 0
        if self._notes[checked] and outside.read()[0] > 0:
            tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
            agree(self.mesh.world, self._place, bounds.error(tensors, self._rows(batch).held))

    def _rows(self, batch: Batch) -> Rows:
        """Which samples of the whole batch this rank has: all, unless it says otherwise."""
        if isinstance(batch, Part):
            return batch.rows
        samples = batch_size(self._with_samples(batch))
        if samples not in self._whole_rows:
            self._whole_rows[samples] = Rows(samples, self._sizes.micro_batches(samples))
        return self._whole_rows[samples]

    def _scale(self, rows: Rows) -> float:
        """What the gradients of the running step are multiples of: by the scaler, and by samples that count often."""
        return float(rows.copies if self.scaler is None else rows.copies * self.scaler.scale)

    def _take_numbers(self, batch: Batch) -> None:
        """Gives the numbers of a batch to the stages."""
        numbers = {name: value for name, value in batch.items() if not isinstance(value, Tensor)}
        for stage in self.stages:
            stage.numbers = numbers

    def _with_samples(self, batch: Batch) -> dict[str, Tensor]:
        """The inputs that hold samples."""
        tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        return {n: v for n, v in tensors.items() if (v.dim() > 0 if self._batched is None else n in self._batched)}

    def _keywords(
        self, rows: Rows, inputs: Mapping[int, StageInputs]
    ) -> tuple[dict[int, list[dict[str, Any]]], dict[str, Any], dict[int, dict[str, Any]]]:
        """For each stage, the keyword arguments of its micro-batches, those of the epilogue, and for each stage the
        statistics of the step."""
        keywords: dict[int, list[dict[str, Any]]] = {}
        last: dict[str, Any] = {}
        each: dict[int, dict[str, Any]] = {}
        for stage in self.stages:
            stage.global_batch_size = rows.samples
            # Of what is counted once per step there is as much as of each sample.
            stage.micro_batches = rows.micro_batches if rows.copies == 1 else rows.micro_batches / rows.copies
            own = inputs[stage.index]
            each[stage.index] = found = statistics(stage, own.whole, rows)
            keywords[stage.index] = [{**microbatch, **found} for microbatch in own.microbatches]
            last = {**own.epilogue, **found}
        return keywords, last, each

    def _share_of_loss(self, local: Tensor, rows: Rows) -> Tensor:
        """What this rank adds to the loss: ranks whose loss is equal, not a term of the sum, add equal fractions."""
        terms = 1
        for axis in self.stages[-1].loss_axes:
            terms *= axis.size
        return local * (terms / (len(self.mesh.ranks) * rows.copies))


def _checked(schedule: str, stages: Sequence[Stage], microbatches: int) -> Schedule:
    """The schedule by its name.

    Raises:
        PlanError: there is no such schedule, it cannot run so many micro-batches, or it gives this rank other stages.
    """
    found, mesh = Schedule.parse(schedule), stages[0].mesh
    found.check(mesh.pipeline_degree, microbatches, epilogue=stages[0].epilogue_shards > 0)
    own = tuple(stage.index for stage in stages)
    if found.holders(mesh.pipeline_degree) != mesh.holders or own != mesh.stages:
        raise PlanError(
            f"schedule {schedule} on {mesh.pipeline_degree} pipeline ranks needs other stages than {own} of "
            f"{len(mesh.holders)} on pipeline rank {mesh.pipeline_rank}"
        )
    return found


@contextmanager
def _evaluating(stages: Sequence[Stage]) -> Iterator[None]:
    for stage in stages:
        stage.training = stage.random.training = False
    try:
        yield
    finally:
        for stage in stages:
            stage.training = stage.random.training = True
