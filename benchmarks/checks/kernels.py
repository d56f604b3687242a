"""What the cost model says that a device runs and keeps, held to what it runs and keeps.

Each class of layers of some models is run forward and backward on the device: once under the recorder with which the
cost model watches fake tensors, so that both lists of kernels can be compared, and once more under torch's profiler,
which counts the launches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import galvatron
from checks import Setting
from checks.llama import TINY, Shape, batch_of, model_of
from checks.report import Report
from checks.steps import gpt2_of
from galvatron.costs.events import launches
from galvatron.costs.profile import profile_graph
from galvatron.costs.watch import ObservedEvent, Watch
from galvatron.ir.cluster import Cluster
from galvatron.ir.graph import Graph
from galvatron.ir.interpreter import empty_like_type, run_graph
from galvatron.ir.program import Program
from galvatron.partition import Partitioner

SHAPE = Shape(vocabulary=8192, width=1024, hidden=2816, heads=16, key_heads=4, layers=2, sequence=512)
SAMPLES = 4
PRECISIONS = (None, "bf16")


@dataclass(frozen=True)
class Pass:
    """One pass of a class: launches by name that only the cost model says (`missing` on the device), and that only the
    device has (`unsaid`); how many launches there are, by the cost model and by the device's profiler."""

    case: str
    way: str
    missing: dict[str, int]
    unsaid: dict[str, int]
    predicted_launches: int
    measured_launches: int | None
    predicted_kept_bytes: int | None
    measured_kept_bytes: int | None


def run(report: Report, setting: Setting) -> None:
    """Class by class."""
    shape = TINY if setting.tiny else SHAPE
    for name, make in {"llama": llama, "gpt2": gpt2, "network": network}.items():
        # Batch norms keep their statistics in 32 bits, which the runtime sees to.
        for precision in (None,) if make is network else PRECISIONS[setting.tiny :]:
            case = f"{name} {precision or 'f32'}"
            program = report.attempt(case, captured, make, shape, precision)
            if program is not None:
                compare(report, setting, case, program)


def compare(report: Report, setting: Setting, case: str, program: Program) -> None:
    borders = Partitioner(program, Cluster.parse("a100-80g:1x1")).borders
    for cls in program.classes:
        differentiable = borders[cls.name].differentiable
        for row in report.attempt(f"{case} {cls.name}", rows, case, cls.name, cls.graph, differentiable, setting) or ():
            report.add(row)


Made = tuple[nn.Module, dict[str, Tensor]]
"""A model without memory, and a batch for it."""


def llama(shape: Shape) -> Made:
    return model_of(shape, "meta"), batch_of(shape, SAMPLES, "meta")


def gpt2(shape: Shape) -> Made:
    """With dropout, and with layer norms, biases and GELU."""
    return gpt2_of(shape, "meta"), batch_of(shape, SAMPLES, "meta")


