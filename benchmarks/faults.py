"""Jobs of which ranks are killed at random moments: how many go on, with no sample lost or twice and the same losses.

    python benchmarks/faults.py [--quick] [--kills 20] [--others 5] [--seed 0]

A job under `torchrun --max-restarts` trains on numbered samples, saves in the background every few steps and records
what its loader gives. A rank gets SIGKILL at a random moment, of a save too, and the launcher starts all of them again.
Then jobs of other numbers of ranks, under other plans, go on with one checkpoint after another, each of them killed.
The peer is the same job, undisturbed: its losses are those that are compared, bit for bit under one plan and to 1e-9
(of float64) under others. It also says how long the job takes in relation to the undisturbed one, starts included.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common.results import busy, conditions, entry, save

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.faults.recovery import JOBS, Outcome, killed_again_and_again, killed_on_other_ranks


@dataclass(frozen=True)
class Row:
    """What became of the kills of one job.

    Attributes:
        recovered: kills after which the job went on with the sample that was next.
        lost, twice: samples that were not trained on, or more than once, in the steps that count.
        unlike: steps whose loss is not that of the undisturbed job.
        seconds_ratio: of the job with all of its starts, over the undisturbed one.
    """

    job: str
    kills: int
    recovered: int
    lost: int
    twice: int
    unlike: int
    redone_steps: int
    seconds_ratio: float


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two kills: does it run at all")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--others", type=int, default=5)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    kills, others = (1, 1) if arguments.quick else (arguments.kills, min(arguments.others, len(JOBS) - 1))
    plans = ["m2/dp2-zero2"] if arguments.quick else ["m2/dp2-zero2", "pp2/m2/1f1b/dp1"]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        choose = random.Random(arguments.seed)
        for number, plan in enumerate([*plans, "other ranks"]):
            before, own = conditions(), Path(folder) / str(number)
            own.mkdir()
            if plan == "other ranks":
                found = killed_on_other_ranks(own, others, choose)
            else:
                found = killed_again_and_again(own, plan, kills, choose)
            rows.append(row_of(plan, found))
            print(rows[-1])
            if not arguments.quick:
                save("faults", [entry(rows[-1], before, seed=arguments.seed)], key=("job",))
    if warning := busy():
        print(warning, file=sys.stderr)
    return int(any(row.recovered < row.kills or row.lost or row.twice or row.unlike for row in rows))


def row_of(job: str, found: Outcome) -> Row:
    return Row(
        job,
        found.kills,
        found.recovered,
        found.lost,
        found.twice,
        found.unlike,
        found.redone_steps,
        found.seconds / found.undisturbed_seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
