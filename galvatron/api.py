"""The public functions that take a model: `compile` runs the whole way, `capture` is its first part; those on programs
alone are in `offline`."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from galvatron import runtime as rt
from galvatron.answers.plan_cache import remembered
from galvatron.arguments import (
    Wanted,
    check_inputs,
    check_model,
    check_outputs,
    read_precision,
)
from galvatron.batches import BatchLike, BatchReader
from galvatron.bugs import ours
from galvatron.codegen import load_module, stage_axes
from galvatron.compiled import CompiledModel
from galvatron.costs.kept import kept_costs
from galvatron.drift import ModelWatch
from galvatron.errors import ClusterError, GalvatronError
from galvatron.forms import emitted, lowered, passed, with_costs
from galvatron.instruments import check_instruments, instrumented
from galvatron.ir.capture import BatchDims, Captured, Dynamic, LossFunction, Outputs, capture_graph, device_of
from galvatron.ir.cluster import Cluster
from galvatron.ir.device import Device
from galvatron.ir.documents import shown
from galvatron.ir.files import cache_directory
from galvatron.ir.planned import with_plan
from galvatron.ir.program import Program
from galvatron.passes import FRONT_END
from galvatron.passes.pipeline import Instrument
from galvatron.plain import plain_torch
from galvatron.plan_arguments import PlanLike, parsed_plan
from galvatron.rank_0 import on_rank_0
from galvatron.runtime import comm, failure
from galvatron.runtime.inductor import compile_layers
from galvatron.runtime.optimizers import OptimizerFactory
from galvatron.search_options import SearchOptions
from galvatron.weights import ModelForm, Weights, found_for, initialisers

__all__ = ["CompiledModel", "capture", "compile"]

_LOG = logging.getLogger("galvatron")

NOMINAL_DEVICE = "a100-80g"
"""The device whose rates guide sharding when the user gives a plan but no cluster: the same code on every machine."""


def compile(
    model: nn.Module,
    example_inputs: BatchLike,
    *,
    loss_fn: LossFunction | None = None,
    batch_dims: BatchDims | None = None,
    dynamic: Dynamic | None = None,
    outputs: Outputs = (),
    checks: bool = True,
    cluster: Cluster | str | None = None,
    memory: int | str | None = None,
    search: SearchOptions | None = None,
    plan: PlanLike | None = None,
    optimizer: OptimizerFactory | None = None,
    precision: str | None = None,
    max_grad_norm: float | None = None,
    check_optimizer: bool = True,
    inductor: bool = False,
    timeout_s: float = rt.DEFAULT_TIMEOUT_S,
    detect_nonfinite: bool = False,
    calibrate: bool = False,
    weights: str | os.PathLike[str] | None = None,
    partial_weights: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    instrument: Sequence[Instrument | str] = (),
) -> CompiledModel:
    """Turns a model into a distributed training program on the ranks of this job.

    Collective: every rank of the job (`torchrun`, or one process without it) calls it with equal arguments. Rank 0
    captures the model and searches the plan; the planned program travels to the others as text, and all ranks generate
    the same code. An error on one rank is raised on all, and a later call starts afresh.

    The program is that of the model as it is now. Its methods refuse to go on when the model is changed later in a way
    that they do not see: values, what is frozen, and for training the mode of its modules.

    Dropout and other random numbers follow from rank 0's `torch.initial_seed()`: after `torch.manual_seed` a job
    repeats exactly.

    Args:
        model: unmodified; real weights are taken over as they are, weights on the `meta` device are initialised shard
            by shard by the model's own initialisers.
        example_inputs: one *global* batch, as a mapping of forward keyword arguments or a tuple of positional ones;
            real or meta tensors, batch on dim 0.
        loss_fn: `loss_fn(output, batch) -> scalar` when the model does not return its loss (a scalar, or `.loss`);
            `batch` has the inputs of forward by name, labels among them. Parameters of a loss must be the model's.
        batch_dims: which inputs hold samples follows from the model: those of one size on dim 0, which it leaves free.
            All others, such as a table or a count, are the same for every sample and keep their shape. Where that goes
            wrong, by name: 0, dim 0 counts samples; None, it does not.
        dynamic: by name, what may be another in every step besides the values of tensors and the number of samples.
            True says so of an input that is a Python number (`{"temperature": True}`), which is a constant of the
            program otherwise. Any finite value is right in its place, of the type of the example, `int` or `float`;
            what chooses a branch, a size or an index is refused, with its line. A mapping says so of the sizes of a
            tensor's dimensions and names them, alike where they are equal: `{"input_ids": {1: "S"}, "labels":
            {1: "S"}}` for batches that are padded to their own longest sample. True for a tensor, or alone for all
            tensors, leaves it to the model which of their sizes are free (one trace more). The program says for which
            lengths it holds, at least 2; a plan that shards sequences takes those that it divides into pieces.
        outputs: what the model returns besides its loss and is to give when asked (`CompiledModel.predict`), by name: a
            field of the mapping, dataclass or named tuple that it returns, as in `["logits"]`, a position of a tuple,
            as in `["0"]`, one inside of another with a dot, as in `["hidden_states.3"]`. True: the tensor that is the
            whole output, by the name `"output"`. Training steps keep none of them.
        checks: checks of values that the model makes itself (`if x.isnan().any(): raise ...`, `assert (x > 0).all()`,
            those of `torch.distributions`) are part of the program: where one fails anywhere in the batch, the step
            raises `CheckError` on all ranks, which names the line, and nothing is updated. Left out, with a warning,
            are those that only report, and those that depend on more of the batch than each sample by itself. False
            leaves out all of them.
        cluster: a `Cluster` or a preset such as `"a100-80g:2x8"`, for the search; None is what this job runs on, by
            the profile of it that is kept (`galvatron profile hardware`), or measured for some seconds where there is
            none, and then kept.
        memory: budget per device for the search, in bytes or like `"36GiB"`; None is the device's memory less a
            reserve.
        search: what the search tries and what for (`SearchOptions`); None is everything, for the shortest step.
        plan: a `Plan`, the path of a plan file, or one strategy for all layers like `"pp2/m4/1f1b/dp1-tp2"`. When
            given, nothing is searched.
        optimizer: from this rank's parameters to a `torch.optim.Optimizer`; needed for `train_step`. A function whose
            argument is called `named_parameters` gets (name, parameter) pairs instead, under the model's names, for
            groups by name. Where the plan cuts parameters a rank sees slices of them, so the rule must be element-wise,
            or say what it reads whole (`WholeParameters`); where ZeRO cuts a parameter, its part is one row with as
            many dimensions as the parameter. It is called for small stand-ins first, to see that (`check_optimizer`),
            and last for the parameters.
        precision: the type in which parameters take part in compute. None: their own. `"bf16"`: bfloat16; masters,
            gradients and the optimizer's state are float32, and so are losses. All else is computed in the types in
            which `model.bfloat16()` would compute it, except that buffers stay float32 where they can. Floating batch
            inputs keep their type and are cast where they meet a parameter. `"fp16"`: float16 in the same way, with
            dynamic loss scaling: a step whose gradients overflow updates nothing, on all ranks. The model itself is
            never changed, and `full_state_dict` gives the float32 masters.
        max_grad_norm: gradients are scaled so that their global norm is at most this.
        check_optimizer: prove, on small stand-ins, that the optimizer trains what the plan gives to this rank as it
            would train the whole model. False takes the caller's word for it, where the check is mistaken: an update
            that draws random numbers, or a function that must not be called twice.
        inductor: compile each class of layers with `torch.compile`, at the first step; communication stays between the
            compiled parts, and layers that draw random numbers may stay as they are.
        timeout_s: the longest that a rank may wait for others in one communication of a step: then all processes end,
            with an error that says which rank waits where and what the ones do that it waits for. More than the longest
            time by which ranks may legitimately differ (a first step that compiles kernels, a rank that writes files).
        detect_nonfinite: check what every layer computes. A step that computes an infinite or invalid number raises
            `NonFiniteError` on all ranks, which names the first layer, its rank and micro-batch, forward or backward;
            nothing is updated, and the job can go on. In the backward, `precision="fp16"` leaves overflows to its loss
            scaling. Costs time: each result and gradient is read once more.
        calibrate: measure the layers and collectives of the plan on this job before it starts, for some 30 seconds, and
            keep that in its profile: where no `cluster` is given, `CompiledModel.accuracy` and later searches count
            with it. Only the parts are measured and kept, never how far off a whole step was.
        weights: a folder of `safetensors` files, or one file, of which every rank reads what it holds, in place of the
            model's own values: under the names of the model's `state_dict`, or those of a base model of it, in any
            floating type. With a model on `meta` it exists whole nowhere.
        partial_weights: files may lack tensors, which keep the model's values or are initialised, and have others,
            which are left out; both are logged.
        cache_dir: where generated code, profiles, costs and plans that were searched are kept; default: the user's
            cache directory.
        instrument: what stands around every pass on rank 0, such as `PrintPrograms` or `DumpTree` of
            `galvatron.instruments`, or a name that the variable `GALVATRON_PASSES` takes, such as `"diff"`.

    Raises:
        CaptureError: the model cannot be captured.
        BudgetError: no plan fits the memory budget.
        PlanError: the plan does not fit the model, the batch or the number of ranks.
        InternalError: a bug of Galvatron; the message names a file with which it can be seen again.
        GalvatronError: any other argument is wrong, or differs between ranks. What a rank finds is raised on every one.
    """
    switches = {"inductor": inductor, "detect_nonfinite": detect_nonfinite, "check_optimizer": check_optimizer}
    before = {"checks": checks, "calibrate": calibrate, "partial_weights": partial_weights}
    wanted, error = None, None
    try:
        with ours("reading the arguments"):
            wanted = Wanted.read(
                plan,
                cluster,
                memory,
                search,
                precision,
                optimizer,
                max_grad_norm,
                timeout_s,
                cache_dir,
                weights,
                **switches,
                **before,
            )
            check_instruments(instrument)
            facts = wanted.facts(model, example_inputs, loss_fn, batch_dims, dynamic, outputs)
    except GalvatronError as found:
        error, facts = found, {}
    world = rt.initialize(timeout_s=rt.DEFAULT_TIMEOUT_S if wanted is None else wanted.timeout_s)
    rt.agree(world, "compile", error, facts)
    assert wanted is not None
    found_weights = None if weights is None else found_for(world, model, weights, is_partial=partial_weights)
    with plain_torch():
        target = wanted.cluster or _cluster_of_job(world, cache_dir, measured=plan is None)
    if target.world_size != world.size:
        raise ClusterError(
            f"cluster {target} has {target.world_size} devices, but this job has {world.size} ranks; "
            f"start {target.world_size} processes (torchrun --nproc-per-node), or leave the cluster out"
        )
    with plain_torch(device_of(model)), instrumented(instrument):
        said = {"loss_fn": loss_fn, "batch_dims": batch_dims, "dynamic": dynamic, "outputs": outputs, "checks": checks}
        tried = optimizer if check_optimizer else None  # else its function is not to be called for stand-ins
        captured = on_rank_0(world, lambda: _planned(model, example_inputs, said, wanted, target, cache_dir, tried))
    with plain_torch(world.device), instrumented(instrument if world.rank == 0 else ()):
        if calibrate:
            from galvatron.calibration.feedback import calibrate as measure_parts

            measure_parts(world, captured.program, cache_dir)
        return _assembled(
            model,
            example_inputs,
            captured,
            world,
            optimizer=optimizer,
            max_grad_norm=max_grad_norm,
            cache_dir=cache_dir,
            device=target.device if plan is None or wanted.cluster is not None else None,
            cluster=wanted.cluster,
            weights=found_weights,
            loss_fn=loss_fn,
            **switches,
        )


def capture(
    model: nn.Module,
    example_inputs: BatchLike,
    *,
    loss_fn: LossFunction | None = None,
    batch_dims: BatchDims | None = None,
    dynamic: Dynamic | None = None,
    precision: str | None = None,
    outputs: Outputs = (),
    checks: bool = True,
    form: str = "clustered",
) -> Program:
    """The training computation of a model as a program of layers, for every batch size.

    Nothing is computed; a model on `meta` stays there.

    Args:
        model, example_inputs, loss_fn, batch_dims, dynamic, precision, outputs, checks: see `compile`.
        form: `"captured"` is one graph as it was traced, on which no pass has run.

    Raises:
        CaptureError: the model cannot be captured; names the source line that is to blame.
        GalvatronError: an argument is wrong.
    """
    check_model(model, loss_fn)
    check_inputs(example_inputs)
    check_outputs(outputs)
    compute = read_precision(precision)
    if form not in ("captured", "clustered"):
        raise GalvatronError(f"a program is captured or clustered, not {shown(form)}")
    with plain_torch(device_of(model)):
        with ours("capturing the model"):
            captured = capture_graph(
                model,
                example_inputs,
                loss_fn=loss_fn,
                precision=compute,
                batch_dims=batch_dims,
                dynamic=dynamic,
                outputs=outputs,
                checks=checks,
            )
        return captured.program if form == "captured" else passed(FRONT_END, captured.program)


def _planned(
    model: nn.Module,
    example_inputs: BatchLike,
    said: Mapping[str, Any],
    wanted: Wanted,
    cluster: Cluster,
    cache_dir: str | os.PathLike[str] | None,
    optimizer: OptimizerFactory | None,
) -> Captured:
    """The captured program with a plan: the one given, or the one that a search finds.

    Args:
        said: what capture is told of the model and its batch.
        optimizer: what costs are to be those of.
    """
    given = None if wanted.plan is None else parsed_plan(wanted.plan)  # before a capture that may take long
    with ours("capturing the model"):
        captured = capture_graph(model, example_inputs, precision=wanted.precision, **said)
    gc.collect()  # what torch.export leaves behind refers to the model: the user could drop it and not free it
    folder = cache_directory(cache_dir)
    with kept_costs(folder):
        costed = with_costs(captured.program, cluster, None, wanted.switches["inductor"], optimizer)
        if given is None:
            return replace(captured, program=remembered(costed, wanted.memory_bytes, wanted.search, folder))
    return replace(captured, program=with_plan(costed, given))


def _cluster_of_job(world: rt.World, cache_dir: str | os.PathLike[str] | None, *, measured: bool) -> Cluster:
    """What this job runs on, by its profile; without `measured` only its size is right. Collective when measured."""
    if not measured:
        return Cluster.parse(f"{NOMINAL_DEVICE}:1x{world.size}")
    from galvatron.profiler.local import local_cluster

    return local_cluster(world, cache_dir=cache_dir)


def _job_seed(world: rt.World) -> int:
    """The seed that the user's script gave torch on rank 0. Collective."""
    seed = torch.initial_seed()
    return seed if world.size == 1 else comm.broadcast_object(seed, comm.all_ranks(), 0, phase="the seed")


def _assembled(
    model: nn.Module,
    example_inputs: BatchLike,
    captured: Captured,
    world: rt.World,
    *,
    optimizer: OptimizerFactory | None,
    max_grad_norm: float | None,
    cache_dir: str | os.PathLike[str] | None,
    device: Device | None,
    cluster: Cluster | None,
    weights: Weights | None,
    loss_fn: LossFunction | None,
    inductor: bool,
    detect_nonfinite: bool,
    check_optimizer: bool,
) -> CompiledModel:
    """This rank's stages of a planned program, generated, filled with their state, and ready to train."""
    planned = captured.program
    plan = planned.required_plan
    with rt.together(world, "compile"):
        staged = lowered(planned)
        texts = emitted(staged)
    with failure.guarded("compile"):
        mesh = rt.build_mesh(world, stage_axes(staged), plan.holders)
    with rt.together(world, "compile"), ours("loading generated code", staged):
        names = [f"stage_{index}.py" for index in mesh.stages]
        stages = [load_module(name, texts[name], cache_dir).Stage(mesh) for name in names]
        if inductor:
            compile_layers(stages)
        given = None if weights is None else weights.given
        own = initialisers(model)
        state = rt.ModelState(model, constants=captured.constants, given=given, initialisers=own)
    with rt.together(world, "compile"), ours("filling the stages", staged):
        executor = rt.Executor(
            stages,
            microbatches=plan.micro_batches,
            schedule=plan.schedule,
            shards=plan.shards,
            optimizer=optimizer,
            check_optimizer=check_optimizer,
            max_grad_norm=max_grad_norm,
            model=state,
            seed=_job_seed(world),
            scaler=rt.LossScaler() if planned.precision == "f16" else None,
            detect_nonfinite=detect_nonfinite,
            batched=planned.batched,
        )
        sources = {index: texts[f"stage_{index}.py"] for index in range(len(staged.stages))}
        inputs = BatchReader(model, example_inputs, planned)
        watch = ModelWatch(model, executor.names | captured.fixed)
        form = ModelForm.of(model)
    return CompiledModel(
        executor,
        planned,
        sources,
        inputs,
        watch,
        world,
        form,
        device=device,
        cluster=cluster,
        cache_dir=cache_dir,
        loss_fn=loss_fn,
    )
