"""From a model to the code of its stages, beside `torch.export` of the same model alone, by the number of layers.

    python benchmarks/compile_time.py [--layers 2,8,32,126] [--repeats 3] [--search]

The model is a Llama of Hugging Face with the sizes of Llama-3-8B, on `meta`, in float32. Each number of layers has a
process of its own, in which a model of one layer goes the whole way first, so that nothing is counted that is done once
per process. Then the stages take turns with the peer: `torch.export.export`, not strict, with a free number of samples,
which is where a capture begins, and ends in a graph of torch. Compared is CPU time; peak memory is that of the whole
process, with torch and transformers. The plan is given, or with `--search` what a search of the whole space finds.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common.results import busy, conditions, entry, save
from rich.console import Console
from rich.table import Table

CLUSTER, PLAN, BATCH, SEQUENCE = "a100-80g:1x8", "pp2/m4/1f1b/dp2-tp2", 16, 4096


@dataclass(frozen=True)
class Row:
    """CPU seconds of each step of a compilation and of the peer, median and range of several; `ratio` is what all
    steps take for each second of the peer."""

    layers: int
    searched: bool
    capture_s: tuple[float, float, float]
    plan_s: tuple[float, float, float]
    emit_s: tuple[float, float, float]
    total_s: tuple[float, float, float]
    peer_s: tuple[float, float, float]
    ratio: float
    peak_mib: float


def llama(layers: int) -> torch.nn.Module:
    """Llama-3-8B with so many layers, without values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192, use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config)


class Alone(torch.nn.Module):
    """The loss of a model, for the peer."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, labels=tokens).loss


def exported(model: torch.nn.Module) -> None:
    """What the peer does."""
    tokens = torch.empty(BATCH, SEQUENCE, dtype=torch.long, device="meta")
    free = {"tokens": {0: torch.export.Dim.AUTO}}
    torch.export.export(Alone(model), (tokens,), dynamic_shapes=free, strict=False)


def compiled(model: torch.nn.Module, searches: bool) -> tuple[float, float, float]:
    """CPU seconds of capture, of a plan, and of lowering and emission."""
    import galvatron
    from galvatron.offline import emit

    tokens = torch.empty(BATCH, SEQUENCE, dtype=torch.long, device="meta")
    program, capture_s = timed(lambda: galvatron.capture(model, {"input_ids": tokens, "labels": tokens}))
    plan, plan_s = timed(lambda: galvatron.search(program, CLUSTER)) if searches else (PLAN, 0.0)
    _, emit_s = timed(lambda: emit(program, plan, CLUSTER))
    return capture_s, plan_s, emit_s


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the CPU seconds of this process that it takes."""
    began = time.process_time()
    result = call()
    return result, time.process_time() - began


def measured(layers: int, repeats: int, searches: bool) -> Row:
    """Both in turns, in this process."""
    torch.set_num_threads(1)
    for warm in (lambda: exported(llama(1)), lambda: compiled(llama(2), searches)):
        warm()
    steps, peers = list[tuple[float, float, float]](), list[float]()
    for _ in range(repeats):
        model = llama(layers)
        steps.append(compiled(model, searches))
        peers.append(timed(lambda: exported(llama(layers)))[1])
    capture, plan, emission = (spread([step[i] for step in steps]) for i in range(3))
    total, peer = spread([sum(step) for step in steps]), spread(peers)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Row(layers, searches, capture, plan, emission, total, peer, total[0] / peer[0], peak_mib)


def spread(seconds: list[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return statistics.median(seconds), min(seconds), max(seconds)


def in_process(layers: int, repeats: int, searches: bool) -> Row:
    """A row that a process of its own measures."""
    options = ["--layers", str(layers), "--repeats", str(repeats), "--row", *(["--search"] if searches else [])]
    done = subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True)
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", default="2,8,32,126")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--search", action="store_true", help="search for the plan in place of giving one")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(vars(measured(int(arguments.layers), arguments.repeats, arguments.search))))
        return
    table = Table("layers", "capture (s)", "plan (s)", "lower, emit (s)", "all (s)", "torch.export (s)", "ratio", "MiB")
    for layers in map(int, arguments.layers.split(",")):
        before = conditions("transformers")
        row = in_process(layers, arguments.repeats, arguments.search)
        facts = {"model": "Llama-3-8B", "cluster": CLUSTER, "plan": None if row.searched else PLAN}
        save("compile_time", [entry(row, before, repeats=arguments.repeats, **facts)], key=("layers", "searched"))
        times = (row.capture_s, row.plan_s, row.emit_s, row.total_s, row.peer_s)
        cells = (f"{middle:.2f} ({least:.2f} to {most:.2f})" for middle, least, most in times)
        table.add_row(str(layers), *cells, f"{row.ratio:.2f}", f"{row.peak_mib:.0f}")
    Console(width=max(140, Console().width)).print(table)
    if warning := busy():
        print(warning, file=sys.stderr)


if __name__ == "__main__":
    main()
