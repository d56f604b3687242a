"""What a search of the whole space costs, and how good its plans are by the same cost model.

    python benchmarks/search.py [--parts budgets,scale,unlike] [--quick] [--budgets 16,24,36,48,80] [--batches 8,32,128]

Each search begins in a process of its own, with a captured program and nothing kept from earlier ones (cold); it is
made again in another process, which finds the costs that the first one kept on the disk, but no plan (warm), and once
more in that (again). Counted are CPU seconds of the process and its children after the program is read.

Plans are compared with every uniform plan (one strategy of the whole space for all layers, balanced stages, every
pipeline degree and number of micro-batches), with what people choose by hand (replicas; full sharding), with searches
of less (data and tensor parallelism; data and pipeline parallelism), and with the plan that Galvatron-2 publishes for
this model. A ratio is the peer's predicted step time to ours: above 1 we are faster.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accuracy.models import LLAMA_2_7B, LLAMA_3_405B, Shape
from accuracy.programs import program_of
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import galvatron
from galvatron.costs.estimate import cost_model, setting_of
from galvatron.costs.objective import evaluate_plan, memory_of_ranks
from galvatron.errors import GalvatronError
from galvatron.forms import with_costs
from galvatron.ir.cluster import Cluster
from galvatron.ir.files import cache_directory
from galvatron.ir.plan import Plan
from galvatron.ir.planned import PlanShorthand, fitted
from galvatron.ir.program import Program
from galvatron.passes.planning.enumerate_strategies import EnumerateStrategies
from galvatron.passes.planning.tree import divisors

T5 = Shape("t5", 24, 1024, 16, 512, 32128, 4096, 16)
"""T5-large, with as many layers in the encoder as in the decoder."""

UNLIKE = Shape("unlike", 100, 1024, 1, 512, 0, 1024, 1)
GALVATRON_2 = (
    Path(__file__).parents[2] / "shared/data/galvatron2/galvatron_config_llama2-7b_1nodes_8gpus_per_node_36GB_bf16.json"
)


@dataclass(frozen=True)
class Case:
    """A search.

    Attributes:
        budget: of memory, such as "36GiB"; "" for the cluster's own.
        compared: whether its plan is compared with others.
    """

    part: str
    shape: Shape
    cluster: str
    batch: int
    budget: str = ""
    compared: bool = False

    @property
    def name(self) -> str:
        return f"{self.shape.family} of {self.shape.layers} layers, {self.cluster}, {self.batch}, {self.budget or '-'}"


@dataclass(frozen=True)
class Row:
    """What a search took and found, and the peers' step times relative to its own; None where a peer does not fit."""

    part: str
    case: str
    cold_s: float
    warm_s: float
    again_s: float
    peak_mib: float
    plan: str
    step_time_s: float | None
    gap: float
    ratios: dict[str, float | None]


