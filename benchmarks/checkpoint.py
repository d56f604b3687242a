"""Checkpoints of compiled programs against `torch.distributed.checkpoint` of FSDP2: the same model and ranks.

    python benchmarks/checkpoint.py [--quick] [--ranks 2,4] [--rounds 7]

Every rank has one thread. What is compared are a save that is waited for, what one in the background holds training up
for, and a load into a program that has been trained. All of them take turns in one job; what they write lies in the
memory of the machine (`--directory` for a disk), and each of them syncs its files. A ratio below 1 means that we are
faster. Also what a load into a new program allocates at its peak, beside what it then has: all that the rank keeps.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import memory, peers
from common.jobs import device, on_ranks
from common.llama import Batch, Llama, Size, batch_of
from common.measure import Spread, ratios
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_all
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as save_all
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import galvatron

SEEN = ("save", "stall", "load")


class Own:
    """A compiled program."""

    def __init__(self, model: Llama, batch: Batch, folder: Path) -> None:
        plan = f"dp{dist.get_world_size()}-zero3"
        make = partial(galvatron.compile, example_inputs=batch, plan=plan, optimizer=peers.adamw)
        self._new = lambda: make(copy.deepcopy(model))
        self._program, self._folder, self._steps = self._new(), folder, 0
        self._program.train_step(batch)

    def save(self) -> float:
        return _timed(lambda: self._program.save(self._folder, step=self._next(), keep=1))

    def stall(self) -> float:
        seconds = _timed(lambda: self._program.save(self._folder, step=self._next(), keep=1, background=True))
        self._program.finish_saving()
        return seconds

    def load(self) -> float:
        return _timed(lambda: self._program.load(self._folder))

    def peak_of_load(self) -> float:
        """What a rank holds at the most while a new program loads, relative to what it holds then."""
        program = self._new()
        held = sum(piece.tensor.nbytes for piece in program._executor.pieces())
        with memory.watched() as seen:
            seen.begin()
            program.load(self._folder)
        return (held + seen.peak_bytes) / (held + seen.left_bytes)

    def _next(self) -> int:
        self._steps += 1
        return self._steps


class Peer:
    """FSDP2 and `torch.distributed.checkpoint`."""

    def __init__(self, model: Llama, batch: Batch, folder: Path) -> None:
        mesh = init_device_mesh(device().type, (dist.get_world_size(),))
        self._model = copy.deepcopy(model).to(device())
        for block in self._model.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(self._model, mesh=mesh)
        self._optimizer = peers.adamw(self._model.parameters())
        self._model(**batch).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._folder = folder
        # What saves in the background sends messages of its own, which in a group of others would meet theirs.
        group = dist.new_group(backend="gloo")
        assert isinstance(group, dist.ProcessGroup), "this rank is a member"
        self._group = group

    def save(self) -> float:
        return _timed(lambda: save_all(self._state(), checkpoint_id=self._folder))

    def stall(self) -> float:
        pending: list[Any] = []

        def begin() -> None:
            pending.append(async_save(self._state(), checkpoint_id=self._folder, process_group=self._group))

        seconds = _timed(begin)
        pending[0].result()
        return seconds

    def load(self) -> float:
        def load() -> None:
            state = self._state()
            load_all(state, checkpoint_id=self._folder)
            set_state_dict(
                self._model,
                self._optimizer,
                model_state_dict=state["model"],
                optim_state_dict=state["optimizer"],
            )

        return _timed(load)

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self._model, self._optimizer)
        return {"model": model, "optimizer": optimizer}


@dataclass(frozen=True)
class Outcome:
    """What one job measured: by contestant and what was done, seconds of the slowest rank, round by round."""

    seconds: dict[str, dict[str, list[float]]]
    peak_of_load: float


def compare(size: Size, rounds: int, directory: str) -> Outcome:
    """One job, on every rank of it."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(0)
    model, batch = Llama(size), batch_of(size, dist.get_world_size(), 0)
    contestants: dict[str, Any] = {
        "own": Own(model, batch, Path(directory) / "own"),
        "peer": Peer(model, batch, Path(directory) / "peer"),
    }
    found: dict[str, dict[str, list[float]]] = {name: {what: [] for what in SEEN} for name in contestants}
    for turn in range(rounds + 1):
        for what in SEEN:
            for name in list(contestants)[:: 1 if turn % 2 else -1]:
                seconds = getattr(contestants[name], what)()
                if turn:
                    found[name][what].append(seconds)
    return Outcome(found, contestants["own"].peak_of_load())


def _timed(call: Callable[[], object]) -> float:
    """Seconds of a call, on the slowest rank."""
    dist.barrier()
    begun = time.perf_counter()
    call()
    slowest = torch.tensor(time.perf_counter() - begun, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return float(slowest)


@dataclass(frozen=True)
class Row:
    """Ratios of ours to the peer's, and seconds of each."""

    ranks: int
    what: str
    ratio: Spread
    own_s: Spread
    peer_s: Spread
    peak_of_load: float


def rows_of(ranks: int, outcome: Outcome) -> list[Row]:
    return [
        Row(ranks, what, ratios(own, peer), Spread.of(own), Spread.of(peer), outcome.peak_of_load)
        for what in SEEN
        for own, peer in [(outcome.seconds["own"][what], outcome.seconds["peer"][what])]
    ]


def print_rows(rows: list[Row]) -> None:
    table = Table(title="Checkpoints, ours / torch.distributed.checkpoint: median (quartiles)")
    for heading in ("ranks", "", "ratio", "ours", "peer's"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        seconds = (f"{spread.median * 1e3:.0f} ms" for spread in (row.own_s, row.peer_s))
        table.add_row(str(row.ranks), row.what, str(row.ratio), *seconds)
    Console(width=max(100, Console().width)).print(table)
    peak = statistics.median(row.peak_of_load for row in rows)
    print(f"A load holds at its peak {peak:.3f} times what the rank has afterwards.")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rounds: does it run at all")
    parser.add_argument("--ranks", type=lambda text: [int(n) for n in text.split(",")], default=[2, 4])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory", help="where to write; default: the memory of the machine")
    arguments = parser.parse_args()
    size = Size(512, 64, 128, 4, 4, 32) if arguments.quick else replace(Size(), sequence=32)
    rounds = 2 if arguments.quick else arguments.rounds
    rows: list[Row] = []
    for ranks in arguments.ranks:
        before = conditions()
        directory = tempfile.mkdtemp(dir=arguments.directory or "/dev/shm")
        try:
            outcome: Outcome = on_ranks(compare, ranks, size, rounds, directory)
        finally:
            shutil.rmtree(directory)
        found = rows_of(ranks, outcome)
        rows += found
        if not arguments.quick:
            facts = {"size": asdict(size), "parameters": size.parameters, "rounds": rounds}
            save("checkpoint", [entry(row, before, **facts) for row in found], key=("ranks", "what"))
    print_rows(rows)
    if warning := busy():
        print(warning, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
