"""Which device a rank takes."""

from __future__ import annotations

import pytest
import torch

from galvatron.errors import ClusterError
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
