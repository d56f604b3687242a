"""What is put together from calls by themselves, against whole graphs that autograd runs and a watch follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

import galvatron
from galvatron.costs.calls import Setting
from galvatron.costs.composed import Composed, Layer, Pass
from galvatron.costs.local import local_class
from galvatron.costs.watch import ObservedEvent
from galvatron.errors import GalvatronError
from galvatron.ir.cluster import Cluster
from galvatron.ir.either import in_training
from galvatron.ir.graph import Graph
from galvatron.ir.layout import Axis
from galvatron.ir.local_functions import with_local_functions
from galvatron.ir.ops.kernels import BY_DEVICE
from galvatron.ir.program import Program
from galvatron.ir.strategy import RECOMPUTE, Strategy
from galvatron.partition import Partitioner
from tests import models
from tests.costs.watched import Run
from tests.marks import some_slow
from tests.parity.harness import costed

STRATEGIES = ("dp4", "tp4", "dp2-tp2+sp", "tp2-ulysses2", "cp4")
BATCH = 2


@cache
def program(name: str) -> Program:
    if name != "residual":
        return replace(costed(name)[0], cluster=Cluster.parse("a100-80g:1x4"))
    batch = {"images": torch.randn(16, 3, 8, 8), "y": torch.arange(16) % 8}
    return replace(galvatron.capture(models.ResidualNet(), batch), cluster=Cluster.parse("a100-80g:1x4"))


def without_places(events: Sequence[ObservedEvent]) -> list[ObservedEvent]:
    return [replace(event, reads=(), writes=()) for event in events]


def at_first(of: Pass) -> list[ObservedEvent]:
    """What a pass does at the first batch size."""
    return without_places([seen.events[0] for seen in of.events])


def assert_as_watched(graph: Graph, mesh: tuple[Axis, ...], differentiable: frozenset[str], kind: str) -> None:
    on = "cpu" if kind == "cpu" or any(op.name in BY_DEVICE for op in graph.ops) else "meta"
    layer = Layer(graph, mesh, differentiable)
    for recompute in RECOMPUTE:
        watched = Run(graph, mesh, differentiable, batch=BATCH, recompute=recompute, kind=kind, on=on).observed
        run = Composed(layer, tuple(Setting(kind, False, on, batch) for batch in (BATCH, 2 * BATCH)), recompute)
        assert at_first(run.forward) == without_places(watched.forward), recompute
        assert at_first(run.backward) == without_places(watched.backward), recompute
        assert run.forward.dispatched == watched.forward_dispatches, recompute
        assert run.backward.dispatched == watched.backward_dispatches, recompute
        found: dict[str, Any] = {name: getattr(run, name) for name in watched.numbers}
        kept = {name: sizes[0] for name, sizes in found.pop("kept").items()}
        assert {"kept": kept, **{name: sizes[0] for name, sizes in found.items()}} == watched.numbers, recompute


@pytest.mark.one_in(6)
@pytest.mark.parametrize("kind", ["cuda", "cpu"])
@pytest.mark.parametrize("name", some_slow(["llama", "residual"], ["gpt2-written-out-dropout", "t5", "mixtral"]))
def test_a_composed_layer_does_what_autograd_does(name: str, kind: str) -> None:
    of = program(name)
    partitioner = Partitioner(of, of.required_cluster)
    ties = tuple((tie.name, None) for tie in partitioner.ties)
    tried = 0
    for text in STRATEGIES if kind == "cuda" else STRATEGIES[1:3]:
        for cls in dict.fromkeys(layer.cls for layer in of.planned_layers):
            try:
                local = local_class(of, partitioner, cls, Strategy.parse(text), ties)
            except GalvatronError:
                continue  # a role that this model has no dimension for
            graph = with_local_functions(in_training(local.graph), local.cls.mesh)
            assert_as_watched(graph, local.cls.mesh, local.differentiable, kind)
            tried += 1
    assert tried
