"""Communications that are started and waited for: what arrives does not depend on where the wait stands."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron.runtime import comm
from galvatron.runtime.comm import now
from tests.ranks import run_ranks

DTYPES = (torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex128)


def own_tensor(rank: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randint(0, 5, (6, 2), generator=generator).to(dtype)


def parts_to(rank: int, size: int) -> list[int]:
    """How much a rank sends to each of three: nothing to itself, 1/3 to the next one, 2/3 to the one before."""
    return [(to - rank) % size for to in range(size)]


def started(world: rt.World, dtype: torch.dtype) -> list[tuple[str, comm.Handle, Tensor]]:
    """One communication of every kind, and where its result will be."""
    group, rank, size = comm.all_ranks(), world.rank, world.size
    x = own_tensor(rank, dtype)
    found: list[tuple[str, comm.Handle, Tensor]] = []
    if dtype != torch.bool:
        for op in ("sum", "max", "min") if not dtype.is_complex else ("sum",):
            total = x.clone()
            found.append((op, comm.all_reduce(total, group, op), total))
        part = x.new_empty(6 // size, 2)
        found.append(("reduce_scatter", comm.reduce_scatter(part, x, group), part))
    whole = x.new_empty(size * 6, 2)
    found.append(("all_gather", comm.all_gather(whole, x, group), whole))
    received = torch.empty_like(x)
    found.append(("all_to_all", comm.all_to_all(received, x, group), received))
    unequal = torch.empty_like(x)
    sizes = [parts_to(other, size)[rank] for other in range(size)], parts_to(rank, size)
    handle = comm.all_to_all(unequal, x, group, received_parts=sizes[0], sent_parts=sizes[1])
    found.append(("unequal all_to_all", handle, unequal))
    told = x.clone()
    found.append(("broadcast", comm.broadcast(told, group, 1), told))
    after, before = (rank + 1) % size, (rank - 1) % size
    passed, given = torch.empty_like(x), torch.empty_like(x)
    found.append(("exchange", comm.exchange(x, passed, group, after, before), passed))
    found.append(("send", comm.send([x], group, after), x))
    found.append(("receive", comm.receive([given], group, before), given))
    return found


def expected(world: rt.World, dtype: torch.dtype, kind: str) -> Tensor:
    every = torch.stack([own_tensor(rank, dtype) for rank in range(world.size)])
    part = 6 // world.size
    own = slice(world.rank * part, (world.rank + 1) * part)
    unequal = [
        x.tensor_split([2 * sum(parts_to(rank, world.size)[:to]) for to in range(1, world.size)])[world.rank]
        for rank, x in enumerate(every)
    ]
    results: dict[str, Callable[[], Tensor]] = {
        "sum": lambda: every.sum(0, dtype=dtype),
        "max": lambda: every.amax(0),
        "min": lambda: every.amin(0),
        "reduce_scatter": lambda: every.sum(0, dtype=dtype)[own],
        "all_gather": lambda: every.flatten(0, 1),
        "all_to_all": lambda: every[:, own].flatten(0, 1),
        "unequal all_to_all": lambda: torch.cat(unequal),
        "broadcast": lambda: every[1],
        "send": lambda: every[world.rank],
    }
    return results.get(kind, lambda: every[world.rank - 1])()


def in_any_order(world: rt.World, dtype: torch.dtype) -> None:
    for order in (1, -1):
        under_way = started(world, dtype)
        for kind, handle, result in under_way[::order]:
            handle.wait()
            assert torch.equal(result, expected(world, dtype, kind)), (kind, result)
    assert now.operation is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_handles_are_waited_for_in_any_order(dtype: torch.dtype) -> None:
    run_ranks(in_any_order, 3, dtype)


def objects(world: rt.World) -> tuple[Any, list[Any]]:
    own = {"rank": world.rank}
    return (
        comm.broadcast_object(own, comm.all_ranks(), 1, phase="the plan"),
        comm.gather_objects(own, comm.all_ranks(), phase="names"),
    )


def test_objects() -> None:
    assert run_ranks(objects, 3) == [({"rank": 1}, [{"rank": rank} for rank in range(3)])] * 3


class Ended:
    def wait(self) -> None:
        pass


def test_tensors_stay_until_the_wait_is_over() -> None:
    x = torch.ones(3)
    alive = ref(x)
    handle = comm.start("all_reduce", None, (x,), lambda: [Ended()])
    del x
    gc.collect()
    assert alive() is not None
    handle.wait()
    assert alive() is None


def test_a_communication_that_fails_stays_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(now, "operation", None)

    class Lost:
        def wait(self) -> None:
            raise RuntimeError("Connection closed by peer")

    handle = comm.start("all_reduce", None, (), lambda: [Lost()], "totals")
    assert now.operation is None
    with pytest.raises(RuntimeError):
        handle.wait()
    assert now.operation is handle.message and handle.message.phase == "totals"
