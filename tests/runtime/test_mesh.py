"""Which device a rank takes."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from galvatron.errors import ClusterError
from galvatron.runtime import mesh
from galvatron.runtime.mesh import initialize


@pytest.mark.parametrize(
    ("local_rank", "visible", "named", "gpu"),
    [(0, 1, "", 0), (3, 8, "", 3), (3, 1, "5", 0), (1, 2, "4,6", 1)],
)
def test_a_rank_takes_the_gpu_of_its_number_or_the_one_it_is_given(
    local_rank: int, visible: int, named: str, gpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = pretend(local_rank, visible, named, monkeypatch)
    assert initialize().device == torch.device("cuda", gpu)
    assert taken == [torch.device("cuda", gpu)]


@pytest.mark.parametrize(("local_rank", "visible", "named"), [(1, 1, ""), (2, 2, "0,1")])
def test_more_ranks_than_gpus_are_refused(
    local_rank: int, visible: int, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = pretend(local_rank, visible, named, monkeypatch)
    with pytest.raises(ClusterError, match=f"local rank {local_rank} has no GPU: {visible} can be seen"):
        initialize()
    assert not taken


def test_groups_are_given_up_later_than_the_limit_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[timedelta] = []
    monkeypatch.setattr(mesh, "_groups", {})
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "new_group", lambda ranks, timeout: asked.append(timeout))
    for timeout_s in (3600.0, 60.0):
        initialize("cpu", timeout_s=timeout_s)
        mesh.process_group([0, 1 if timeout_s > 60 else 2])
    assert asked == [timedelta(seconds=7200), timedelta(seconds=1800)]


def pretend(local_rank: int, visible: int, named: str, monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A machine with GPUs; the devices that are taken."""
    taken: list[torch.device] = []
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    return taken
