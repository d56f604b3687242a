"""Step time of compiled programs against hand-written parallel PyTorch: the same model, ranks, data and strategy.

    python benchmarks/step_time.py [--quick] [--cases dp,zero3] [--ranks 2,4] [--jobs 3] [--rounds 5]

Every rank has one thread, or a GPU of its own. A step is forward, backward and a fused AdamW update. The peers are in
`common/peers.py`. Both contestants run in one job, step by step in turn, after their losses have agreed for some steps.
A ratio below 1 means that the compiled program is faster. Jobs are repeated, because on a busy machine what one job
finds can be steady within the job and yet differ from the next.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from common import peers
from common.jobs import on_ranks
from common.llama import Llama, Size, batch_of
from common.measure import Spread, Times, in_turn, ratios, sent_by
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table

import galvatron
from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.ir.device import Device
from galvatron.ir.network import Level
from galvatron.ir.plan import Plan


@dataclass(frozen=True)
class Case:
    """A strategy and who does the same by hand.

    Attributes:
        plan: its shorthand on so many ranks.
        build: the peer's step; gets the plan so that it cuts the model where the compiled program does.
        sends: a kind of message without which a compiled program does not do what its plan says.
        experts: of each feed-forward; 0 for one that is dense.
    """

    plan: Callable[[int], str]
    peer: str
    build: Callable[[Llama, Plan], peers.Step]
    least_ranks: int = 2
    sends: str = ""
    experts: int = 0


def pipeline(model: Llama, plan: Plan, sharded: bool = False) -> peers.Step:
    """The peer of a pipeline, cut where the plan is; the embedding is the plan's first layer."""
    ends = [sum(len(stage) for stage in plan.stages[: index + 1]) for index in range(len(plan.stages))]
    return peers.pipeline(model, [end - 1 for end in ends[:-1]], plan.micro_batches, sharded=sharded)


CASES = {
    "dp": Case(
        lambda ranks: f"dp{ranks}",
        "DistributedDataParallel",
        lambda model, plan: peers.data_parallel(model),
    ),
    "zero2": Case(
        lambda ranks: f"dp{ranks}-zero2",
        "fully_shard(reshard_after_forward=False)",
        lambda model, plan: peers.fully_sharded(model, reshard_after_forward=False),
        sends="reduce_scatter",
    ),
    "zero3": Case(
        lambda ranks: f"dp{ranks}-zero3",
        "fully_shard(reshard_after_forward=True)",
        lambda model, plan: peers.fully_sharded(model, reshard_after_forward=True),
        sends="reduce_scatter",
    ),
    "tp": Case(
        lambda ranks: f"tp{ranks}",
        "parallelize_module",
        lambda model, plan: peers.tensor_parallel(model, sequence_parallel=False),
    ),
    "tp+sp": Case(
        lambda ranks: f"tp{ranks}+sp",
        "parallelize_module + SequenceParallel",
        lambda model, plan: peers.tensor_parallel(model, sequence_parallel=True),
    ),
    "pp": Case(
        lambda ranks: f"pp{ranks}/m{2 * ranks}/1f1b/dp1",
        "PipelineStage + Schedule1F1B",
        pipeline,
    ),
    "pp+dp": Case(
        lambda ranks: f"pp{ranks // 2}/m{ranks}/1f1b/dp2",
        "PipelineStage + Schedule1F1B, stages in DistributedDataParallel",
        pipeline,
        least_ranks=4,
    ),
    "pp+zero1": Case(
        lambda ranks: f"pp{ranks // 2}/m{ranks}/1f1b/dp2-zero1",
        "PipelineStage + Schedule1F1B, stages in fully_shard(reshard_after_forward=False)",
        partial(pipeline, sharded=True),
        least_ranks=4,
        sends="reduce_scatter",
    ),
}
EXPERTS, CHOSEN = 8, 2
CASES |= {
    "ep": Case(
        lambda ranks: f"ep{ranks}",
        "all_to_all_single by hand, DistributedDataParallel",
        lambda model, plan: peers.expert_parallel(model),
        sends="all_to_all",
        experts=EXPERTS,
    ),
}
CORE = Device("core", 8 * 2**30, (("f32", 5e10),), memory_bytes_per_s=1e10, kernel_launch_s=5e-6)
LOOPBACK = Level("node", 1, 1e9, 5e-5)
"""With `CORE` roughly a machine of today, and always the same, so that all runs time the same programs."""
AGREEMENT_STEPS = 3
FIRST_TOLERANCE, TOLERANCE = 1e-6, 1e-4
"""Relative differences of the losses in float32: of the first step, and of the later ones, after updates."""


@dataclass(frozen=True)
class Outcome:
    """What one job measured of `own` and `peer`, and by how much their losses differed."""

    times: dict[str, Times]
    messages: dict[str, str]
    first_loss_difference: float
    loss_difference: float


@dataclass(frozen=True)
class Row:
    """One plan against its peer: ratios of ours to the peer's, seconds of a step of each, and what each sends.

    `job_wall_ratios` are the medians of each job alone: how far what one job finds can be trusted.
    """

    case: str
    ranks: int
    plan: str
    peer: str
    wall_ratio: Spread
    cpu_ratio: Spread
    job_wall_ratios: list[float]
    own_s: Spread
    peer_s: Spread
    own_messages: str
    peer_messages: str
    first_loss_difference: float
    loss_difference: float


