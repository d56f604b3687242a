"""What the benchmarks compare with is right: every peer written by hand trains like the eager model on one device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import peers
from common.llama import Llama, Size, batch_of
from torch.distributed.device_mesh import init_device_mesh

from tests.marks import some_slow
from tests.ranks import run_ranks

SIZE = Size(vocabulary=64, width=32, hidden=48, heads=4, layers=4, sequence=16)

BUILDERS: dict[str, Callable[[Llama], peers.Step]] = {
    "ddp": peers.data_parallel,
    "fsdp2": lambda model: peers.fully_sharded(model, reshard_after_forward=False),
    "fsdp2, resharded": lambda model: peers.fully_sharded(model, reshard_after_forward=True),
    "hsdp": lambda model: peers.fully_sharded(
        model, reshard_after_forward=True, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    ),
    "tp": lambda model: peers.tensor_parallel(model, sequence_parallel=False),
    "tp+sp": lambda model: peers.tensor_parallel(model, sequence_parallel=True),
    "pp2": lambda model: peers.pipeline(model, [1], 4),
    "pp4": lambda model: peers.pipeline(model, peers.balanced_cuts(SIZE, 4), 4),
    "pp2, ddp": lambda model: peers.pipeline(model, [3], 4),
    "pp2, fsdp2": lambda model: peers.pipeline(model, [3], 2, sharded=True),
}


def losses(world: Any, names: list[str]) -> dict[str, tuple[list[float], list[float]]]:
    """Losses of some steps of each peer, and of the eager model."""
    batches = [batch_of(SIZE, 8, seed) for seed in range(2)]
    torch.manual_seed(0)
    model = Llama(SIZE)
    results = {}
    for name in names:
        own, reference = BUILDERS[name](copy.deepcopy(model)), peers.eager(copy.deepcopy(model))
        results[name] = ([float(own(batch)) for batch in batches], [float(reference(batch)) for batch in batches])
    return results


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "names"),
    some_slow(
        [(2, ["ddp", "fsdp2", "fsdp2, resharded", "tp", "tp+sp", "pp2"])],
        [(4, ["hsdp", "pp4", "pp2, ddp", "pp2, fsdp2"])],
    ),
)
def test_peers_train_like_the_model_on_one_device(ranks: int, names: list[str]) -> None:
    for result in run_ranks(losses, ranks, names):
        for own, reference in result.values():
            assert own == pytest.approx(reference, rel=1e-5)


def test_size_counts_parameters() -> None:
    assert SIZE.parameters == sum(parameter.numel() for parameter in Llama(SIZE).parameters())
