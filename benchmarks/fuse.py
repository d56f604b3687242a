"""Step time with and without the pass `fuse`: one process, one thread, the same model and batch, steps interleaved.

    python benchmarks/fuse.py [--model llama|gpt2] [--repeats 7]

Eager PyTorch takes part for comparison. Figures are wall-clock and CPU seconds of a step (forward, backward and SGD);
ratios are medians over rounds, of steps in the same round.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from galvatron import runtime as rt
from galvatron.api import emit
from galvatron.codegen import load_module
from galvatron.ir.capture import capture_graph
from galvatron.passes import FRONT_END
from galvatron.passes.pipeline import Pipeline

Batch = dict[str, torch.Tensor]
Step = Callable[[Batch], Any]
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Times:
    """Seconds of each measured step of one variant."""

    wall_s: list[float]
    cpu_s: list[float]


def llama(transformers: Any) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=8192, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2(transformers: Any) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=8192, n_embd=384, n_layer=9, n_head=6, use_cache=False, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


MODELS = {"llama": llama, "gpt2": gpt2}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-4)


def compiled_step(model: nn.Module, batch: Batch, passes: tuple[str, ...], world: rt.World) -> Step:
    """A training step of the model compiled for one device with these passes before the planning."""
    captured = capture_graph(model, batch)
    program = Pipeline.of(passes).run(captured.program)
    (text,) = emit(program, "m1/gpipe/dp1", "a100-80g:1x1").values()
    stage = load_module("stage_0.py", text, None).Stage(rt.build_mesh(world, [[]]))
    state = rt.ModelState(model, constants=captured.constants)
    rt.materialize(stage, state)
    return rt.Executor(stage, schedule="gpipe", optimizer=sgd, model=state).train_step


def eager_step(model: nn.Module) -> Step:
    """A training step of the model itself."""
    optimizer = sgd(model.parameters())

    def step(batch: Batch) -> torch.Tensor:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def measure(steps: dict[str, Step], batch: Batch, repeats: int) -> dict[str, Times]:
    """Times of each step after one that warms up; every round runs all of them, each time starting with another."""
    times = {name: Times([], []) for name in steps}
    for step in steps.values():
        step(batch)
    names = list(steps)
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wall, cpu = time.perf_counter(), time.process_time()
            steps[name](batch)
            times[name].wall_s.append(time.perf_counter() - wall)
            times[name].cpu_s.append(time.process_time() - cpu)
    return times


def ratio(times: list[float], base: list[float]) -> dict[str, float]:
    """Median, least and greatest of the ratios of steps in the same round."""
    ratios = [t / b for t, b in zip(times, base, strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="llama")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--sequence", type=int, default=256)
    arguments = parser.parse_args()

    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = MODELS[arguments.model](transformers)
    tokens = torch.randint(0, 8192, (arguments.batch, arguments.sequence))
    batch = {"input_ids": tokens, "labels": tokens}
    world = rt.initialize()
    build = partial(compiled_step, batch=batch, world=world)
    steps = {
        "fused": build(copy.deepcopy(model), passes=FRONT_END),
        "not fused": build(copy.deepcopy(model), passes=tuple(name for name in FRONT_END if name != "fuse")),
        "eager": eager_step(model),
    }
    times = measure(steps, batch, arguments.repeats)
    base = times["not fused"]
    result = {
        "benchmark": "fuse",
        "model": arguments.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": [arguments.batch, arguments.sequence],
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
        "cpu_ratio_to_not_fused": {name: ratio(t.cpu_s, base.cpu_s) for name, t in times.items()},
        "wall_ratio_to_not_fused": {name: ratio(t.wall_s, base.wall_s) for name, t in times.items()},
        "times": {name: asdict(t) for name, t in times.items()},
    }
    rt.shutdown()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"fuse_{arguments.model}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name, t in times.items():
        cpu, wall = result["cpu_ratio_to_not_fused"][name], result["wall_ratio_to_not_fused"][name]
        print(
            f"{arguments.model:6} {name:9}  median {statistics.median(t.wall_s):.3f} s wall, "
            f"{statistics.median(t.cpu_s):.3f} s CPU; to not fused: CPU {cpu['median']:.3f} "
            f"({cpu['min']:.3f} to {cpu['max']:.3f}), wall {wall['median']:.3f}"
        )
    if os.getloadavg()[0] > (os.cpu_count() or 1):
        print(f"preliminary: the machine is busy (load {os.getloadavg()[0]:.1f})", file=sys.stderr)


if __name__ == "__main__":
    main()
