"""`CompiledModel`: what `galvatron.compile` hands over."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from galvatron import checkpoints, data, evaluation, weights
from galvatron.batches import BatchLike, BatchReader
from galvatron.drift import ModelWatch
from galvatron.errors import GalvatronError, PlanError
from galvatron.facts import content_of, described, digest_of_values
from galvatron.ir.cluster import Cluster
from galvatron.ir.device import Device
from galvatron.ir.files import check_path, write_text
from galvatron.ir.micro_batches import why_not_repeated
from galvatron.ir.needed import inputs_of
from galvatron.ir.plan import Plan
from galvatron.ir.program import Program
from galvatron.ir.text import print_program
from galvatron.machine.products import best_flop_per_s
from galvatron.outputs import ModelOutputs
from galvatron.plain import on_device, plain_torch
from galvatron.runtime import Calls, Executor, Part, RunState, StepMetrics, World, averaging
from galvatron.runtime.bounds import OutsideError

if TYPE_CHECKING:
    from galvatron.calibration.accuracy import Accuracy
    from galvatron.debugging.differences import Comparison
    from galvatron.ir.capture import LossFunction
    from galvatron.timelines.profiling import Profiled


class CompiledModel:
    """A distributed training program, seen from one rank.

    Every method is collective: all ranks call it with equal arguments. Names of parameters are those of the model that
    was compiled; a tied parameter appears under each of its names.

    Attributes:
        plan: how the program is parallelised.
        program: the planned program that all ranks lowered to code.
        sources: the generated Python text by stage.
    """

    def __init__(
        self,
        executor: Executor,
        program: Program,
        sources: Mapping[int, str],
        inputs: BatchReader,
        watch: ModelWatch,
        world: World,
        form: weights.ModelForm,
        *,
        device: Device | None = None,
        cluster: Cluster | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        loss_fn: LossFunction | None = None,
    ) -> None:
        """
        Args:
            form: what the model looks like in files.
            device: of the cluster that the plan is for; None, nobody said.
            cluster: what the job runs on; None, what the profile of it says that is kept, in `cache_dir`.
            loss_fn: what makes a loss of what the model returns, if it returns none.
        """
        self.plan: Plan = program.required_plan
        self.program = program
        self.sources = dict(sources)
        self._executor = executor
        self._inputs = inputs
        self._watch = watch
        self._world = world
        self._form, self._device = form, device
        self._cluster, self._cache_dir, self._loss_fn = cluster, cache_dir, loss_fn
        self._saver = checkpoints.Saver(world, executor)
        self._calls = Calls(world, executor.options)
        self._calls.check("compile", None, {}, updates=True)
        self._loaders = data.Loaders()
        self._content_compared = False

    def train_step(self, batch: BatchLike) -> Tensor:
        """One optimizer step on a global batch.

        Args:
            batch: what a `dataloader` gives; or the whole batch, on every rank: a mapping of forward keyword arguments
                or a tuple of positional ones, with the shapes of the example inputs. The number of samples may differ,
                in the last batch of an epoch for example, as long as the data-parallel shards divide it: it is cut into
                as many micro-batches as it can be, at most those of the plan.

        Returns:
            The loss on the whole batch before the update, the same float64 scalar on every rank.

        Raises:
            PlanError: the batch does not fit the program or the plan.
            GalvatronError: the model was compiled without an optimizer, or ranks changed its options differently.
            RankError: another rank failed.
            CheckError: what the model asks of its own values does not hold; nothing was updated.
            NonFiniteError: with `detect_nonfinite`, a result or a gradient is not finite; nothing was updated.
        """
        with self._call("train_step", batch) as values:
            return self._executor.train_step(values)

    def forward_backward(self, batch: BatchLike) -> Tensor:
        """Loss and gradients of a global batch, without an update; arguments, result and errors as in `train_step`.

        The gradients replace those of the step before.
        """
        with self._call("forward_backward", batch) as values:
            return self._executor.forward_backward(values)

    @overload
    def eval_step(self, batch: BatchLike, *, outputs: Literal[False] = False) -> Tensor: ...

    @overload
    def eval_step(self, batch: BatchLike, *, outputs: Literal[True]) -> ModelOutputs: ...

    def eval_step(self, batch: BatchLike, *, outputs: bool = False) -> Tensor | ModelOutputs:
        """The loss on a global batch that the model has in evaluation mode, whatever the plan: forward only, without
        dropout, by the running statistics of batch norms, and the other way where forward asks whether it trains
        (`if self.training:`).

        Parameters, buffers, gradients, the optimizer and the random numbers of later steps stay as they are.

        Args:
            batch: as in `train_step`.
            outputs: give also what the model returns besides its loss, as far as `compile` was asked for it.

        Returns:
            The loss on the whole batch, the same float64 scalar on every rank; or the outputs, of which it is the
            `loss`.

        Raises:
            PlanError: the batch does not fit the program or the plan.
            CheckError: what the model asks of its own values does not hold.
            GalvatronError: outputs of a model that was compiled without any; or what the model does in evaluation mode
                could not be captured beside what it does in training.
            RankError: another rank failed.
        """
        with self._call("eval_step", batch, gives=outputs) as tensors:
            if not outputs:
                return self._executor.eval_step(tensors)
            loss, values = self._executor.outputs(tensors)
            return self._named(values, loss)

    def evaluate(self, batches: Iterable[BatchLike], *, weight: evaluation.Weight | None = None) -> float:
        """The mean of `eval_step` over batches, such as those of an epoch of a `dataloader`; for a language model,
        `math.exp(compiled.evaluate(held_out))` is its perplexity.

        Args:
            weight: what each sample counts for, from what this rank has of a batch, one number per sample; None, all
                count alike. Where the loss is a mean over tokens of which samples have unlike numbers, the mean over
                the whole data set is that with `lambda batch: (batch["labels"][:, 1:] != -100).sum(1)`.

        Raises:
            GalvatronError: there is no batch, or `weight` gives something else. Else as in `eval_step`.
        """

        if not isinstance(batches, Iterable):
            raise GalvatronError(f"evaluate goes over batches, such as those of a loader, not {type(batches).__name__}")

        def losses() -> Iterator[tuple[Tensor, int | Tensor]]:
            for batch in batches:
                loss, samples = self.eval_step(batch), self._inputs.samples(batch)
                yield loss, evaluation.counted(self._world, self._calls, batch, samples, weight)

        return evaluation.mean(losses())

    def predict(self, batch: BatchLike) -> ModelOutputs:
        """What the model returns besides its loss, as far as `compile` was asked for it, of a batch that may lack what
        no output depends on, such as labels; so it makes none of the model's checks of values.

        Returns:
            The outputs; their `loss` is None.

        Raises:
            GalvatronError: the model was compiled without `outputs`. Else as in `eval_step`.
        """
        with self._call("predict", batch, gives=True, needed=self._needed) as tensors:
            _, values = self._executor.outputs(tensors, complete=False)
            return self._named(values, None)

    @cached_property
    def _needed(self) -> frozenset[str]:
        """The inputs that outputs depend on."""
        return inputs_of(self.program, (output.value for output in self.program.outputs))

    def _named(self, values: Mapping[str, Tensor], loss: Tensor | None) -> ModelOutputs:
        return ModelOutputs({output.name: values[output.name] for output in self.program.outputs}, loss)

    def __call__(self, *args: Any, **kwargs: Any) -> ModelOutputs:
        """The model called without training, as in `eval_step`: its outputs, and its loss where the batch is complete.

        Arguments are those of the model's forward.
        """
        batch = self._inputs.bound(args, kwargs)
        return self.eval_step(batch, outputs=True) if self._inputs.is_complete(batch) else self.predict(batch)

    @contextmanager
    def _call(
        self, what: str, batch: BatchLike, *, gives: bool = False, needed: Collection[str] | None = None
    ) -> Iterator[Mapping[str, Tensor | int | float]]:
        """The tensors and numbers of a batch, in a context in which a step means the same wherever it is called from.

        What a rank refuses, and what differs between ranks, is refused on all of them before anything is computed.

        Args:
            gives: outputs are asked for.
            needed: the inputs that the batch must have; None, all.
        """
        trains = what in ("train_step", "forward_backward")
        device = self._executor.mesh.world.device
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(trains),
            torch.autocast(device.type, enabled=False),
            on_device(device),
        ):
            with self._calls.agreeing(what, updates=what == "train_step") as facts:
                facts["outputs"] = str(gives)
                self._watch.check(training=trains)
                if not trains and (unlike := self.program.unlike_evaluated):
                    raise GalvatronError(
                        f"the model does something else in evaluation mode, and this program does not: {unlike}; "
                        "compile the model after model.eval() for that, and give the new program the values of this "
                        "one: evaluated.load_full_state_dict(compiled.full_state_dict())"
                    )
                if not isinstance(gives, bool):
                    raise GalvatronError(f"outputs must be True or False, not {gives!r}")
                if gives and not self.program.outputs:
                    raise GalvatronError('there are no outputs: name them when compiling, as in outputs=["logits"]')
                if gives and isinstance(batch, Part) and batch.rows.copies > 1:
                    raise PlanError(
                        f"there are no outputs of {batch.samples} samples, which do not divide into shards: pass "
                        "drop_last=True to the dataloader"
                    )
                if what == "train_step":
                    assert self.optimizer is not None
                values = self._inputs.read(batch, needed)
                self._executor.check(values)
                facts |= self._facts_of(values)
            self._content_compared |= not isinstance(values, Part)
            try:
                yield values
            except OutsideError as wrong:
                raise PlanError(
                    f"a number in the batch is outside of what the model looks up with it: {wrong}"
                ) from wrong

    def _facts_of(self, batch: Mapping[str, Tensor | int | float]) -> dict[str, str]:
        """What of a batch must be equal on all ranks; of the first whole one, its content as well."""
        if isinstance(batch, Part):
            shapes = described(data.whole_shapes(batch, self.program.batched))
            return {data.ONE_LENGTH: shapes, "the place in the data": batch.origin}
        found = {"the batch": described(batch)}
        if not self._content_compared:
            found["the content of the batch"] = f"digest {content_of(batch)}"
        return found

    def dataloader(
        self,
        dataset: Any,
        *,
        batch_size: int | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        workers: int = 0,
        prefetch: int = 2,
        timeout_s: float = 0,
        whole_batches: bool = False,
        shards: int = 1,
        name: str = "train",
    ) -> data.Loader:
        """Batches of a data set, of which each rank loads the samples that its stages read, for `train_step` and
        `eval_step`. Its place is a part of checkpoints.

        Args:
            dataset: what `torch.utils.data.DataLoader` takes: with `__getitem__` and `__len__`, or iterable; equal on
                all ranks.
            batch_size: samples of a global batch; None, as many as the plan is for.
            collate_fn: from a list of samples to a batch, row by row; None, `torch.utils.data.default_collate`.
            shuffle: an order of its own for each epoch, which follows from `seed`.
            seed: also of the random numbers that data set and `collate_fn` draw.
            drop_last: leave out what does not fill the last batch of an epoch.
            workers: processes that load; 0, this one does.
            prefetch: batches that each of them loads ahead.
            timeout_s: how long a batch may take to come from them; 0, any time.
            whole_batches: every rank loads all samples, for a `collate_fn` whose rows depend on each other.
            shards: in how many shares an iterable data set is read (`dataset.shard(num_shards=shards, index=i)`); each
                gives as many samples of a batch, and a rank reads those that it needs.
            name: under which checkpoints have its place; each loader of a program has its own.

        Returns:
            What gives, each time that it is iterated over, the batches of an epoch, or those left of it.

        Raises:
            GalvatronError: an argument is wrong, or the data set has another length on another rank; or what is left at
                the end of an epoch makes no batch under this plan.
        """
        collate = torch.utils.data.default_collate if collate_fn is None else collate_fn
        size = self.plan.global_batch_size if batch_size is None else batch_size
        options = data.Options(
            size, collate, shuffle, seed, drop_last, workers, prefetch, timeout_s, whole_batches, shards, name
        )

        def serves() -> data.Serves:
            table = self._executor.row_table(self.plan.global_batch_size, why_not_repeated(self.program))
            inputs = self._inputs
            return data.Serves(
                self._world, self._calls, table, inputs.check_samples, inputs.by_name, self.program.batched
            )

        return self._loaders.made(self._calls, self._world, serves, dataset, options)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """This rank's optimizer, for learning-rate schedulers: they work on it as on any other, alike on every rank.

        Raises:
            GalvatronError: the model was compiled without an optimizer.
        """
        if self._executor.optimizer is None:
            raise GalvatronError("there is no optimizer: pass `optimizer=` when compiling")
        return self._executor.optimizer

    @contextmanager
    def ema(self) -> Iterator[None]:
        """Inside the `with` block the weights are their moving averages, which the optimizer keeps after
        `galvatron.ema`: for `evaluate`, `predict`, `export` and all else that reads them. Training and checkpoints wait
        until it has ended. The weights are kept on the host meanwhile.

        Raises:
            GalvatronError: the optimizer keeps no averages.
        """
        with averaging.exchanged(self._calls, self._executor):
            yield

    @property
    def loss_scale(self) -> float | None:
        """What the gradient of the loss is multiplied by under `precision="fp16"`, None otherwise."""
        return None if self._executor.scaler is None else self._executor.scaler.scale

    @property
    def metrics(self) -> StepMetrics:
        """Figures of the last step: loss, gradient norm, where the time went, memory of all ranks. Not collective.

        Raises:
            GalvatronError: there was no step yet.
        """
        return self._executor.metrics

    def pending_metrics(self) -> Callable[[], StepMetrics]:
        """A function that gives `metrics` of the step that is the last one now, later. Not collective.

        Raises:
            GalvatronError: there was no step yet.
        """
        return self._executor.pending_metrics()

    @property
    def rank(self) -> int:
        """The number of this process in the job."""
        return self._world.rank

    @property
    def peak_flop_per_s(self) -> float | None:
        """The best rate of products of a device of the cluster that the plan is for, in the type that most of the model
        computes in; None where `compile` was given a plan and no cluster."""
        return None if self._device is None else best_flop_per_s(self._device, self.program.compute_dtype)

    def accuracy(self) -> Accuracy:
        """The last steps (of `train_step`, 8 at most, and not the first one of all) beside what is predicted of them:
        by what their time went into, and the peak of memory. `print(compiled.accuracy())` shows a table.

        Predicted is by the profile of the hardware that is kept of this job, or is quickly taken where there is none;
        or by the cluster that `compile` was given. Steps themselves take no time for it.

        Raises:
            GalvatronError: there are no such steps on batches of the size of the plan.
        """
        from galvatron.calibration.accuracy import compared, measured

        with self._calls.agreeing("accuracy"):
            own = measured(self._executor.recent, self.plan.global_batch_size)
        with plain_torch(self._world.device):
            return compared(self.program, self._cluster_here(), self._world, own)

    def _cluster_here(self) -> Cluster:
        """What predictions of this job are for. Collective."""
        if self._cluster is not None:
            return self._cluster
        from galvatron.profiler.local import local_cluster

        return local_cluster(self._world, cache_dir=self._cache_dir)

    def profile(
        self,
        batches: BatchLike | Iterable[BatchLike],
        *,
        steps: int = 3,
        directory: str | os.PathLike[str] = "timelines",
    ) -> Profiled:
        """Trains for some steps, as `train_step` does, and writes what all ranks did when: `measured.json`, for
        Perfetto or Chrome, beside `predicted.json` in the same names. `print(compiled.profile(batch))` shows what
        differs most.

        Call it behind a few steps: in the first ones much is done that is not done again. What is predicted is as for
        `accuracy`. Looking costs some microseconds for each layer and communication.

        Args:
            batches: one batch of the size of the plan, for all steps; or several, such as a loader.
            directory: rank 0 writes there, what is there of before is replaced.

        Raises:
            GalvatronError: an argument is wrong, a batch has another size, or the files cannot be written. Else as in
                `train_step`.
        """
        from galvatron.timelines.profiling import check_arguments, profiled

        with self._calls.agreeing("profile") as facts:
            check_arguments(batches, steps, directory)
            own: Iterator[Any] = repeat(batches) if isinstance(batches, (Mapping, tuple)) else iter(batches)
            facts |= {"steps": str(steps), "directory": str(directory)}

        def train() -> None:
            for number in range(steps):
                with self._calls.agreeing("profile") as facts:
                    found = [*islice(own, 1)]
                    if found:
                        facts[f"batch {number}"] = "there"
                        self._check_predicted(found[0])
                if not found:
                    return
                self.train_step(found[0])

        return profiled(self._world, self._executor, self.program, self._cluster_here, Path(directory), train)

    def _check_predicted(self, batch: BatchLike) -> None:
        samples, wanted = self._inputs.samples(batch), self.plan.global_batch_size
        if samples != wanted:
            raise PlanError(f"the batch has {samples} samples, and the plan, which is predicted, is for {wanted}")

    def compare_with(
        self, model: nn.Module, batch: BatchLike, *, loss_fn: LossFunction | None = None, layers: bool = False
    ) -> Comparison:
        """Loss and gradients of a batch beside those of the eager model in float64, with the values that the program
        has now: `print(compiled.compare_with(model, batch))` shows a table that says of each difference whether it is
        rounding, which is what eager float32 differs from float64 by, and names the layer and the line of the first
        that is none. Nothing of the training changes.

        Rank 0 computes copies of the model, one after the other, where the model is. What torch counts as the most
        memory in use is set back afterwards, so that `peak_bytes` of later steps are those of steps.

        Args:
            model: the one that was compiled; its values count for nothing, and other ranks than 0 do not need them.
            batch: the whole batch.
            loss_fn: as in `compile`; None is the one that was given there.
            layers: also what each layer gives to others, beside the captured program run op by op. All of it is kept
                until the backward has ended.

        Raises:
            GalvatronError: the model draws random numbers, is another one, or fails. Else as in `forward_backward`.
        """
        from galvatron.debugging.eager import Given, Job, check_comparable, compared

        with self._calls.agreeing("compare_with") as facts:
            facts["layers"] = str(layers)
            check_comparable(model, layers, self.program, computes=self._world.rank == 0)
            if isinstance(batch, Part):
                raise GalvatronError("compare_with takes the whole batch, not one that a loader gives a part of")
            values, arguments = self._inputs.read(batch), self._inputs.constants | self._inputs.by_name(batch)
            given = Given(model, loss_fn or self._loss_fn, arguments, values, self._inputs.samples(batch))
        job = Job(self._world, self._executor, self.program, lambda: self.forward_backward(batch), self._cache_dir)
        with plain_torch(self._world.device):
            return compared(job, given, layers=layers)

    def full_state_dict(self, *, rank0_only: bool = False) -> dict[str, Tensor]:
        """The model's `state_dict`: whole tensors on the CPU, under the model's own names.

        Args:
            rank0_only: give the tensors to rank 0 alone; the other ranks get an empty dictionary.

        Raises:
            GalvatronError: the argument is wrong, or differs between ranks.
        """
        self._check_whole("full_state_dict", rank0_only)
        return self._executor.full_state_dict(rank0_only=rank0_only)

    def full_gradients(self, *, rank0_only: bool = False) -> dict[str, Tensor]:
        """Gradients of the last step: whole tensors on the CPU, under the names of the model's parameters.

        Parameters that are frozen, that the program never reads or that nothing in the step has reached are left out.

        Args:
            rank0_only: give the tensors to rank 0 alone; the other ranks get an empty dictionary.

        Raises:
            GalvatronError: the argument is wrong, or differs between ranks.
        """
        self._check_whole("full_gradients", rank0_only)
        return self._executor.full_gradients(rank0_only=rank0_only)

    def _check_whole(self, what: str, rank0_only: Any) -> None:
        with self._calls.agreeing(what) as facts:
            if not isinstance(rank0_only, bool):
                raise GalvatronError(f"rank0_only must be True or False, not {rank0_only!r}")
            facts["rank0_only"] = str(rank0_only)

    def load_full_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes over whole tensors under the model's own names; every rank passes the same mapping.

        Raises:
            PlanError: a name is missing or unknown, or a value is no tensor of its shape; nothing was changed then.
        """
        with self._calls.agreeing("load_full_state_dict") as facts:
            self._executor.check_full_state_dict(state_dict)
            facts["the values of the state"] = f"digest {digest_of_values(state_dict.values())}"
        self._executor.load_full_state_dict(state_dict)
        self._watch.values_taken()

    def state(self) -> dict[str, Any]:
        """What a run needs besides its parameters and its optimizer's state to go on as if it had never stopped: where
        its random numbers are, and the loss scale. Plain numbers, for `json`; equal on every rank. Not collective.
        """
        return self._executor.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state()` was called, in this job or in another one; every rank passes the same mapping.

            weights, state = compiled.full_state_dict(), compiled.state()      # and compiled.optimizer.state_dict()
            ...
            compiled.load_full_state_dict(weights)
            compiled.load_state(state)                                         # and the optimizer's, rank by rank

        Raises:
            GalvatronError: it is no such state, or that of a model with another precision; nothing was changed then.
        """
        with self._calls.agreeing("load_state") as facts:
            found = RunState.read(state, scaled=self._executor.scaler is not None)
            facts["the state"] = str(found)
        self._executor.load_state(found)

    def save(
        self,
        directory: str | os.PathLike[str],
        *,
        step: int,
        keep: int | None = 3,
        extra: Mapping[str, Any] | None = None,
        background: bool = False,
    ) -> Path:
        """Writes a checkpoint into a new folder of a directory that all ranks share, each rank its part, and removes
        older ones. A crash at any moment leaves those that were complete.

        Args:
            step: what the caller counts, for the name of the folder.
            keep: how many checkpoints stay in the directory; None, all.
            extra: what else is to be kept, as JSON can say it: the state of a scheduler, for example.
            background: return as soon as a rank has a copy of what it writes on the host, and write it while training
                goes on. The next `save`, `load` or `finish_saving` waits for it, as do processes that end.

        Returns:
            The new folder, which is there when all of it is written.

        Raises:
            GalvatronError: a file cannot be written, for want of room for example; nothing is left of it then. Of a
                checkpoint in the background that is logged at once, and raised by the call that waits for it.
        """
        extra = {} if extra is None else extra
        with self._calls.agreeing("save") as facts:
            facts["extra"] = checkpoints.check_arguments(directory, step, keep, extra, background)
            facts |= {"directory": str(directory), "step": str(step), "keep": str(keep), "background": str(background)}
            facts |= self._loaders.facts()
        with plain_torch(self._world.device), self._executor.saving():
            loaders = self._loaders.states()
            return self._saver.save(
                Path(directory), step=step, keep=keep, extra=extra, loaders=loaders, background=background
            )

    def finish_saving(self) -> None:
        """Returns when the checkpoint that is saved in the background, if one is, is complete.

        Raises:
            GalvatronError: it could not be written; nothing is left of it.
        """
        self._calls.check("finish_saving", None, {})
        with self._executor.saving():
            self._saver.finish()

    @overload
    def load(
        self, directory: str | os.PathLike[str], *, missing_ok: Literal[False] = False
    ) -> checkpoints.Checkpoint: ...

    @overload
    def load(
        self, directory: str | os.PathLike[str], *, missing_ok: Literal[True]
    ) -> checkpoints.Checkpoint | None: ...

    def load(self, directory: str | os.PathLike[str], *, missing_ok: bool = False) -> checkpoints.Checkpoint | None:
        """Goes on from a checkpoint that was saved under this plan or another one, on any number of ranks: parameters,
        buffers, the optimizer's state and options, random numbers and loss scale, and the places of data loaders, also
        of those that are made later. A rank reads what it needs.

        Args:
            directory: what `save` was given, for the last checkpoint in it that is complete; or one folder in that.
            missing_ok: there may be none yet, as when a run begins; then nothing is loaded.

        Returns:
            What was loaded: its `path`, `step`, `extra` and `metrics`; None, nothing was.

        Raises:
            GalvatronError: there is none, a file is missing or damaged, or it is of another model or optimizer; nothing
                was changed then.
        """
        with self._calls.agreeing("load") as facts:
            check_path(directory, "a checkpoint is in a directory")
            if not isinstance(missing_ok, bool):
                raise GalvatronError(f"missing_ok must be True or False, not {missing_ok!r}")
            facts |= {"directory": str(directory), "missing_ok": str(missing_ok)}
        self._saver.finish()
        with plain_torch(self._world.device):
            found = checkpoints.load(
                self._world, self._executor, Path(directory), check=self._loaders.check, missing_ok=missing_ok
            )
        if found is not None:
            self._loaders.load(found.loaders)
            self._watch.values_taken()
        return found

    def export(
        self,
        directory: str | os.PathLike[str],
        *,
        max_shard_size: int | str = "50GB",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Writes the model as it would save itself, for `from_pretrained` and for `compile(weights=...)`: `safetensors`
        files under the names of its `state_dict`, each tied tensor once, and its `config.json` where it has one.

        Rank 0 writes, and has a few tensors at a time. The directory is there when all of it is complete.

        Args:
            directory: a new one.
            max_shard_size: of one file, in bytes or like `"5GB"`; more than one have an index.
            dtype: of floating numbers; None, those that the model had when it was compiled.

        Raises:
            GalvatronError: a file cannot be written, for want of room for example, or there is something in the
                directory; nothing was written then.
        """
        with self._calls.agreeing("export") as facts:
            most_bytes = weights.check_export(directory, max_shard_size, dtype)
            form = self._form.in_type(dtype)
            facts |= {"directory": str(directory), "max_shard_size": str(most_bytes), "dtype": str(dtype)}
        with plain_torch(self._world.device):
            weights.export(self._world, self._executor, form, Path(os.path.realpath(directory)), most_bytes)

    def save_artifacts(self, directory: str | os.PathLike[str]) -> None:
        """Writes `program.gir`, `plan.json` and `stage_*.py` into a directory, from rank 0, each file atomically.

        Raises:
            GalvatronError: the directory cannot be written (on rank 0).
        """
        check_path(directory, "artifacts go into a directory")
        if self._world.rank != 0:
            return
        try:
            write_text(Path(directory) / "program.gir", print_program(self.program))
            self.plan.save(Path(directory) / "plan.json")
            for stage, text in self.sources.items():
                write_text(Path(directory) / f"stage_{stage}.py", text)
        except (OSError, ValueError) as error:
            raise GalvatronError(f"artifacts cannot be written into {directory}: {error}") from error
