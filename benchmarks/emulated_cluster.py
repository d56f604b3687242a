"""Throughput of plans against hand-written baselines on two nodes with a slow link between them, on one machine.

    sudo python benchmarks/emulated_cluster.py [--rate 200mbit] [--ranks-per-node 2] [--plan pp2/m4/1f1b/dp2 ...]

Nodes are network namespaces (`common/network.py`), ranks have one thread each. A plan is a shorthand, a plan file, or
`search` for the one that the compiler finds on this cluster, whose device and links are measured first. Each contestant
is a job of its own, so that its memory can be seen; contestants take turns over several rounds. The ratio is that of
throughputs, to the best baseline in the same round: above 1 means that the plan is faster.

Without Linux, root, `ip` or `tc` it says so and ends well.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import memory, peers
from common.jobs import start_rank
from common.launch import JobFailed, Launcher
from common.llama import Llama, Size, batch_of
from common.measure import Spread, in_turn, ratios, sent_by
from common.network import NetworkUnavailable, two_nodes
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table
from torch.distributed.device_mesh import init_device_mesh

import galvatron
from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.profiler.local import local_cluster
from galvatron.profiler.meter import QUICK
from galvatron.units import format_bytes, parse_bytes

NODES = 2
TOLERANCE = 1e-5
"""Relative difference of the first losses in float32."""


def _hybrid(model: Llama) -> peers.Step:
    shape = (NODES, dist.get_world_size() // NODES)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards"))
    return peers.fully_sharded(model, reshard_after_forward=True, mesh=mesh)


def _pipelined(model: Llama, size: Size) -> peers.Step:
    """One stage per node, replicated inside."""
    return peers.pipeline(model, peers.balanced_cuts(size, NODES), 2 * NODES)


BASELINES: dict[str, Callable[[Llama, Size], peers.Step]] = {
    "ddp": lambda model, size: peers.data_parallel(model),
    "fsdp2": lambda model, size: peers.fully_sharded(model, reshard_after_forward=False),
    "fsdp2-reshard": lambda model, size: peers.fully_sharded(model, reshard_after_forward=True),
    "hsdp": lambda model, size: _hybrid(model),
    "tp": lambda model, size: peers.tensor_parallel(model, sequence_parallel=False),
    "pp": _pipelined,
}
DEFAULT_BASELINES = ["ddp", "fsdp2", "fsdp2-reshard", "pp"]


@dataclass(frozen=True)
class Sample:
    """What one job measured.

    Attributes:
        plan: what was run, for a reader.
        step_s: wall-clock seconds of the slowest rank, median over the steps.
        peak_bytes: that tensors held at the most during a step, on the rank where it is the most.
        first_loss: before any update.
        predicted_s: by the compiler, if it did.
        sent: by rank 0 in a step.
    """

    plan: str
    step_s: float
    peak_bytes: int
    first_loss: float
    predicted_s: float | None
    sent: str


@dataclass(frozen=True)
class Row:
    """One contestant: samples per second over the rounds, and their ratio to the best baseline's in the same round."""

    contestant: str
    plan: str
    samples_per_s: Spread
    ratio_to_best_baseline: Spread | None
    step_s: Spread
    predicted_s: float | None
    peak_bytes: int
    fits: bool
    sent: str


def rank_main(job: dict[str, Any]) -> None:
    """One rank of a job: the cluster's figures, or a `Sample`; rank 0 leaves them where `JOB_RESULT` says."""
    start_rank()
    result = json.loads(local_cluster(effort=QUICK).to_json()) if job["kind"] == "calibrate" else sample(job)
    if int(os.environ["RANK"]) == 0:
        Path(os.environ["JOB_RESULT"]).write_text(json.dumps(result))
    rt.shutdown()


