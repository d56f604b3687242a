"""Models with experts: their steps beside expert parallelism by hand, searched plans beside fixed ones, and costs.

    python benchmarks/experts.py peer [--quick] [...]     # options of step_time.py
    sudo python benchmarks/experts.py network [...]       # options of emulated_cluster.py
    python benchmarks/experts.py costs [--quick] [--rounds 7]

`peer` is the case `ep` of `step_time.py`: rows sent by `all_to_all` as torchtitan does it, on 2 and 4 ranks. `network`
is `emulated_cluster.py` for a model with experts, where the plan that a search finds stands beside data parallelism,
ZeRO and tensor parallelism within a budget that plain data parallelism exceeds. `costs` times plans of a model whose
router chooses about evenly, and of one whose router prefers the experts of one rank, beside what is predicted for the
skew that was counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cost_accuracy
import emulated_cluster
import step_time
import torch
from accuracy.local import Comparison, summary
from accuracy.steps import Measured, measured, teller
from common.jobs import on_ranks
from common.llama import Batch, Experts, Llama, Size, batch_of
from common.results import RESULTS, busy, conditions, save
from torch import Tensor

import galvatron
from galvatron import runtime as rt
from galvatron.grouped import grouped_linear
from galvatron.ir.planned import PlanShorthand
from galvatron.profiler import document, hardware, meter
from galvatron.profiler.clusters import cluster_in

RANKS = 4
PLANS = (
    "pp1/m1/gpipe/ep4",
    "pp1/m2/gpipe/ep4",
    "pp1/m1/gpipe/dp2-ep2",
    "pp1/m1/gpipe/ep2-tp2",
    "pp1/m2/gpipe/ep4-zero1",
    "pp1/m1/gpipe/ep4-recompute",
    "pp2/m4/1f1b/ep2",
    "pp1/m1/gpipe/dp4",
)
PREFERRED = 8.0
"""How much larger the router's weights of one rank's experts are, of a model that chooses unevenly: each of them is
then chosen about every second time."""


@dataclass(frozen=True)
class Model:
    """A model with experts, as `accuracy.steps.measured` takes it."""

    size: Size
    samples: int
    plans: tuple[str, ...]
    ranks: int
    uneven: bool

    def build(self) -> Llama:
        """The model with the same random weights everywhere."""
        torch.manual_seed(0)
        model = Llama(self.size)
        preferred = self.size.experts // self.ranks if self.uneven else 0
        for module in model.modules():
            if isinstance(module, Experts):
                module.router.weight.data[:preferred] *= PREFERRED
        return model

    def batch(self) -> Batch:
        """Random tokens, the same on every rank."""
        return batch_of(self.size, self.samples, 1)

    def skew(self, degree: int) -> float:
        """How many rows the rank has that has most, over the mean, on an axis of so many: the mean of all layers."""
        model, found = self.build(), list[float]()

        def computed(experts: Experts, rows: Tensor, ids: Tensor) -> Tensor:
            of_rank = ids.bincount(minlength=self.size.experts).view(degree, -1).sum(1)
            found.append(float(of_rank.max()) / float(of_rank.float().mean()))
            gate, up = grouped_linear(rows, experts.w13, ids).chunk(2, -1)
            return grouped_linear(torch.nn.functional.silu(gate) * up, experts.w2, ids)

        for module in model.modules():
            if isinstance(module, Experts):
                module.computed = computed.__get__(module)
        with torch.no_grad():
            model(**self.batch())
        return statistics.mean(found)


def profile(seconds: float) -> str:
    """The hardware that the ranks of this job run on, as a document."""
    effort = replace(meter.QUICK, total_s=seconds)
    return document.print_profiles([hardware.profile_hardware(rt.initialize(), effort)])


def steps(model: Model, profile_file: str, rounds: int) -> dict[str, Any]:
    """What the plans took, on a rank of a job."""
    told = teller("/dev/stderr", os.environ["RANK"] == "0")
    return dict(measured(model, cluster_in(Path(profile_file)), rounds, told))  # type: ignore[arg-type]  # all it asks of a model


def costs(words: Sequence[str]) -> int:
    """Measures the plans, and says how far predictions are from that."""
    parser = argparse.ArgumentParser(prog="experts.py costs")
    parser.add_argument("--quick", action="store_true", help="a tiny model on two ranks: does it run at all")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each plan")
    parser.add_argument("--out", type=Path, default=RESULTS / "experts.json", help="where results are kept")
    arguments = parser.parse_args(words)
    size, plans, ranks = Size(1024, 256, 352, 4, 4, 128, experts=8), PLANS, RANKS
    rounds, seconds = arguments.rounds, cost_accuracy.PROFILE_S
    if arguments.quick:
        size, plans, ranks, rounds, seconds = Size(64, 16, 32, 2, 2, 8, experts=4), ("ep2", "dp2"), 2, 2, 5.0
    profile_file = arguments.out.with_suffix("") / "plain.profile.json"
    if not profile_file.exists():
        profile_file.parent.mkdir(parents=True, exist_ok=True)
        profile_file.write_text(on_ranks(profile, ranks, seconds), encoding="utf-8")
    every: list[Comparison] = []
    for name, uneven in (("even", False), ("uneven", True)):
        model, before = Model(size, 16, plans, ranks, uneven), conditions("galvatron")
        found = on_ranks(steps, ranks, model, str(profile_file), rounds)
        compared = list(compare(name, model, found, profile_file))
        rows = [
            {
                "model": name,
                "plan": one.plan,
                **asdict(one.measured),
                "skew": one.estimate.skew,
                "predicted_s": one.predicted_s,
                "balanced_s": one.estimate.balanced and one.estimate.balanced.step_time_s,
                "conditions": {**before, "load_average_after": os.getloadavg()},
            }
            for one in compared
        ]
        save("experts", rows, ("model", "plan"), arguments.out)
        every += compared
    cost_accuracy.print_comparisons(every)
    cost_accuracy.print_summaries([summary(name, [c for c in every if c.model == name]) for name in ("even", "uneven")])
    return 0


def compare(name: str, model: Model, found: dict[str, Any], profile_file: Path) -> list[Comparison]:
    """What was measured beside what is predicted, for the skew of the model on the plan's expert-parallel axis."""
    program = galvatron.capture(model.build(), model.batch())
    cluster, skews = cluster_in(profile_file), dict[int, float]()
    compared: list[Comparison] = []
    for plan, row in found.items():
        if "refused" in row:
            print(f"{plan} is refused: {row['refused']}", file=sys.stderr)
            continue
        degree = PlanShorthand.parse(plan).strategy.degree("ep")
        if degree not in skews:
            skews[degree] = model.skew(degree)
        estimate = galvatron.estimate(program, plan, cluster, global_batch_size=model.samples, skew=skews[degree])
        taken = Measured(**{field: tuple(row[field]) for field in Measured.__dataclass_fields__})
        compared.append(Comparison("plain", name, plan, taken, estimate))
    return compared


def peer(words: Sequence[str]) -> int:
    """The case of `step_time.py`."""
    return step_time.main(["--cases", "ep", *words])


def network(words: Sequence[str]) -> int:
    """The comparison of `emulated_cluster.py`, of a model most of which is experts."""
    against = (word for plan in ("dp4", "dp4-zero3", "tp4") for word in ("--against", plan))
    sizes = ("--experts", "8", "--hidden", "352", "--layers", "4", "--memory", "160MiB")
    return emulated_cluster.main(["--baselines", "", *against, "--plan", "search", *sizes, *words])


PARTS = {"peer": peer, "network": network, "costs": costs}


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    if not words or words[0] not in PARTS:
        print(__doc__)
        return 2
    status = PARTS[words[0]](words[1:])
    if warning := busy():
        print(warning, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
