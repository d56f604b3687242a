"""The tables of published measurements, row by row."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from accuracy.models import Shape
from accuracy.rows import (
    MEGATRON_2021,
    MEGATRON_CORE,
    MEGATRON_DEEPSPEED,
    MIST,
    TORCHTITAN,
    VTRAIN,
    Framework,
    Row,
    even,
    strategy,
    uneven,
)
from galvatron.ir.cluster import Cluster

Record = dict[str, str]


def gpt(record: Record, framework: Framework) -> Shape:
    """The GPT of a record in the common columns."""
    return Shape(
        family="gpt",
        layers=int(record["layers"]),
        width=int(record["hidden"]),
        heads=int(record["heads"]),
        sequence=int(record["seq_len"]),
        vocabulary=int(record["vocab"]),
        hidden=int(record["ffn"]),
        key_heads=int(record["heads"]),
        flash=framework.flash,
        fused_softmax=framework.fused,
        dropout=framework.dropout,
    )


SC21 = {
    "GPT 1.7B": (16, 1),
    "GPT 3.6B": (16, 1),
    "GPT 7.5B": (16, 1),
    "GPT 18.4B": (8, 1),
    "GPT 39.1B": (4, 1),
    "GPT 76.1B": (2, 3),
    "GPT 145.6B": (2, 2),
    "GPT 310.1B": (1, 2),
    "GPT 529.6B": (1, 3),
    "GPT 1008.0B": (1, 1),
}
"""Samples of a micro-batch and stages per pipeline rank, from NVIDIA/Megatron-LM (79a3bb6b)
`examples/sc21/run_table_1.sh`."""


def megatron_sc21(path: Path) -> Iterator[Row]:
    """Narayanan et al. 2021, table 1."""
    for record in _records(path):
        samples, interleaved = SC21[record["model"]]
        dp, tp, pp, batch = (int(record[key]) for key in ("dp", "tp", "pp", "global_batch_seqs"))
        shape = gpt(record, MEGATRON_2021)
        yield Row(
            table=path.stem,
            name=record["model"],
            shape=shape,
            precision="f16",
            cluster=MEGATRON_2021.on(f"a100-80g:{int(record['n_gpus']) // 8}x8"),
            batch=batch,
            micro_batches=batch // dp // samples,
            schedule=_schedule(interleaved),
            stages=even(shape.layers, pp * interleaved, strategy(MEGATRON_2021, dp, tp)),
            framework=MEGATRON_2021,
            step_s=float(record["step_time_s"]),
        )


def korthikanti(path: Path) -> Iterator[Row]:
    """Korthikanti et al. 2022, table 5; what they call selective computes the cores of attention again."""
    for record in _records(path):
        tp, pp, interleaved, batch = (int(record[key]) for key in ("tp", "pp", "vpp", "global_batch_seqs"))
        shape = gpt(record, MEGATRON_2021)
        again = "full" if record["recompute"] == "full" else "attention"
        text = strategy(MEGATRON_2021, 1, tp, recompute=again, sp=record["seq_parallel"] == "1")
        yield Row(
            table=path.stem,
            name=f"{record['model']} {again}",
            shape=shape,
            precision="f16",
            cluster=MEGATRON_2021.on(f"a100-80g:{int(record['n_gpus']) // 8}x8"),
            batch=batch,
            micro_batches=batch // int(record["microbatch"]),
            schedule=_schedule(interleaved),
            stages=even(shape.layers, pp * interleaved, text),
            framework=MEGATRON_2021,
            step_s=float(record["step_time_s"]),
        )


def megatron_core(path: Path) -> Iterator[Row]:
    """Weak scaling of Megatron-Core on H100. Not said there: micro-batches are of one sample, nothing is computed
    again, and stages have the most layers, up to five, that divide those of a rank (as in the scripts of SC'21)."""
    for record in _records(path):
        dp, tp, pp, batch = (int(record[key]) for key in ("dp", "tp", "pp", "global_batch_seqs"))
        shape, devices = gpt(record, MEGATRON_CORE), int(record["n_gpus"])
        own = shape.layers // pp
        interleaved = own // max(n for n in range(1, 6) if own % n == 0) if pp > 1 else 1
        flop = _megatron_flop(shape, batch)
        yield Row(
            table=path.stem,
            name=record["model"],
            shape=shape,
            precision="bf16",
            cluster=MEGATRON_CORE.on(f"h100-80g:{devices // 8}x8"),
            batch=batch,
            micro_batches=batch // dp,
            schedule=_schedule(interleaved),
            stages=even(shape.layers, pp * interleaved, strategy(MEGATRON_CORE, dp, tp)),
            framework=MEGATRON_CORE,
            step_s=flop / devices / (float(record["tflops_per_gpu"]) * 1e12),
        )


def torchtitan(path: Path) -> Iterator[Row]:
    """Llama 3.1 by torchtitan, which writes norms out, and under selective checkpointing keeps every second product of
    a layer (`selective_ac_option = 'op'`)."""
    for record in _records(path):
        dp, tp, cp, pp, batch, devices = (
            int(record[key]) for key in ("dp", "tp", "cp", "pp", "global_batch_seqs", "n_gpus")
        )
        shape = replace(
            gpt(record, TORCHTITAN), family="llama", key_heads=int(record["kv_heads"]), norm_written=True, tied=False
        )
        again = "full" if record["recompute"] == "full" else "alternate"
        framework = replace(TORCHTITAN, overlaps_layers="AsyncTP" in record["compile_or_kernel"])
        tokens_per_s = float(record["tokens_per_s_per_gpu"]) * devices
        yield Row(
            table=path.stem,
            name=f"{record['model']} {record['precision']} {record['compile_or_kernel']} {shape.sequence} x{devices}",
            shape=shape,
            precision="bf16",
            cluster=TORCHTITAN.on(f"{'h100-96g' if 'H100' in record['gpu'] else 'h200-141g'}:{devices // 8}x8"),
            batch=batch,
            micro_batches=1,
            schedule="1f1b",
            stages=even(shape.layers, pp, strategy(TORCHTITAN, dp, tp, cp=cp, recompute=again)),
            framework=framework,
            step_s=batch * shape.sequence / tokens_per_s,
            peak_bytes=(float(record["peak_mem_gib"]) * 2**30,) if record["peak_mem_gib"] else (),
            compiled="compile" in record["compile_or_kernel"],
            refused="programs have no 8-bit floats" if "fp8" in record["precision"] else "",
        )


def vtrain(path: Path) -> Iterator[Row]:
    """Megatron-style GPTs on one node (Bang et al. 2024), by 1F1B and without buckets of gradients
    (`config/validation/single` in VIA-Research/vTrain, f8dda84).

    These times are made up of parts, and not measured as wholes: they are linear in micro-batches to the last digit,
    and a layer takes as long in every pipeline and next to any number of replicas. A layer of width 1,024 takes 3 ms
    for any batch up to 2,048 tokens, which is that of a process that is traced.
    """
    columns = ("# layers", "hidden size", "attention heads", "sequence length", "# GPUs", "global batch", "micro batch")
    for record in _records(path):
        layers, width, heads, sequence, devices, batch, samples = (int(record[column]) for column in columns)
        tp, dp, pp = (int(record[f"{kind} parallelism"]) for kind in ("tensor", "data", "pipeline"))
        shape = Shape(
            "gpt", layers, width, heads, sequence, 51200, 4 * width, heads, fused_softmax=VTRAIN.fused,
            dropout=VTRAIN.dropout,
        )  # fmt: skip
        yield Row(
            table=path.stem,
            name=f"{layers}x{width} dp{dp} tp{tp} pp{pp} {batch}/{samples}",
            shape=shape,
            precision="f16",
            cluster=VTRAIN.on(f"a100-80g:1x{devices}"),
            batch=batch,
            micro_batches=batch // dp // samples,
            schedule="1f1b",
            stages=even(layers, pp, strategy(VTRAIN, dp, tp)),
            framework=VTRAIN,
            step_s=float(record["iteration time (ms)"]) / 1e3,
        )


SAILOR = {
    "GPT-NEO": Shape(
        "gpt", 32, 2560, 20, 2048, 50257, 10240, 20, dropout=MEGATRON_DEEPSPEED.dropout, scores_dropped=False,
        headless=True,
    ),
    "OPT-350": Shape(
        "gpt", 24, 1024, 16, 2048, 50272, 4096, 16, dropout=MEGATRON_DEEPSPEED.dropout, activation="relu", narrow=512,
        norm_first=False, scores_dropped=False, headless=True,
    ),
}  # fmt: skip
"""GPT-Neo-2.7B and OPT-350M at 2,048 tokens, as Sailor writes the former: without a head, its loss is that of features
(`third_party/Megatron-DeepSpeed/megatron/model/gpt_neo_model.py`, eth-easl/sailor, 494eaa5), without dropout of scores.
The latter, whose file was not to be had, is taken to be alike."""


def sailor(path: Path) -> Iterator[Row]:
    """Sailor's runs; stages count embedding and head as layers."""
    for record in _records(path):
        place, model, *_ = record["file"].split("/")
        shape = SAILOR.get(model, SAILOR["OPT-350"])
        dp, tp, pp, batch, samples = (int(record[key]) for key in ("dp", "tp", "pp", "gbs", "mbs"))
        sizes = [int(size) for size in record["layers"].split("|")]
        refused = "devices of several kinds" if "+" in record["gpus"] else ""
        if sum(sizes) != shape.layers + 2:
            refused = f"{sum(sizes)} layers are not those of {model}"
        sizes[0] -= 1
        sizes[-1] -= 1
        yield Row(
            table=path.stem,
            name=f"{place} {model} dp{dp} tp{tp} pp{pp} {batch}/{samples}",
            shape=shape,
            precision=MEGATRON_DEEPSPEED.precision,
            cluster=MEGATRON_DEEPSPEED.on(f"gh200-96g:{record['nodes']}x{tp}"),
            batch=batch,
            micro_batches=batch // dp // samples,
            schedule="1f1b",
            stages=uneven(sizes, strategy(MEGATRON_DEEPSPEED, dp, tp)),
            framework=MEGATRON_DEEPSPEED,
            step_s=float(record["iter_s"]),
            peak_bytes=(float(record["max_mem_bytes"]),),
            of_process=True,
            refused=refused,
        )


Tuned = tuple[int, int, tuple[tuple[int, int], ...]]

MIST_PLANS: dict[str, Tuned] = {
    "1.3b-s_2048-v_50304-b_32-n_1-m_2-f_False": (32, 1, ((13, 0), (11, 0))),
    "1.3b-s_2048-v_50304-b_32-n_1-m_2-f_True": (16, 1, ((13, 0), (11, 0))),
    "2.7b-s_2048-v_50304-b_64-n_1-m_4-f_False": (64, 1, ((7, 2), (8, 1), (9, 0), (8, 0))),
    "2.7b-s_2048-v_50304-b_64-n_1-m_4-f_True": (32, 2, ((17, 0), (15, 0))),
    "7b-s_2048-v_50304-b_128-n_1-m_8-f_False": (64, 2, ((7, 5), (8, 1), (9, 0), (8, 0))),
    "7b-s_2048-v_50304-b_128-n_1-m_8-f_True": (64, 2, ((7, 3), (8, 2), (9, 0), (8, 0))),
}
"""Micro-batches, `dp`, and per stage its layers and how many of them are computed again, from Dazz993/Mist (38955576)
`benchmark/mist/tuned_configs/l4-24gb/gpt`. The two 7B plans also move between an eighth and seven eighths of the
optimizer's state to the host, on some stages."""

MIST_SIZES = {"1.3b": (24, 2048, 16), "2.7b": (32, 2560, 32), "7b": (32, 4096, 32)}


def mist(path: Path) -> Iterator[Row]:
    """Mist's plans on L4."""
    for record in _records(path):
        size, *rest = record["case"].split("-")
        facts = dict(fact.split("_") for fact in rest)
        layers, width, heads = MIST_SIZES[size]
        shape = Shape(
            "gpt", layers, width, heads, int(facts["s"]), int(facts["v"]), 4 * width, heads, flash=facts["f"] == "True",
            fused_softmax=MIST.fused, biases=False, tied=False,
        )  # fmt: skip
        micro_batches, dp, stages = MIST_PLANS[record["case"]]
        plain, again = (strategy(MIST, dp, 1, recompute=kind) for kind in ("none", "full"))
        yield Row(
            table=path.stem,
            name=record["case"],
            shape=shape,
            precision="f16",
            cluster=_slow_l4(int(facts["n"]), int(facts["m"])),
            batch=int(facts["b"]),
            micro_batches=micro_batches,
            schedule="1f1b",
            stages=tuple((again,) * count + (plain,) * (own - count) for own, count in stages),
            framework=MIST,
            step_s=float(record["step_s"]),
            peak_bytes=tuple(float(peak) * 2**20 for peak in record["stage_peak_allocated_mb"].split()),
            offloads=size == "7b",
        )


TABLES: dict[str, Callable[[Path], Iterator[Row]]] = {
    "megatron_sc21_table1": megatron_sc21,
    "korthikanti22_table5": korthikanti,
    "mcore_h100_weak_scaling": megatron_core,
    "torchtitan_llama3": torchtitan,
    "vtrain_a100_single_node": vtrain,
    "sailor_validation": sailor,
    "mist_l4": mist,
}
"""What reads each file."""


def rows_of(table: str, directory: Path) -> list[Row]:
    """The rows of a table."""
    return list(TABLES[table](directory / f"{table}.csv"))


def _records(path: Path) -> list[Record]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _schedule(stages_per_rank: int) -> str:
    return "1f1b" if stages_per_rank == 1 else f"interleaved{stages_per_rank}"


def _megatron_flop(shape: Shape, batch: int) -> float:
    """What Megatron-Core counts when it says FLOP: forward and backward, attention as if nothing were masked."""
    width, layers = shape.width, shape.layers
    once = 1 + shape.sequence / (6 * width) + shape.vocabulary / (12 * width * layers)
    return 72 * batch * shape.sequence * layers * width**2 * once


def _slow_l4(nodes: int, devices: int) -> Cluster:
    """L4 held at 1,050 of its 2,040 MHz, as Mist's instructions set it (`nvidia-smi -ac 6251,1050`)."""
    cluster = Cluster.parse(f"l4:{nodes}x{devices}")
    rates = tuple((dtype, rate * 1050 / 2040) for dtype, rate in cluster.device.matmul_flop_per_s)
    device = replace(cluster.device, name="l4-1050mhz", matmul_flop_per_s=rates)
    return replace(cluster, name=f"l4-1050mhz:{nodes}x{devices}", device=device)