def sample(job: dict[str, Any]) -> dict[str, Any]:
    """A `Sample` as a dictionary, or `{"refused": why}`."""
    size = Size(**job["size"])
    batch = batch_of(size, job["samples"], 0)
    predicted_s, plan = None, job["contestant"]
    with memory.watched() as watched:
        torch.manual_seed(0)
        model = Llama(size)
        if job["contestant"] in BASELINES:
            step = BASELINES[job["contestant"]](model, size)
        else:
            try:
                program = _compiled(model, batch, job)
            except GalvatronError as error:
                return {"refused": str(error)}
            step, predicted_s, plan = program.train_step, program.plan.step_time_s, str(program.plan)
        del model
        ready = partial(step, batch)
        first_loss = float(ready())  # it makes the optimizer's state
        watched.begin()
        ready()
    sent = sent_by(ready)
    times = in_turn({"step": ready}, job["steps"], warm=1)["step"]
    peak = torch.tensor(watched.peak_bytes)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    return asdict(Sample(plan, statistics.median(times.wall_s), int(peak), first_loss, predicted_s, sent))


def _compiled(model: Llama, batch: peers.Batch, job: dict[str, Any]) -> galvatron.CompiledModel:
    searched = job["contestant"] == "search"
    return galvatron.compile(
        model,
        batch,
        plan=None if searched else job["contestant"],
        cluster=Cluster.from_json(json.dumps(job["cluster"])),
        memory=job["memory"] if searched else None,
        optimizer=peers.adamw,
    )


def calibrated(launcher: Launcher, ranks_per_node: int) -> Cluster:
    """The emulated cluster, by a profile that all its ranks take at once: they share cores, and those of a node its
    link."""
    return _cluster(launcher.run({"kind": "calibrate"}, [ranks_per_node] * NODES))


def _cluster(document: dict[str, Any]) -> Cluster:
    return Cluster.from_json(json.dumps(document))


def rounds_of(run: Callable[[str], dict[str, Any]], contestants: Sequence[str], rounds: int) -> dict[str, list[Sample]]:
    """Samples of every contestant, one per round; each round begins with another one. Those refused are left out."""
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}
    for turn in range(rounds):
        names = list(samples)
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            result = run(name)
            if "refused" in result:
                print(f"{name} skipped: {result['refused']}", file=sys.stderr)
                del samples[name]
                continue
            samples[name].append(Sample(**result))
            print(f"round {turn + 1}: {name} {samples[name][-1].step_s:.3f} s a step", file=sys.stderr, flush=True)
    return samples


def rows_of(
    samples: dict[str, list[Sample]],
    batch: int,
    memory_bytes: int | None,
    baselines: Collection[str] = tuple(BASELINES),
) -> list[Row]:
    """The rows, best first.

    Args:
        batch: samples in a step.
        memory_bytes: a baseline that holds more is not the best one, however fast.
        baselines: to the best of which ratios are.

    Raises:
        AssertionError: the contestants do not compute the same loss.
    """
    losses = {name: found[0].first_loss for name, found in samples.items()}
    reference = statistics.median(losses.values()) if losses else 0.0
    for name, loss in losses.items():
        assert abs(loss - reference) <= TOLERANCE * abs(reference), f"{name}: first loss {loss}, others {reference}"
    rates = {name: [batch / s.step_s for s in found] for name, found in samples.items()}
    peaks = {name: max(s.peak_bytes for s in found) for name, found in samples.items()}
    fits = {name: memory_bytes is None or peak <= memory_bytes for name, peak in peaks.items()}
    fitting = [name for name in samples if name in baselines and fits[name]]
    best = max(fitting, key=lambda name: statistics.median(rates[name]), default=None)
    rows = [
        Row(
            contestant=name,
            plan=found[0].plan,
            samples_per_s=Spread.of(rates[name]),
            ratio_to_best_baseline=ratios(rates[name], rates[best]) if best else None,
            step_s=Spread.of([s.step_s for s in found]),
            predicted_s=found[0].predicted_s,
            peak_bytes=peaks[name],
            fits=fits[name],
            sent=found[0].sent,
        )
        for name, found in samples.items()
    ]
    return sorted(rows, key=lambda row: -row.samples_per_s.median)


