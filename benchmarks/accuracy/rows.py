"""What a published measurement is to a prediction: a model, a cluster, a plan, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from accuracy.models import Shape
from galvatron.ir.cluster import Cluster
from galvatron.ir.contention import NOTHING_BESIDE
from galvatron.ir.kernel_figures import FLASH_2_H100
from galvatron.ir.plan import Plan
from galvatron.ir.program import Program
from galvatron.ir.records import Table
from galvatron.ir.strategy import Strategy
from galvatron.schedules import Schedule


@dataclass(frozen=True)
class Framework:
    """The habits of a training framework, as far as a plan or a program can say them.

    Attributes:
        precision: of compute; masters, gradients and what the optimizer keeps are float32.
        tf32: whether products of float32 are made of TF32, of which a device computes half as many as of halves.
        half_gradients: whether gradients are kept, and summed, in the type of compute instead.
        flash: whether attention is one kernel.
        attention: what that reaches, where it is not what the device's newest kernels do; see `Device`.
        fused: whether attention that is written out has one kernel for scale, mask and softmax and one for their
            backward, and dropout has one with the sum behind it.
        dropout: of the models that its authors trained.
        sequence_parallel: whether `tp` means `tp+sp`.
        zero: the level at which parameters are kept.
        recompute: what is done with a layer where the table does not say.
        overlaps: whether sums of gradients and gathers of values run beside computation.
        overlaps_layers: whether the collectives of tensor parallelism run beside the products that they are for.
        copies: whether collectives of `tp` copy what they sum, or what they send to lay it out.
        buffers: whether values at ZeRO level 3 are copied out of buffers, and their gradients into some.
        scatters: whether a message between stages that all ranks of `tp` hold is sent in parts, one by each, and
            gathered there (Narayanan et al. 2021, §4.1).
    """

    precision: str
    flash: bool = False
    attention: Table = ()
    fused: bool = False
    dropout: float = 0.0
    sequence_parallel: bool = False
    zero: int = 0
    recompute: str = "none"
    overlaps: bool = True
    overlaps_layers: bool = False
    copies: bool = True
    buffers: bool = False
    scatters: bool = False
    half_gradients: bool = False
    tf32: bool = False

    def on(self, text: str) -> Cluster:
        """A cluster as the framework uses it: one that does nothing at the same time gains nothing from it. Kernels are
        those of the figures, from the time of these tables, and not what the package has measured since."""
        cluster = Cluster.parse(text)
        device = replace(cluster.device, curves="")
        if self.attention:
            device = replace(device, attention_share=self.attention)
        if self.tf32:
            rates = dict(device.matmul_flop_per_s)
            device = replace(device, matmul_flop_per_s=tuple({**rates, "f32": rates["f16"] / 2}.items()))
        cluster = replace(cluster, device=device)
        if self.overlaps:
            return cluster
        return replace(cluster, levels=tuple(replace(level, contention=NOTHING_BESIDE) for level in cluster.levels))


MEGATRON_2021 = Framework(
    "f16", fused=True, dropout=0.1, recompute="full", overlaps=False, copies=False, scatters=True,
    half_gradients=True,
)  # fmt: skip
"""Megatron-LM of SC'21 and of Korthikanti et al.: attention written out, kernels fused (Narayanan et al. 2021,
§4.2), dropout of 0.1, whole layers computed again, sums of activations in place and parts of
sequences, which are the first dimension, where they lie (`mpu/mappings.py`), every gradient summed after the last
backward, in halves (`accumulate_allreduce_grads_in_fp32` is for bfloat16)."""

VTRAIN = replace(MEGATRON_2021, recompute="none")
"""As vTrain describes Megatron-LM. Its times say that nothing is computed again: otherwise layers of width 2,048 would
reach 203 TFLOP/s with attention written out."""

MEGATRON_CORE = Framework("bf16", flash=True, sequence_parallel=True, zero=1, overlaps_layers=True, copies=False)
"""Megatron-Core of 2024: Transformer Engine, distributed optimizer, and `--tp-comm-overlap`, as the table says."""

MEGATRON_DEEPSPEED = Framework("f32", dropout=0.1, overlaps=False, copies=False, scatters=True, tf32=True)
"""Megatron-DeepSpeed as Sailor uses it: attention written out, nothing computed again, gradients summed after the last
backward, messages between stages in parts (`deepspeed/pipe_engine.py`, eth-easl/sailor, 494eaa5). Its container
(nvcr.io/nvidia/pytorch:24.10, `Dockerfile`) makes products of float32 of TF32. Nobody says that it trains in float32,
but its memory does: a block of GPT-Neo keeps 267 MB of each sample, which are 241 in float32 and 190 in halves."""

TORCHTITAN = Framework("bf16", flash=True, attention=FLASH_2_H100, sequence_parallel=True, zero=3, buffers=True)
"""FSDP2, which copies into and out of its buffers (`_fsdp_collectives.py`), with `tp` in the form that shards
sequences; attention of torch 2.6, which is FlashAttention-2."""

MIST = Framework("f16", fused=True, zero=1, half_gradients=True)
"""Mist: attention written out with a fused softmax (`mist/modules/mha.py`, 38955576), no dropout, no biases, sharded
state of the optimizer."""


@dataclass(frozen=True)
class Row:
    """One measured step.

    Attributes:
        table: the file that it is of.
        name: of the row in it.
        stages: per pipeline stage the strategies of its blocks; the first one has the embedding too, the last one the
            head, under the strategy beside them but without recomputation.
        framework: whose habits its step has.
        step_s: the measured seconds of a step.
        peak_bytes: the measured peak of a device, of the fullest one or of each stage; empty if nobody says.
        compiled: whether layers are compiled, which makes other kernels of them.
        of_process: whether what was measured is all that a process takes of a device, as `nvidia-smi` tells it, and not
            only its tensors.
        offloads: whether a part of the state is kept by the host, which no plan says: memory is not compared.
        refused: why there is no prediction; empty if there is one.
    """

    table: str
    name: str
    shape: Shape
    precision: str
    cluster: Cluster
    batch: int
    micro_batches: int
    schedule: str
    stages: tuple[tuple[str, ...], ...]
    framework: Framework
    step_s: float
    peak_bytes: tuple[float, ...] = ()
    compiled: bool = False
    of_process: bool = False
    offloads: bool = False
    refused: str = ""

    @property
    def plan_text(self) -> str:
        """The plan in short: `pp8/m64/interleaved3/dp1-tp8`, with the first block's strategy."""
        ranks = len(self.stages) // Schedule.parse(self.schedule).stages_per_rank
        return f"pp{ranks}/m{self.micro_batches}/{self.schedule}/{self.stages[0][0]}"

    def plan(self, program: Program) -> Plan:
        """The plan for the program of its model."""
        stages = [[Strategy.parse(text) for text in stage] for stage in self.stages]
        stages[0].insert(0, _kept(stages[0][0]))
        stages[-1].append(_kept(stages[-1][-1]))
        return Plan(
            fingerprint=program.fingerprint,
            global_batch_size=self.batch,
            world_size=self.cluster.world_size,
            micro_batches=self.micro_batches,
            schedule=self.schedule,
            stages=tuple(map(tuple, stages)),
        )