def compare(name: str, ranks: int, size: Size, samples: int, rounds: int) -> Outcome | str:
    """One job, on every rank of it; why there is no outcome when the plan is refused.

    Raises:
        AssertionError: the losses of the contestants do not agree.
    """
    case = CASES[name]
    text = case.plan(ranks)
    torch.manual_seed(0)
    model = Llama(replace(size, experts=case.experts, chosen=CHOSEN))
    batches = [batch_of(size, samples, seed) for seed in range(AGREEMENT_STEPS)]
    cluster = Cluster(f"cores:1x{ranks}", CORE, (replace(LOOPBACK, parts=ranks),))
    try:
        program = galvatron.compile(copy.deepcopy(model), batches[0], plan=text, cluster=cluster, optimizer=peers.adamw)
    except GalvatronError as error:
        return str(error)
    # A plan that is accepted but not carried out is no contestant. This step updates nothing.
    if case.sends not in (sent := sent_by(partial(program.forward_backward, batches[0]))):
        return f"the compiled program sends {sent}, but no {case.sends}: it does not do what its plan says"
    steps: dict[str, peers.Step] = {"own": program.train_step, "peer": case.build(model, program.plan)}
    differences = [relative_difference([float(step(batch)) for step in steps.values()]) for batch in batches]
    assert differences[0] < FIRST_TOLERANCE, f"{text}: the first losses differ by {differences[0]:.1e}"
    assert max(differences) < TOLERANCE, f"{text}: the losses differ by {max(differences):.1e}"
    ready = {contestant: partial(step, batches[0]) for contestant, step in steps.items()}
    messages = {contestant: sent_by(step) for contestant, step in ready.items()}
    return Outcome(in_turn(ready, rounds), messages, differences[0], max(differences))


def row_of(name: str, ranks: int, outcomes: Sequence[Outcome]) -> Row:
    """The rounds of all jobs together."""
    own, peer = (
        Times(
            [s for outcome in outcomes for s in outcome.times[contestant].wall_s],
            [s for outcome in outcomes for s in outcome.times[contestant].cpu_s],
        )
        for contestant in ("own", "peer")
    )
    by_job = [ratios(o.times["own"].wall_s, o.times["peer"].wall_s).median for o in outcomes]
    return Row(
        case=name,
        ranks=ranks,
        plan=CASES[name].plan(ranks),
        peer=CASES[name].peer,
        wall_ratio=ratios(own.wall_s, peer.wall_s),
        cpu_ratio=ratios(own.cpu_s, peer.cpu_s),
        job_wall_ratios=by_job,
        own_s=Spread.of(own.wall_s),
        peer_s=Spread.of(peer.wall_s),
        own_messages=outcomes[0].messages["own"],
        peer_messages=outcomes[0].messages["peer"],
        first_loss_difference=max(o.first_loss_difference for o in outcomes),
        loss_difference=max(o.loss_difference for o in outcomes),
    )


def relative_difference(losses: list[float]) -> float:
    return abs(losses[0] - losses[1]) / abs(losses[1])


def print_rows(rows: list[Row]) -> None:
    table = Table(title="Step time, ours / peer: median (quartiles)")
    for heading in ("plan", "wall", "CPU", "wall of each job", "ours", "peer's"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        seconds = (f"{spread.median:.3f} s" for spread in (row.own_s, row.peer_s))
        by_job = " ".join(f"{ratio:.3f}" for ratio in row.job_wall_ratios)
        table.add_row(row.plan, str(row.wall_ratio), str(row.cpu_ratio), by_job, *seconds)
    Console(width=max(120, Console().width)).print(table)
    for row in rows:
        print(f"{row.plan}: we send {row.own_messages}; {row.peer} sends {row.peer_messages}")


def names(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in CASES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown case {unknown[0]!r}; there are {', '.join(CASES)}")
    return text.split(",")


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rounds: does it run at all")
    parser.add_argument("--cases", type=names, default=list(CASES), help=f"of {','.join(CASES)}")
    parser.add_argument("--ranks", type=numbers, default=[2, 4], help="numbers of ranks, such as 2,4")
    parser.add_argument("--jobs", type=int, default=3, help="how often a case is started anew")
    parser.add_argument("--rounds", type=int, default=5, help="in each job")
    parser.add_argument("--samples", type=int, default=2, help="in the batch, per rank")
    arguments = parser.parse_args(words)
    size = Size(512, 64, 128, 4, 4, 32) if arguments.quick else replace(Size(), sequence=128)
    jobs, rounds = (1, 3) if arguments.quick else (arguments.jobs, arguments.rounds)
    rows: list[Row] = []
    failed = False
    for ranks, name in itertools.product(arguments.ranks, arguments.cases):
        case = CASES[name]
        if ranks < case.least_ranks:
            continue
        print(f"{case.plan(ranks)} against {case.peer} ...", file=sys.stderr, flush=True)
        before = conditions()
        samples = arguments.samples * ranks
        outcomes: list[Outcome] = []
        try:
            for _ in range(jobs):
                outcome: Outcome | str = on_ranks(compare, ranks, name, ranks, size, samples, rounds)
                if isinstance(outcome, str):
                    print(f"{case.plan(ranks)} skipped: {outcome}", file=sys.stderr)
                    break
                outcomes.append(outcome)
        except RuntimeError as error:
            failed = True
            print(f"{case.plan(ranks)} failed: {error}", file=sys.stderr)
            continue
        if not outcomes:
            continue
        rows.append(row_of(name, ranks, outcomes))
        if not arguments.quick:
            facts = {"size": asdict(size), "parameters": size.parameters, "samples": samples, "rounds": rounds}
            save("step_time", [entry(rows[-1], before, **facts)], key=("case", "ranks"))
    print_rows(rows)
    if warning := busy():
        print(warning, file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
