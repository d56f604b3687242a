"""Step time and peak memory of compiled programs against PyTorch, the same model, batch and fused AdamW.

Ours computes in bfloat16 with masters, gradients and optimizer state in float32 (`precision="bf16"`, 18 bytes per
parameter). Its peers on the same model from transformers:

    masters     the same semantics by hand: a bfloat16 model; gradients are copied to float32 ones of float32 masters
    autocast    a float32 model under `torch.autocast`; the residual stream is float32 there (16 bytes per parameter)
    pure        all in bfloat16, optimizer state too: less precise (8 bytes per parameter)

each eager, and `masters` also under `torch.compile` (the whole model) and with transformers' gradient checkpointing.
Contestants take turns; ratios are of the same round, with the median and the quartiles over rounds. Peak memory is what
a contestant alone holds at the most in a step, by the allocator.
"""

from __future__ import annotations

import copy
import gc
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from common.checkpointing import selective
from common.clocks import StepTimes, steps_in_turn, synchronize
from common.measure import Spread, ratios
from common.peers import adamw
from torch import Tensor, nn

import galvatron
from checks import Setting
from checks.llama import TINY, Batch, Shape, batch_of, model_of, recomputing_blocks
from checks.report import Report
from galvatron.ir.plan import Plan

BATCHES = (4, 2)
"""Numbers of samples; the first one is also the example that is captured."""

VARIANTS: dict[str, tuple[str, bool]] = {
    "plain": ("none", False),
    "inductor": ("none", True),
    "recompute": ("full", False),
    "selective": ("selective", False),
    "inductor+recompute": ("full", True),
}
"""Ours: what is recomputed, and whether layers are compiled."""

AGAINST: dict[str, tuple[str, ...]] = {
    "plain": ("masters", "autocast", "pure"),
    "inductor": ("masters", "masters+compile"),
    "recompute": ("masters+checkpoint", "pure+checkpoint"),
    "selective": ("masters+checkpoint", "masters+selective checkpoint"),
    "inductor+recompute": ("masters+checkpoint",),
}
LOSS_TOLERANCE = 2.0**-7


@dataclass(frozen=True)
class Row:
    """One contestant at one batch size; `ratio` is of our seconds to its own in the same rounds."""

    contestant: str
    against: str
    samples: int
    step_s: Spread
    host_s: Spread
    flop_per_s: float
    peak_bytes: int | None
    idle_bytes: int | None
    ratio: Spread | None
    peak_ratio: float | None


class Peer:
    """A model trained as PyTorch programs are.

    Args:
        model: float32, on the device; `masters` keeps a copy in bfloat16, `autocast` the model itself.
    """

    def __init__(self, kind: str, model: nn.Module) -> None:
        self.kind = kind
        self.model = model if kind == "autocast" else _rounded(model)
        self._call: Callable[..., Any] = self.model
        self._compiled: Callable[..., Any] | None = None
        self._mode = "eager"
        self.parameters = list(self.model.parameters())
        trained = [p.detach().float() for p in self.parameters] if kind == "masters" else self.parameters
        if kind == "masters":
            for master in trained:
                master.grad = torch.zeros_like(master)
        self.trained = trained
        self.optimizer = adamw(trained)

    def mode(self, mode: str) -> None:
        """Switches to "eager", "compile", "checkpoint" or "selective checkpoint"."""
        if mode == self._mode:
            return
        self._mode = mode
        model: Any = self.model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer releases call it activation checkpointing
            model.gradient_checkpointing_disable()
            if mode.endswith("checkpoint"):
                options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
                options |= {"context_fn": selective} if mode.startswith("selective") else {}
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        if mode == "compile":
            self._compiled = self._compiled or torch.compile(self.model, dynamic=False)
            self._call = self._compiled
        else:
            self._call = self.model

    def loss(self, batch: Batch) -> Tensor:
        if self.kind == "autocast":
            with torch.autocast(batch["input_ids"].device.type, torch.bfloat16):
                return self._call(**batch).loss
        return self._call(**batch).loss

    def step(self, batch: Batch) -> Tensor:
        loss = self.loss(batch)
        loss.backward()
        if self.kind == "masters":
            _copy([p.grad for p in self.parameters], [p.grad for p in self.trained])
        self.optimizer.step()
        if self.kind == "masters":
            _copy(self.trained, [p.data for p in self.parameters])
        for parameter in self.parameters:
            parameter.grad = None
        return loss.detach()


def _copy(sources: Sequence[Any], targets: Sequence[Any]) -> None:
    torch._foreach_copy_(list(targets), list(sources))  # pyright: ignore[reportPrivateImportUsage]  # the fast way