def cases(parts: Sequence[str], budgets: Sequence[int], batches: Sequence[int]) -> Iterator[Case]:
    if "budgets" in parts:
        for cluster, budget, batch in itertools.product(("a100-80g:1x8", "a100-80g:2x8"), budgets, batches):
            yield Case("budgets", LLAMA_2_7B, cluster, batch, f"{budget}GiB", compared=True)
    if "scale" in parts:
        for layers, devices in ((32, 8), (128, 64), (126, 1024), (126, 16384), (1024, 1024)):
            shape = replace(LLAMA_3_405B, layers=layers)
            yield Case("scale", shape, f"h100-80g:{devices // 8}x8", max(64, devices // 4))
    if "unlike" in parts:
        for shape in (T5, UNLIKE):
            yield Case("unlike", shape, "a100-80g:1x8", 64)


class Unlike(nn.Module):
    """Layers of which no two are alike: each widens to another width."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(shape.width),
                nn.Linear(shape.width, shape.hidden + 64 * number),
                nn.GELU(),
                nn.Linear(shape.hidden + 64 * number, shape.width),
            )
            for number in range(shape.layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x.square().sum()


def program_for(shape: Shape) -> Program:
    """The program of a model; with hundreds of equal layers it is captured with few of them."""
    if shape.family == "llama":
        return program_of(shape, "bf16")
    with torch.device("meta"):
        if shape.family == "unlike":
            batch = {"x": torch.empty(8, shape.sequence, shape.width, dtype=torch.bfloat16)}
            return galvatron.capture(Unlike(shape), batch, precision="bf16")
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(
            vocab_size=shape.vocabulary, d_model=shape.width, d_ff=shape.hidden, num_layers=shape.layers,
            num_heads=shape.heads, d_kv=shape.width // shape.heads, dropout_rate=0.0, use_cache=False,
        )  # fmt: skip
        config.update({"decoder_start_token_id": 0})
        tokens = torch.empty(8, shape.sequence, dtype=torch.long)
        model = T5ForConditionalGeneration(config)
        return galvatron.capture(model, {"input_ids": tokens, "labels": tokens}, precision="bf16")


def run(case: Case, compares: bool) -> dict[str, Any]:
    """In a process of its own: CPU seconds of the search, of the same again, and what it found."""
    program = program_for(case.shape)
    budget = case.budget or None
    plan, seconds = None, []
    refusal = ""
    for _ in range(2):
        shutil.rmtree(cache_directory() / "plans", ignore_errors=True)
        began = _cpu_s()
        try:
            plan = galvatron.search(
                program, case.cluster, memory=budget, global_batch_size=case.batch, cache_dir=cache_directory()
            )
        except GalvatronError as error:
            refusal = str(error)
        seconds.append(_cpu_s() - began)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found: dict[str, Any] = {"first_s": seconds[0], "again_s": seconds[1], "peak_mib": peak_mib, "plan": refusal}
    if plan is not None:
        found |= {"plan": str(plan), "step_time_s": plan.step_time_s, "gap": plan.search.gap}
        if compares:
            found["peers"] = peers(program, case, plan)
    return found


def peers(program: Program, case: Case, plan: Plan) -> dict[str, float | None]:
    """Predicted seconds of a step of what people would choose else, by their names."""
    budget = plan.search.budget_bytes
    costed = with_costs(program, Cluster.parse(case.cluster), case.batch)
    found: dict[str, float | None] = {"uniform": best_uniform(costed, budget)}
    less = {
        "replicas": {"roles": ("dp",), "zero": (0,), "pipeline_degree": 1, "recompute": ("none",)},
        "full sharding": {"roles": ("dp",), "zero": (3,), "pipeline_degree": 1, "recompute": ("none", "full")},
        "dp + tp": {"roles": ("dp", "tp"), "zero": (0,), "pipeline_degree": 1, "recompute": ("none",)},
        "dp + pp": {"roles": ("dp",), "zero": (0,), "recompute": ("none",)},
    }
    for name, options in less.items():
        try:
            best = galvatron.search(
                program,
                case.cluster,
                memory=budget,
                global_batch_size=case.batch,
                search=galvatron.SearchOptions(**options),  # type: ignore[arg-type]  # as they are above
            )
            found[name] = best.step_time_s
        except GalvatronError:
            found[name] = None
    if GALVATRON_2.exists() and (case.cluster, case.batch, case.budget) == ("a100-80g:1x8", 16, "36GiB"):
        other = Plan.from_galvatron2(GALVATRON_2, program)
        found["galvatron-2"] = galvatron.estimate(
            program, other, case.cluster, global_batch_size=case.batch
        ).step_time_s
    return found


def best_uniform(program: Program, budget_bytes: int) -> float | None:
    """The least seconds of a plan with one strategy for all layers that fits; None if none does."""
    model, world_size, best = cost_model(program), program.required_cluster.world_size, None
    every = EnumerateStrategies(heuristics=False).run(program).candidates
    for candidates in {c.pipeline_degree: c for c in every}.values():
        degree = candidates.pipeline_degree
        for count, strategy in itertools.product(divisors(program.batch_size), candidates.strategies):
            if program.batch_size // count % strategy.degree("dp"):
                continue
            shorthand = PlanShorthand(degree, count, "1f1b", strategy)
            plan = fitted(shorthand, program, world_size, program.batch_size)
            setting = setting_of(program, plan)
            step_s, reports = evaluate_plan(model, setting, plan.stages)
            if max(memory.total for memory in memory_of_ranks(setting, reports)) <= budget_bytes:
                best = step_s if best is None else min(best, step_s)
    return best


def _cpu_s() -> float:
    """Of this process and of its children that have ended."""
    return sum(os.times()[:4])


def measured(case: Case) -> Row:
    """The case in processes of its own."""
    with tempfile.TemporaryDirectory() as kept:
        cold, warm = (_alone(case, kept, compares) for compares in (False, case.compared))
    step_s = cold.get("step_time_s")
    peers_s: dict[str, float | None] = warm.get("peers", {})
    return Row(
        part=case.part,
        case=case.name,
        cold_s=cold["first_s"],
        warm_s=warm["first_s"],
        again_s=warm["again_s"],
        peak_mib=cold["peak_mib"],
        plan=cold["plan"],
        step_time_s=step_s,
        gap=cold.get("gap", 0.0),
        ratios={
            name: None if peer_s is None or step_s is None else peer_s / step_s for name, peer_s in peers_s.items()
        },
    )


def _alone(case: Case, kept: str, compares: bool) -> dict[str, Any]:
    told = json.dumps(asdict(case) | {"compares": compares})
    done = subprocess.run(
        [sys.executable, __file__, "--case", told],
        env={**os.environ, "XDG_CACHE_HOME": kept},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{case.name}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def print_rows(rows: list[Row]) -> None:
    table = Table(title="Searches: CPU seconds, and predicted step times of peers relative to ours")
    names = list(dict.fromkeys(name for row in rows for name in row.ratios))
    for heading in ("", "cold", "warm", "again", "MiB", "step", "gap", *names, "plan"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        ratios = [row.ratios.get(name) for name in names]
        table.add_row(
            row.case,
            *(f"{seconds:.2f}" for seconds in (row.cold_s, row.warm_s, row.again_s)),
            f"{row.peak_mib:.0f}",
            "-" if row.step_time_s is None else f"{row.step_time_s:.3f} s",
            f"{row.gap:.2%}",
            *("-" if ratio is None else f"{ratio:.3f}" for ratio in ratios),
            row.plan,
        )
    Console(width=max(200, Console().width)).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["budgets", "scale", "unlike"])
    parser.add_argument("--budgets", type=_numbers, default=[16, 24, 36, 48, 80], help="GiB of a device")
    parser.add_argument("--batches", type=_numbers, default=[8, 16, 32, 64, 128])
    parser.add_argument("--quick", action="store_true", help="one small case: does it run at all")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        told = json.loads(arguments.case)
        compares, shape = told.pop("compares"), Shape(**told.pop("shape"))
        print(json.dumps(run(Case(shape=shape, **told), compares)))
        return 0
    chosen = list(cases(arguments.parts, arguments.budgets, arguments.batches))
    if arguments.quick:
        small = replace(LLAMA_2_7B, layers=4, width=256, heads=4, key_heads=4, hidden=512, sequence=128)
        chosen = [Case("budgets", small, "a100-80g:1x2", 4, "36GiB", compared=True)]
    rows: list[Row] = []
    for case in chosen:
        print(case.name, file=sys.stderr, flush=True)
        before, began = conditions(), time.perf_counter()
        rows.append(measured(case))
        print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        if not arguments.quick:
            save("search", [entry(rows[-1], before)], key=("part", "case"))
    print_rows(rows)
    if warning := busy():
        print(warning, file=sys.stderr)
    return 0


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
