"""What generated stage modules and the public API call while a model trains."""

from galvatron.recompute import again, keep, once
from galvatron.runtime.agreement import Calls, agree, together
from galvatron.runtime.collectives import (
    all_gather,
    all_reduce,
    all_to_all,
    combine,
    copy,
    dispatch,
    first,
    packed,
    pad,
    reduce_scatter,
    slice,
    wait,
)
from galvatron.runtime.comm.counter import CommunicationCounter
from galvatron.runtime.deferral import addmm, linear
from galvatron.runtime.executor import Executor
from galvatron.runtime.limit import DEFAULT_TIMEOUT_S
from galvatron.runtime.materialize import ModelState, Source, materialize
from galvatron.runtime.mesh import Axis, Mesh, World, build_mesh, initialize, shutdown
from galvatron.runtime.metrics import StepMetrics
from galvatron.runtime.norms import batch_norm
from galvatron.runtime.outputs import PartialSum
from galvatron.runtime.pieces import Piece
from galvatron.runtime.random import Seed, seeded
from galvatron.runtime.ring import scaled_dot_product_attention
from galvatron.runtime.rows import Part, Rows, RowTable
from galvatron.runtime.run_state import RunState
from galvatron.runtime.scaling import LossScaler
from galvatron.runtime.slices import Sharded
from galvatron.runtime.spmd import cross_entropy_loss, embedding, grouped_linear, logsumexp
from galvatron.runtime.stage import Layer, Stage, Summed
from galvatron.runtime.whole import WholeParameters

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "Axis",
    "Calls",
    "CommunicationCounter",
    "Executor",
    "Layer",
    "LossScaler",
    "Mesh",
    "ModelState",
    "Part",
    "PartialSum",
    "Piece",
    "RowTable",
    "Rows",
    "RunState",
    "Seed",
    "Sharded",
    "Source",
    "Stage",
    "StepMetrics",
    "Summed",
    "WholeParameters",
    "World",
    "addmm",
    "again",
    "agree",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "batch_norm",
    "build_mesh",
    "combine",
    "copy",
    "cross_entropy_loss",
    "dispatch",
    "embedding",
    "grouped_linear",
    "first",
    "initialize",
    "keep",
    "linear",
    "logsumexp",
    "materialize",
    "once",
    "packed",
    "pad",
    "reduce_scatter",
    "scaled_dot_product_attention",
    "seeded",
    "shutdown",
    "slice",
    "together",
    "wait",
]