def strategy(
    framework: Framework, dp: int, tp: int, *, cp: int = 1, recompute: str = "", sp: bool | None = None
) -> str:
    """The strategy of a framework for these degrees, data parallelism outermost.

    Args:
        recompute: what a layer computes again; that of the framework where empty.
        sp: whether `tp` shards sequences; as the framework does when None.
    """
    sharded = framework.sequence_parallel if sp is None else sp
    parts = [f"dp{dp}"]
    parts += [f"cp{cp}"] if cp > 1 else []
    parts += [f"tp{tp}{'+sp' if sharded and tp > 1 else ''}"]
    parts += [f"zero{framework.zero}"] if framework.zero and dp * cp > 1 else []
    again = recompute or framework.recompute
    parts += [] if again == "none" else [f"recompute={again}"]
    return "-".join(parts)


def even(layers: int, stages: int, text: str) -> tuple[tuple[str, ...], ...]:
    """Stages of equally many blocks under one strategy, the first ones with one more where that does not divide."""
    sizes = [layers // stages + (stage < layers % stages) for stage in range(stages)]
    return uneven(sizes, text)


def uneven(sizes: Sequence[int], text: str) -> tuple[tuple[str, ...], ...]:
    """Stages of so many blocks under one strategy."""
    return tuple((text,) * size for size in sizes)


def _kept(strategy: Strategy) -> Strategy:
    return Strategy(strategy.axes, strategy.zero)
