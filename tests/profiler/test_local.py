"""Measuring the local machine: plausible figures, and the same ones on every rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from galvatron.ir.cluster import Cluster
from galvatron.profiler.local import _fit_line, local_cluster


def test_one_process() -> None:
    cluster = local_cluster()
    assert str(cluster) == "local:1x1"
    assert cluster.device.memory_bytes > 2**28
    assert cluster.device.flop_per_s("f32") > 1e7
    assert cluster.device.memory_bytes_per_s > 1e7
    assert 0 < cluster.device.kernel_launch_s < 1e-2


def _rank(rank: int, world_size: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=world_size)
    Path(directory, f"{rank}.json").write_text(local_cluster().to_json())
    dist.destroy_process_group()


def test_ranks_agree(tmp_path: Path) -> None:
    mp.spawn(_rank, (2, str(tmp_path)), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    texts = {(tmp_path / f"{rank}.json").read_text() for rank in range(2)}
    assert len(texts) == 1
    cluster = Cluster.from_json(texts.pop())
    assert str(cluster) == "local:1x2"
    assert cluster.levels[0].bytes_per_s > 1e5 and cluster.levels[0].latency_s > 0


@pytest.mark.parametrize(("latency", "rate"), [(1e-5, 1e-9), (0.0, 1e-9), (1e-5, 0.0)])
def test_fit_recovers_a_line(latency: float, rate: float) -> None:
    rows = [(6.0, 6.0 * n / 4, 6.0 * latency + 6.0 * n / 4 * rate) for n in (1e3, 1e5, 1e6)]
    assert _fit_line(rows) == pytest.approx((latency, rate), abs=1e-15)
