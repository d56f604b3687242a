"""The cost model against steps that are measured here: plans of every kind on four ranks that share this machine.

    python benchmarks/cost_accuracy.py [--plain] [--emulated] [--model NAME ...] [--only PLAN ...] [--rounds 7]
    python benchmarks/cost_accuracy.py --predict-only benchmarks/results/cost_accuracy.json

On the plain machine, and as root on two emulated nodes with a slow link between them (`common/network.py`). The
hardware is profiled first; then all plans of a model run in one job, in turns, so that a busy machine hits all alike.
Results, profiles and scatter plots are kept, and with `--predict-only` the plans are predicted again for what was
measured then.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from accuracy.local import Comparison, Summary, summary
from accuracy.models import Shape
from accuracy.plans import MODELS, RANKS, Model
from accuracy.scatter import scatter
from accuracy.steps import Measured, measured, teller
from common.jobs import start_rank
from common.launch import JobFailed, Launcher
from common.network import HERE, NetworkUnavailable, signals_as_exceptions, two_nodes
from common.results import RESULTS, busy, conditions, save
from rich.console import Console
from rich.table import Table

import galvatron
from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.ir.program import Program
from galvatron.offline import Estimate
from galvatron.profiler import document, hardware, meter
from galvatron.profiler.clusters import cluster_in
from galvatron.units import format_bytes

NETWORKS = ("plain", "emulated")
KEY = ("network", "model", "plan")

PROFILE_S = 150.0
"""For the sizes of a quick profile, so that messages on a slow link are sent more than once."""


def rank_main(job: dict[str, Any]) -> None:
    """One rank of a job: the profile of the hardware as text, or what the plans of a model took; rank 0 leaves them
    where `JOB_RESULT` says."""
    if job["realtime"]:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    start_rank()
    told = teller(job["tells"], os.environ["RANK"] == "0")
    if job["kind"] == "profile":
        effort = replace(meter.QUICK, total_s=PROFILE_S)
        result: Any = document.print_profiles([hardware.profile_hardware(rt.initialize(), effort)])
    else:
        cluster = cluster_in(job["profile"])
        model = Model(Shape(**job["shape"]), job["samples"], tuple(job["plans"]))
        result = dict(measured(model, cluster, job["rounds"], told))
    if os.environ["RANK"] == "0":
        Path(os.environ["JOB_RESULT"]).write_text(json.dumps(result), encoding="utf-8")
    rt.shutdown()


@contextmanager
def launched(network: str, rate: str) -> Iterator[tuple[Launcher, list[int]]]:
    """What starts jobs on a network, and the ranks on each of its nodes.

    Raises:
        NetworkUnavailable: this machine cannot emulate it.
    """
    if network == "plain":
        with signals_as_exceptions():
            yield Launcher(Path(__file__), [HERE]), [RANKS]
        return
    with two_nodes(rate) as nodes:
        yield Launcher(Path(__file__), nodes), [RANKS // 2] * 2


def measure(network: str, arguments: argparse.Namespace) -> None:
    """Measures the plans on a network, and keeps what was found.

    Raises:
        NetworkUnavailable: see `launched`.
        JobFailed: a rank crashed.
    """
    profile = profile_path(arguments.out, network)
    tells = f"/proc/{os.getpid()}/fd/2"
    with launched(network, arguments.rate) as (launcher, ranks):
        if arguments.profile or not profile.exists():
            print(f"{network}: profiling the hardware", file=sys.stderr, flush=True)
            text = launcher.run({"kind": "profile", "tells": tells, "realtime": arguments.realtime}, ranks)
            profile.parent.mkdir(parents=True, exist_ok=True)
            profile.write_text(str(text), encoding="utf-8")
        for name in arguments.model:
            model = MODELS[name]
            plans = [plan for plan in model.plans if not arguments.only or plan in arguments.only]
            if not plans:
                continue
            before = conditions("galvatron")
            job = {
                "kind": "steps",
                "tells": tells,
                "realtime": arguments.realtime,
                "shape": asdict(model.shape),
                "samples": model.samples,
                "plans": plans,
                "rounds": arguments.rounds,
                "profile": str(profile.resolve()),
            }
            found = launcher.run(job, ranks)
            facts = {
                "network": network,
                "rate": None if network == "plain" else arguments.rate,
                "model": name,
                "realtime": arguments.realtime,
                "conditions": {**before, "load_average_after": os.getloadavg()},
            }
            save("cost_accuracy", [{**facts, "plan": plan, **row} for plan, row in found.items()], KEY, arguments.out)


def profile_path(results: Path, network: str) -> Path:
    """Where the profile of a network is, beside the results that were measured with it."""
    return results.with_suffix("") / f"{network}.profile.json"


@lru_cache
def program_of(model: str) -> Program:
    return galvatron.capture(MODELS[model].build(), MODELS[model].batch())


def predicted(row: dict[str, Any], cluster: Cluster) -> Estimate:
    """What is predicted for a row.

    Raises:
        GalvatronError: the plan is refused.
    """
    model = MODELS[row["model"]]
    return galvatron.estimate(program_of(row["model"]), row["plan"], cluster, global_batch_size=model.samples)


def compared(results: Path, arguments: argparse.Namespace) -> list[Comparison]:
    """Predictions beside what was measured; they are kept in the results, too."""
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    clusters = {network: cluster_in(profile_path(results, network)) for network in {row["network"] for row in rows}}
    found: list[Comparison] = []
    for row in rows:
        chosen = row["network"] in arguments.networks and row["model"] in arguments.model
        if "refused" in row or not chosen or (arguments.only and row["plan"] not in arguments.only):
            continue
        try:
            estimate = predicted(row, clusters[row["network"]])
        except GalvatronError as error:
            print(f"{row['plan']} is refused: {error}", file=sys.stderr)
            continue
        taken = Measured(**{name: tuple(row[name]) for name in Measured.__dataclass_fields__})
        one = Comparison(row["network"], row["model"], row["plan"], taken, estimate)
        row.update(predicted_s=one.predicted_s, predicted_bytes=list(one.predicted_bytes))
        found.append(one)
    save("cost_accuracy", rows, KEY, results)
    return found


def print_comparisons(found: Sequence[Comparison]) -> None:
    table = Table(title="Predicted and measured steps")
    for heading in (
        "network", "model", "plan", "predicted", "measured", "spread", "error", "memory", "measured", "error",
        "computing", "collectives", "stages",
    ):  # fmt: skip
        table.add_column(heading, no_wrap=True)
    for one in sorted(found, key=lambda one: (one.network, one.model, one.plan)):
        taken, worst = one.measured, max(one.memory_errors, key=abs)
        peaks = one.peaks[one.memory_errors.index(worst)]
        table.add_row(
            one.network, one.model, one.plan, f"{one.predicted_s:.3f} s", f"{taken.median_s:.3f} s",
            f"{taken.spread:.0%}", f"{one.error:+.1%}", format_bytes(peaks[0]), format_bytes(peaks[1]),
            f"{worst:+.1%}",
            *(f"{max(figures):.3f} s" for figures in (taken.compute_s, taken.waiting_s, taken.bubble_s)),
        )  # fmt: skip
    Console(width=max(180, Console().width)).print(table)


def print_summaries(figures: Sequence[Summary]) -> None:
    table = Table(title="Errors of predictions")
    for heading in ("network", "plans", "median", "worst", "bias", "order", "memory median", "memory low", "spread"):
        table.add_column(heading)
    for one in figures:
        table.add_row(
            one.network, str(one.plans), f"{one.median:.1%}", f"{one.worst:.1%}", f"{one.bias:+.1%}",
            "-" if one.order is None else f"{one.order:.3f}", f"{one.memory_median:.1%}", f"{one.memory_low:+.1%}",
            f"{one.spread:.1%}",
        )  # fmt: skip
    Console(width=max(120, Console().width)).print(table)


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plain", action="append_const", dest="networks", const="plain", help="this machine as it is")
    parser.add_argument("--emulated", action="append_const", dest="networks", const="emulated", help="two nodes")
    parser.add_argument("--model", action="append", choices=list(MODELS), help="only this one; repeatable")
    parser.add_argument("--only", action="append", metavar="PLAN", help="only this one; repeatable")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each plan")
    parser.add_argument("--rate", default="200mbit", help="of the link between the nodes, as tc writes it")
    parser.add_argument(
        "--realtime", action="store_true", help="ranks go before all other programs of a busy machine (root, Linux)"
    )
    parser.add_argument("--profile", action="store_true", help="profile the hardware again where there is a profile")
    parser.add_argument("--predict-only", type=Path, metavar="FILE", help="results to predict again")
    parser.add_argument("--out", type=Path, default=RESULTS / "cost_accuracy.json", help="where results are kept")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    arguments.networks = arguments.networks or list(NETWORKS)
    arguments.model = arguments.model or list(MODELS)
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(sys.argv[1:] if words is None else words)
    if arguments.job:
        rank_main(json.loads(arguments.job))
        return 0
    if arguments.predict_only is None:
        for network in arguments.networks:
            try:
                measure(network, arguments)
            except NetworkUnavailable as error:
                print(f"{network} network skipped: {error}")
            except JobFailed as error:
                print(f"{network} network failed: {error}", file=sys.stderr)
                return 1
        if warning := busy():
            print(warning, file=sys.stderr)
    results = arguments.predict_only or arguments.out
    if not results.exists():
        return 0
    found = compared(results, arguments)
    figures: list[Summary] = []
    for network in dict.fromkeys(one.network for one in found):
        rows = [one for one in found if one.network == network]
        figures.append(summary(network, rows))
        drawing = scatter(f"{network} network", [(one.measured.median_s, one.predicted_s) for one in rows])
        (results.with_suffix("") / f"{network}.svg").write_text(drawing, encoding="utf-8")
    print_comparisons(found)
    print_summaries(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