def print_rows(rows: list[Row]) -> None:
    table = Table(title="Throughput, samples/s, and ratio to the best baseline that fits: median (quartiles)")
    for heading in ("contestant", "samples/s", "ratio", "step", "predicted", "peak memory"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        predicted = "" if row.predicted_s is None else f"{row.predicted_s:.3f} s"
        peak = format_bytes(row.peak_bytes) + ("" if row.fits else ", too much")
        ratio = "" if row.ratio_to_best_baseline is None else str(row.ratio_to_best_baseline)
        table.add_row(row.contestant, str(row.samples_per_s), ratio, f"{row.step_s.median:.3f} s", predicted, peak)
    Console(width=max(120, Console().width)).print(table)
    for row in rows:
        print(f"{row.contestant}: {row.plan} sends {row.sent}")


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plan", action="append", metavar="PLAN", help="shorthand, file, or search; repeatable")
    parser.add_argument("--baselines", type=_names, default=DEFAULT_BASELINES, help=f"of {','.join(BASELINES)}")
    parser.add_argument("--against", action="append", metavar="PLAN", help="one that counts as a baseline; repeatable")
    parser.add_argument("--ranks-per-node", type=int, default=2)
    parser.add_argument("--rate", default="200mbit", help="of the link between the nodes, as tc writes it")
    parser.add_argument("--memory", type=parse_bytes, default=None, help="budget per rank, such as 120MiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="timed in each round")
    parser.add_argument("--samples", type=int, default=8, help="in the global batch")
    sizes = Size(vocabulary=1024, width=256, hidden=704, heads=8, layers=8, sequence=128)
    for field in dataclasses.fields(Size):
        parser.add_argument(f"--{field.name}", type=int, default=getattr(sizes, field.name))
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    per_node = arguments.ranks_per_node
    arguments.against = arguments.against or []
    arguments.plan = arguments.plan or [f"dp{NODES * per_node}", f"pp2/m4/1f1b/dp{per_node}", "search"]
    return arguments


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown baseline {unknown[0]!r}; there are {', '.join(BASELINES)}")
    return names


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Runs everything and writes the results.

    Raises:
        NetworkUnavailable: this machine cannot emulate the network.
        JobFailed: a contestant crashed.
    """
    size = Size(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Size)})
    before = conditions()
    per_node = arguments.ranks_per_node
    with two_nodes(arguments.rate) as nodes:
        launcher = Launcher(Path(__file__), nodes)
        cluster = calibrated(launcher, per_node)
        print(f"links: {', '.join(map(str, cluster.levels))}", file=sys.stderr)
        job = {
            "kind": "sample",
            "size": asdict(size),
            "samples": arguments.samples,
            "steps": arguments.steps,
            "cluster": json.loads(cluster.to_json()),
            "memory": arguments.memory,
        }
        samples = rounds_of(
            lambda name: launcher.run({**job, "contestant": name}, [per_node] * NODES),
            [*arguments.baselines, *arguments.against, *arguments.plan],
            arguments.rounds,
        )
    rows = rows_of(samples, arguments.samples, arguments.memory, (*BASELINES, *arguments.against))
    facts = {
        "rate": arguments.rate,
        "ranks_per_node": per_node,
        "memory_bytes": arguments.memory,
        "parameters": size.parameters,
        "size": asdict(size),
        "samples": arguments.samples,
        "rounds": arguments.rounds,
        "steps": arguments.steps,
        "cluster": json.loads(cluster.to_json()),
    }
    key = ("contestant", "rate", "ranks_per_node", "memory_bytes", "parameters", "samples")
    save("emulated_cluster", [entry(row, before, **facts) for row in rows], key=key)
    return rows


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(sys.argv[1:] if words is None else words)
    if arguments.job:
        rank_main(json.loads(arguments.job))
        return 0
    try:
        rows = measure(arguments)
    except NetworkUnavailable as error:
        print(f"emulated cluster skipped: {error}")
        return 0
    except JobFailed as error:
        print(f"emulated cluster failed: {error}", file=sys.stderr)
        return 1
    print_rows(rows)
    if warning := busy():
        print(warning, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
