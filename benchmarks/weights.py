"""Weights of Hugging Face folders: read into a compiled program and written, against what one does by hand with FSDP2.

    python benchmarks/weights.py [--quick] [--ranks 1,2,4] [--rounds 5] [--sparse]

Every rank has one thread. A folder of files with an index is read by three contestants, which take turns in one job: a
program compiled with `weights=`, `torch.distributed.checkpoint` with its reader for such folders into an FSDP2 model,
and whole files read on every rank (`safetensors.torch.load_file`), of which each keeps its slices. What is written
is compared with a whole state dict gathered by FSDP2 and saved by rank 0. A ratio below 1 means that we are faster.

Times are those of files that the machine has in its memory already. The peak is what is resident in a process beyond
what it held before, mapped files included, added to the rank's slices and divided by them. What is fetched is what all
ranks together have the disk read when none of the files is in memory, over the size of the files (where the folder is
on a disk; `--directory`).

With `--sparse` the files are empty space of the right size, so that a model can be larger than the disk: read by eight
ranks, once, by us alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common.jobs import device, free_port, on_ranks
from common.llama import Llama, Size, batch_of
from common.measure import Spread, ratios
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import galvatron
from galvatron import runtime as rt
from galvatron import tensor_file
from galvatron.runtime import executor
from galvatron.tensor_file import Entry
from galvatron.weights import Weights

PER_FILE = 4
"""Layers."""


def on_meta(size: Size, dtype: torch.dtype) -> Llama:
    with torch.device("meta"):
        return Llama(size).to(dtype)


def write_folder(folder: Path, size: Size, dtype: torch.dtype, *, sparse: bool) -> int:
    """A model in several files with an index; their size in bytes."""
    files: dict[str, list[Entry]] = {}
    for name, value in on_meta(size, dtype).state_dict().items():
        words = name.split(".")
        number = int(words[1]) // PER_FILE + 1 if words[0] == "layers" else 0
        files.setdefault(f"model-{number:05d}.safetensors", []).append(Entry(name, tuple(value.shape), value.dtype))
    for file, entries in files.items():
        head = tensor_file.header(entries, {"format": "pt"})
        if sparse:
            (folder / file).write_bytes(head)
            os.truncate(folder / file, len(head) + tensor_file.room_of(entries))
        else:
            tensor_file.write(folder / file, head, (torch.randn(e.shape, dtype=e.dtype) * 0.02 for e in entries))
    places = {entry.name: file for file, entries in files.items() for entry in entries}
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum((folder / file).stat().st_size for file in files)


class Own:
    """A compiled program."""

    def __init__(self, size: Size, dtype: torch.dtype, folder: Path) -> None:
        self._meta, self._folder = on_meta(size, dtype), folder
        plan, batch = f"dp{dist.get_world_size()}-zero3", batch_of(size, dist.get_world_size(), 0)
        calls: list[tuple[Any, ...]] = []
        fill = executor.materialize

        def recorded(*arguments: Any) -> None:
            calls.append(arguments)
            fill(*arguments)

        executor.materialize = recorded  # the values are read again, without capture and code
        try:
            self.program = galvatron.compile(self._meta, batch, plan=plan, weights=folder)
        finally:
            executor.materialize = fill
        stages, _, *others = calls[0]
        self._fill: Callable[[rt.ModelState], None] = lambda state: fill(stages, state, *others)
        self.held_bytes = sum(piece.tensor.nbytes for piece in self.program._executor.pieces())

    def load(self) -> None:
        found = Weights(self._meta, self._folder, is_partial=False)
        self._fill(rt.ModelState(self._meta, given=found.given))

    def export(self, folder: Path) -> None:
        self.program.export(folder)


class Peer:
    """An FSDP2 model with memory for its parameters."""

    def __init__(self, size: Size, dtype: torch.dtype, folder: Path) -> None:
        self._folder = folder
        mesh = init_device_mesh(device().type, (dist.get_world_size(),))
        self.model: nn.Module = on_meta(size, dtype)
        for block in self.model.layers:  # type: ignore[union-attr]  # of a Llama
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.model.to_empty(device=device())

    def _parts(self) -> dict[str, Any]:
        return dict(self.model.named_parameters())

    def export(self, folder: Path) -> None:
        from safetensors.torch import save_file

        whole: dict[str, Any] = get_model_state_dict(
            self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        if dist.get_rank() == 0:
            folder.mkdir()
            save_file(whole, folder / "model.safetensors")
        dist.barrier()


class ByCheckpoint(Peer):
    """Read by `torch.distributed.checkpoint`."""

    def load(self) -> None:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        load(self._parts(), storage_reader=HuggingFaceStorageReader(str(self._folder)))


class WholeFiles(Peer):
    """Whole files on every rank, cut there."""

    def load(self) -> None:
        from safetensors.torch import load_file

        own = self._parts()
        ranks, rank = dist.get_world_size(), dist.get_rank()
        for file in sorted(self._folder.glob("*.safetensors")):
            for name, value in load_file(file).items():
                part = torch.chunk(value, ranks)
                if name in own and rank < len(part):
                    own[name].detach().to_local().copy_(part[rank])


PEERS: dict[str, type[Any]] = {"DCP": ByCheckpoint, "whole files": WholeFiles}


@dataclass
class Seen:
    """What one job measured of one contestant: seconds of the slowest rank, the peak of the rank with the highest over
    what it keeps, and what all ranks had the disk read, in bytes."""

    seconds: list[float]
    peak: float = 0.0
    fetched_bytes: float = 0.0


def compare(size: Size, dtype: torch.dtype, folder: Path, rounds: int, alone: bool) -> dict[str, dict[str, Seen]]:
    """One job, on every rank of it: by what is done and contestant."""
    if not dist.is_initialized():  # of one rank
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    own = Own(size, dtype, folder)
    contestants: dict[str, Any] = {"own": own}
    if not alone:
        contestants |= {name: kind(size, dtype, folder) for name, kind in PEERS.items()}
    loads = {name: Seen([]) for name in contestants}
    for turn in range(rounds + 2):
        for name, contestant in list(contestants.items())[:: 1 if turn % 2 else -1]:
            seen = loads[name]
            cold = turn > rounds and not alone
            if cold:
                _forget(folder)
            before, fetched = _resident_bytes("VmRSS"), _fetched_bytes()
            Path("/proc/self/clear_refs").write_text("5")
            seconds = _timed(contestant.load)
            if cold:
                seen.fetched_bytes = _over_ranks(_fetched_bytes() - fetched, dist.ReduceOp.SUM)
            elif turn or alone:
                seen.seconds.append(seconds)
                beyond = max(0, _resident_bytes("VmHWM") - before)
                peak = _over_ranks((own.held_bytes + beyond) / own.held_bytes, dist.ReduceOp.MAX)
                seen.peak = max(seen.peak, peak)
    return {"load": loads} if alone else {"load": loads, "export": _exports(contestants, folder, rounds)}


def _exports(contestants: dict[str, Any], folder: Path, rounds: int) -> dict[str, Seen]:
    found = {name: Seen([]) for name in ("own", "DCP")}
    for turn in range(rounds + 1):
        for name, seen in list(found.items())[:: 1 if turn % 2 else -1]:
            target = folder.with_name(f"{folder.name}-{name}")
            before = _resident_bytes("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            seconds = _timed(lambda name=name, target=target: contestants[name].export(target))
            beyond, held = max(0, _resident_bytes("VmHWM") - before), contestants["own"].held_bytes
            if turn:
                seen.seconds.append(seconds)
                seen.peak = max(seen.peak, _over_ranks((held + beyond) / held, dist.ReduceOp.MAX))
            if dist.get_rank() == 0:
                shutil.rmtree(target)
            dist.barrier()
    return found


def _forget(folder: Path) -> None:
    """Has the machine drop what it keeps of files in its memory."""
    dist.barrier()
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    dist.barrier()


def _resident_bytes(which: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which + ":"))


def _fetched_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def _over_ranks(figure: float, how: Any) -> float:
    total = torch.tensor(figure, dtype=torch.float64)
    dist.all_reduce(total, how)
    return float(total)


def _timed(call: Callable[[], object]) -> float:
    """Seconds of a call, on the slowest rank."""
    dist.barrier()
    begun = time.perf_counter()
    call()
    return _over_ranks(time.perf_counter() - begun, dist.ReduceOp.MAX)


@dataclass(frozen=True)
class Row:
    """Ratio of our seconds to the peer's, both, peaks over what a rank keeps, and what was fetched over the files."""

    ranks: int
    what: str
    peer: str
    ratio: Spread
    own_s: Spread
    peer_s: Spread
    own_peak: float
    peer_peak: float
    own_fetched: float
    peer_fetched: float


