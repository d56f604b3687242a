"""Every collective of the runtime on the backend of the device, on a job of one rank.

Sums over one rank are the values themselves; what is checked is that the backend takes the calls as the runtime makes
them: flat buffers, booleans as bytes, 16 and 64 bits, messages to oneself, objects, and events around all of it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from checks import Setting
from checks.report import Report
from galvatron import runtime as rt
from galvatron.runtime import comm
from galvatron.runtime.comm import now
from galvatron.runtime.comm.clock import clock_of

MOVES: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "copy": lambda x, axis: rt.copy(x, axis),
    "all_reduce": lambda x, axis: rt.all_reduce(x, axis, grad="all_reduce"),
    "all_gather": lambda x, axis: rt.all_gather(x, axis, dim=1, grad="reduce_scatter"),
    "reduce_scatter": lambda x, axis: rt.reduce_scatter(x, axis, dim=1),
    "slice": lambda x, axis: rt.slice(x, axis, dim=1, grad="all_gather"),
    "all_to_all": lambda x, axis: rt.all_to_all(x, axis, split_dim=1, concat_dim=2),
    "pad": lambda x, axis: rt.pad(x, axis, dim=1),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64)


def run(report: Report, setting: Setting) -> None:
    """All of it, in a process group of its own."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_port()))
    if setting.on_gpu:
        torch.cuda.set_device(setting.device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if setting.on_gpu else "gloo")
    try:
        world = rt.initialize()
        report.add({"case": "initialize", "found": f"{world}"})
        now.clock = clock_of(setting.device)
        group = dist.group.WORLD
        assert group is not None
        axis = rt.Axis(1, 1, 0, group)
        for name, move in MOVES.items():
            for dtype in DTYPES:
                report.attempt(f"{name} {dtype}", _moved, report, name, move, axis, dtype, setting.device)
        checks = (_totals, _objects, _bucket, _events, _ring)
        for check in checks:
            name = check.__name__.strip("_")
            report.attempt(name, lambda check=check, name=name: report.add({"case": name, "found": check(axis, world)}))
    finally:
        dist.destroy_process_group()


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _moved(report: Report, name: str, move: Any, axis: rt.Axis, dtype: torch.dtype, device: torch.device) -> None:
    x = (torch.arange(24, device=device).view(2, 3, 4) % 5).to(dtype)
    if name in ("all_reduce", "reduce_scatter") and dtype == torch.bool:
        return  # booleans are not summed
    x.requires_grad_(dtype.is_floating_point)
    y = move(x, axis)
    assert torch.equal(y, x), f"{y} instead of {x}"
    if x.requires_grad:
        y.backward(torch.full_like(y, 3.0))
        assert x.grad is not None and bool((x.grad == 3.0).all()), f"gradient {x.grad}"
    report.add({"case": f"{name} {dtype}", "found": "as it should be"})


def _totals(axis: rt.Axis, world: rt.World) -> str:
    """What a step ends with: float64 sums, and minima of integers."""
    totals = torch.tensor([1.0, 2.0], dtype=torch.float64, device=world.device)
    first = torch.tensor(1 << 60, device=world.device)
    scalar = torch.zeros((), dtype=torch.float64, device=world.device)
    group = comm.all_ranks()
    handles = (
        comm.all_reduce(totals, group),
        comm.all_reduce(first, group, "min"),
        comm.all_reduce(scalar, group, "max"),
    )
    for handle in handles:
        handle.wait()
    assert totals.tolist() == [1.0, 2.0] and int(first) == 1 << 60
    return "float64 sums, integer minima, a scalar"


def _objects(axis: rt.Axis, world: rt.World) -> str:
    """What ranks tell each other while they compile."""
    plan = comm.broadcast_object({"plan": "dp1"}, comm.all_ranks(), 0, phase="the plan", patient=True)
    told = comm.gather_objects(("a", 1), comm.all_ranks(), phase="agreement")
    flags = torch.tensor([True, False], device=world.device)
    comm.broadcast(flags, comm.all_ranks(), 0, phase="constants").wait()
    assert plan == {"plan": "dp1"} and told == [("a", 1)] and flags.tolist() == [True, False]
    return "objects to all and from all, booleans as bytes"


def _bucket(axis: rt.Axis, world: rt.World) -> str:
    """Sums and gathers as parameters in flat memory have them, not waited for at once."""
    flat = torch.ones(1 << 16, device=world.device)
    part, whole = torch.empty_like(flat), torch.empty_like(flat)
    handles = [comm.all_reduce(flat, axis.group), comm.reduce_scatter(part, flat, axis.group)]
    for handle in handles:
        handle.wait()
    comm.all_gather(whole, part, axis.group).wait()
    assert float(whole.sum()) == 1 << 16
    return "all-reduce, reduce-scatter and all-gather of 256 KiB"


def _ring(axis: rt.Axis, world: rt.World) -> str:
    """Ring attention; its backward sends the last gradients home, here to itself, which gloo cannot."""
    shape = (2, 4, 16, 8)
    q, k, v = (torch.randn(shape, device=world.device, dtype=torch.float64, requires_grad=True) for _ in range(3))
    found = rt.scaled_dot_product_attention(q, k, v, is_causal=True, axis=axis, size=16)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if world.device.type == "cpu":
        assert torch.allclose(found, expected, atol=1e-12)
        return "forward"
    weight = torch.randn_like(found)
    own = torch.autograd.grad((found * weight).sum(), (q, k, v))
    others = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    error = max(float((a - b).abs().max()) for a, b in zip((found, *own), (expected, *others), strict=True))
    assert error < 1e-12, f"error {error:.1e}"
    return f"largest error {error:.1e}"


def _events(axis: rt.Axis, world: rt.World) -> str:
    """The clock that times waits: none is left when the device is idle."""
    clock = clock_of(world.device)
    now.clock = clock
    clock.start_step()
    rt.all_reduce(torch.ones(1 << 20, device=world.device), axis, grad="identity")
    times = clock.end_step().read()
    assert clock.front() is None and times.step_s >= times.communication_s > 0, times
    return f"{times}"