def _rounded(model: nn.Module) -> nn.Module:
    """A copy with parameters in bfloat16 and buffers, such as rotary frequencies, as they are."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.data = parameter.data.bfloat16()
    return copied


class Stand:
    """What the contestants share, and how much memory each may call its own."""

    def __init__(self, report: Report, setting: Setting) -> None:
        self.report, self.setting = report, setting
        self.shape = TINY if setting.tiny else Shape()
        self.sizes = (2,) if setting.tiny else BATCHES
        self.batches = {size: batch_of(self.shape, size, setting.device) for size in self.sizes}
        self.peers: dict[str, Peer] = {}
        self.owned: dict[str, Callable[[], int]] = {}
        self.memory: dict[tuple[str, int], tuple[int, int]] = {}
        """(Peak, idle) bytes of a contestant at a batch size."""
        self.plan: Plan | None = None
        """Without recomputation."""

    def peer_step(self, name: str, size: int) -> Callable[[], Tensor]:
        """A step of a peer, which is switched to its mode first."""
        kind, _, mode = name.partition("+")
        peer = self.peers[kind]

        def step() -> Tensor:
            peer.mode(mode or "eager")
            return peer.step(self.batches[size])

        return step

    def measure_memory(self, name: str, size: int, step: Callable[[], Any], idle_bytes: Callable[[], int]) -> None:
        """The memory of a contestant whose first step has been."""
        if self.setting.on_gpu:
            synchronize(self.setting.device)
            before, own = torch.cuda.memory_allocated(), idle_bytes()
            torch.cuda.reset_peak_memory_stats()
            step()
            synchronize(self.setting.device)
            self.memory[name, size] = torch.cuda.max_memory_allocated() - before + own, own

    def rows(self, variant: str, size: int, times: dict[str, StepTimes]) -> None:
        """Adds a row for ours and one for each peer."""
        own_name = f"own {variant}"
        own = times[own_name]
        for name, found in times.items():
            peak, idle = self.memory.get((name, size), (None, None))
            own_peak, _ = self.memory.get((own_name, size), (None, None))
            row = Row(
                contestant=name,
                against=variant,
                samples=size,
                step_s=Spread.of(found.step_s),
                host_s=Spread.of(found.host_s),
                flop_per_s=self.shape.step_flop(size) / Spread.of(found.step_s).median,
                peak_bytes=peak,
                idle_bytes=idle,
                ratio=None if name == own_name else ratios(own.step_s, found.step_s),
                peak_ratio=None if name == own_name or not (peak and own_peak) else own_peak / peak,
            )
            self.report.add(row)


def run(report: Report, setting: Setting) -> None:
    """All variants, the most telling first."""
    stand = Stand(report, setting)
    report.document["model"] = {**asdict(stand.shape), "parameters": stand.shape.parameters}
    source = model_of(stand.shape, setting.device)
    for kind in ("masters", "pure") if setting.tiny else ("masters", "pure", "autocast"):
        report.attempt(kind, _add_peer, stand, kind, source)
    for variant in ("plain", "recompute") if setting.tiny else VARIANTS:
        report.attempt(variant, _variant, stand, variant, source, needs_s=20.0 if setting.on_gpu else 0.0)


def _add_peer(stand: Stand, kind: str, source: nn.Module) -> None:
    peer = Peer(kind, source)
    stand.peers[kind] = peer
    peer.step(stand.batches[stand.sizes[0]])  # makes the optimizer's state

    def held() -> int:
        state = [t for s in peer.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
        tensors = [*peer.parameters, *peer.trained, *state, *(t.grad for t in peer.trained if t.grad is not None)]
        return bytes_of(tensors)

    stand.owned[kind] = held


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What tensors hold, each memory once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _variant(stand: Stand, variant: str, source: nn.Module) -> None:
    """One of ours against its peers, at every batch size."""
    before = torch.cuda.memory_allocated() if stand.setting.on_gpu else 0
    first = stand.batches[stand.sizes[0]]
    began = time.perf_counter()
    compiled = _compiled(stand, source, first, *VARIANTS[variant])
    own_loss = compiled.forward_backward(first)
    compile_s = time.perf_counter() - began
    # What ours starts from; the peers have been trained since they started from it.
    with torch.no_grad():
        expected = _rounded(source)(**first).loss
    difference = float((own_loss - expected).abs() / expected)
    assert difference < LOSS_TOLERANCE, f"the loss is {float(own_loss)} instead of {float(expected)}"
    stand.report.add({"contestant": f"own {variant}", "compile_s": compile_s, "loss_difference": difference})
    compiled.train_step(first)
    for size in stand.sizes:
        # What is of nobody else is ours.
        _against_peers(stand, variant, size, compiled, lambda: torch.cuda.memory_allocated() - before)
    del compiled
    gc.collect()
    if stand.setting.on_gpu:
        torch.cuda.empty_cache()


def _against_peers(
    stand: Stand, variant: str, size: int, compiled: galvatron.CompiledModel, own_bytes: Callable[[], int]
) -> None:
    steps: dict[str, Callable[[], Any]] = {f"own {variant}": partial(compiled.train_step, stand.batches[size])}
    for name in AGAINST[variant]:
        if name.partition("+")[0] in stand.peers:
            began = time.perf_counter()
            step = stand.peer_step(name, size)
            needs_s = 0.0 if stand.setting.tiny else 60.0 if "compile" in name else 5.0
            if stand.report.attempt(f"{name} {size}", step, needs_s=needs_s) is not None:
                steps[name] = step
                first_s = time.perf_counter() - began
                stand.report.add({"contestant": name, "samples": size, "first_s": first_s})
    steps[f"own {variant}"]()  # compiles what this size needs
    for name, step in steps.items():
        stand.measure_memory(name, size, step, stand.owned.get(name.partition("+")[0], own_bytes))
    tiny = stand.setting.tiny
    rounds, each = (3, 1) if tiny else (9, 3)
    stand.rows(variant, size, steps_in_turn(steps, stand.setting.device, rounds=rounds, each=each))


def _compiled(stand: Stand, source: nn.Module, batch: Batch, recompute: str, inductor: bool) -> galvatron.CompiledModel:
    plan = "dp1" if recompute == "none" else recomputing_blocks(_known(stand.plan), recompute)
    compiled = galvatron.compile(
        source, batch, plan=plan, cluster="a100-80g:1x1", precision="bf16", optimizer=adamw, inductor=inductor
    )
    stand.plan = stand.plan or compiled.plan
    return compiled


def _known(plan: Plan | None) -> Plan:
    assert plan is not None, "the program without recomputation has failed"
    return plan