def rows_of(ranks: int, size_bytes: int, found: dict[str, dict[str, Seen]]) -> list[Row]:
    return [
        Row(
            ranks,
            what,
            name,
            ratios(seen["own"].seconds, peer.seconds),
            Spread.of(seen["own"].seconds),
            Spread.of(peer.seconds),
            seen["own"].peak,
            peer.peak,
            seen["own"].fetched_bytes / size_bytes,
            peer.fetched_bytes / size_bytes,
        )
        for what, seen in found.items()
        for name, peer in seen.items()
        if name != "own" or len(seen) == 1
    ]


def print_rows(rows: list[Row]) -> None:
    table = Table(title="Folders of weights, ours / peer's: median (quartiles)")
    for heading in ("ranks", "", "peer", "ratio", "ours", "peer's", "peaks", "fetched"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        seconds = (f"{spread.median:.3f} s" for spread in (row.own_s, row.peer_s))
        peaks, fetched = f"{row.own_peak:.2f} / {row.peer_peak:.2f}", f"{row.own_fetched:.2f} / {row.peer_fetched:.2f}"
        table.add_row(str(row.ranks), row.what, row.peer, str(row.ratio), *seconds, peaks, fetched)
    Console(width=max(120, Console().width)).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rounds: does it run at all")
    parser.add_argument("--ranks", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sparse", action="store_true", help="a model of 4.5 billion parameters in files without data")
    parser.add_argument("--directory", help="where the files are; default: that for temporary ones")
    arguments = parser.parse_args()
    size, dtype, ranks = Size(32000, 1024, 2816, 16, 16, 32), torch.float32, [1, 2, 4]
    if arguments.sparse:
        size, dtype, ranks = Size(128256, 4096, 14336, 32, 16, 16), torch.bfloat16, [8]
    if arguments.quick:
        size, ranks = Size(512, 64, 128, 4, 4, 32), [1, 2]
    rounds = 2 if arguments.quick else 1 if arguments.sparse else arguments.rounds
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        folder = Path(directory) / "model"
        folder.mkdir()
        size_bytes = write_folder(folder, size, dtype, sparse=arguments.sparse)
        for count in arguments.ranks or ranks:
            before = conditions()
            seen = on_ranks(compare, count, size, dtype, folder, rounds, arguments.sparse)
            found = rows_of(count, size_bytes, seen)
            rows += found
            if not arguments.quick:
                facts = {"size": asdict(size), "file_bytes": size_bytes, "rounds": rounds, "sparse": arguments.sparse}
                entries = [entry(row, before, **facts) for row in found]
                save("weights", entries, key=("ranks", "what", "peer", "sparse"))
    print_rows(rows)
    if warning := busy():
        print(warning, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