class Network(nn.Module):
    """A bit of what else has several kernels: convolutions, norms of channels, parts, places and masks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(4, width)
        self.branch, self.batch_norm = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.table, self.head = nn.Parameter(torch.zeros(16, width)), nn.Linear(width, 16)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        h = F.silu(self.norm(self.stem(images)))
        h = h + F.relu(self.batch_norm(self.branch(h)))
        h = F.pad(h, (1, 1)).masked_fill(h.mean() > 1.0, 0.0)
        pooled = h[:, :, 0].mean(-1) + h[:, :, 1:].amax((2, 3)) + self.table[labels]
        logits = self.head(pooled)
        chosen = logits.gather(1, labels[:, None])
        return F.cross_entropy(logits, labels, reduction="sum") - F.logsigmoid(chosen).sum()


def network(shape: Shape) -> Made:
    with torch.device("meta"):
        images, labels = torch.zeros(SAMPLES, 3, 32, 32), torch.zeros(SAMPLES, dtype=torch.int64)
        return Network(shape.width).train(), {"images": images, "labels": labels}


def captured(make: Callable[[Shape], Made], shape: Shape, precision: str | None) -> Program:
    model, batch = make(shape)
    return galvatron.capture(model, batch, precision=precision)


def rows(case: str, name: str, graph: Graph, differentiable: frozenset[str], setting: Setting) -> list[Pass]:
    said = profile_graph(graph, (), differentiable, kind=setting.device.type)
    forward, backward, kept_bytes = recorded(graph, differentiable, setting)
    measured = counted(graph, differentiable, setting) if setting.on_gpu else (None, None)
    said_bytes = said.saved_bytes(SAMPLES) + sum(size(SAMPLES) for _, size in said.shared_bytes)
    found = (("forward", said.forward, forward, measured[0]), ("backward", said.backward, backward, measured[1]))
    passes: list[Pass] = []
    for way, predicted, seen, count in found:
        ours = Counter(launch.name for launch in launches(predicted))
        theirs = Counter(event.name for event in seen)
        kept = (round(said_bytes), kept_bytes) if way == "forward" else (None, None)
        counts = (ours.total(), count)
        passes.append(Pass(f"{case} {name}", way, dict(ours - theirs), dict(theirs - ours), *counts, *kept))
    return passes


def recorded(
    graph: Graph, differentiable: frozenset[str], setting: Setting
) -> tuple[list[ObservedEvent], list[ObservedEvent], int]:
    """The kernels of a forward and of a backward on the device, and the bytes that autograd keeps between them."""
    forward: list[ObservedEvent] = []
    backward: list[ObservedEvent] = []
    kept: dict[int, int] = {}
    values = tensors(graph, differentiable, setting)
    state = {values[v.name].untyped_storage().data_ptr() for v in graph.state}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in state:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    watch = Watch(forward, setting.device.type)
    with watch, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = trained(run_graph(graph, values, batch=SAMPLES, device=setting.device))
    with torch.no_grad():
        gradients = [torch.zeros_like(result) for result in results]
    watch.record_in(backward)
    with watch, leaves_emptied(values):
        torch.autograd.backward(results, gradients)
    return forward, backward, sum(kept.values())


def counted(graph: Graph, differentiable: frozenset[str], setting: Setting) -> tuple[int, int]:
    """The kernels that the device launches in a forward and in a backward, as its profiler counts them."""
    for _ in range(2):  # libraries are loaded, and choose their kernels, at the first call
        values = tensors(graph, differentiable, setting)
        results: list[Tensor] = []

        def forward(values: dict[str, Tensor] = values, results: list[Tensor] = results) -> None:
            results.extend(trained(run_graph(graph, values, batch=SAMPLES, device=setting.device)))

        first = launched(forward)
        gradients = [torch.zeros_like(result) for result in results]

        def backward(
            values: dict[str, Tensor] = values,
            results: list[Tensor] = results,
            gradients: list[Tensor] = gradients,
        ) -> None:
            with leaves_emptied(values):
                torch.autograd.backward(results, gradients)

        second = launched(backward)
    return first, second


def launched(call: Callable[[], None]) -> int:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in found.events() or ())


def trained(results: dict[str, Tensor]) -> list[Tensor]:
    return [tensor for tensor in results.values() if tensor.requires_grad]


@contextmanager
def leaves_emptied(values: dict[str, Tensor]) -> Iterator[None]:
    """No gradient is added to another: each leaf's is dropped when it is there, as the cost model has it."""

    def drop(leaf: Tensor) -> None:
        leaf.grad = None

    handles = [t.register_post_accumulate_grad_hook(drop) for t in values.values() if t.requires_grad]
    yield
    for handle in handles:
        handle.remove()


def tensors(graph: Graph, differentiable: frozenset[str], setting: Setting) -> dict[str, Any]:
    """Something for every input and state value: small numbers, places that exist, masks that hide nothing."""
    made: dict[str, Tensor] = {}
    for value in (*graph.inputs, *graph.state):
        tensor = empty_like_type(value.type, SAMPLES, str(setting.device))
        if tensor.is_floating_point():
            made[value.name] = tensor.normal_(0.0, 0.02).requires_grad_(value.name in differentiable)
        else:
            made[value.name] = tensor.fill_(value.type.dtype == "bool")
    return made
