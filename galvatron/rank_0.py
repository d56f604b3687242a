"""What rank 0 alone plans, on every rank of a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from galvatron import runtime as rt
from galvatron.bugs import ours
from galvatron.errors import GalvatronError, error_of_kind
from galvatron.ir.capture import Captured
from galvatron.ir.ops.foreign import adopt, foreign_targets
from galvatron.ir.program import Program
from galvatron.ir.text import parse_program, print_program
from galvatron.ir.types import TORCH_DTYPE_NAMES
from galvatron.runtime import comm, failure


def on_rank_0(world: rt.World, plan: Callable[[], Captured]) -> Captured:
    """What `plan` returns on rank 0, on every rank: the program as text, its constants as tensors. Collective.

    Raises:
        GalvatronError: whatever `plan` raises on rank 0, on every rank.
    """
    if world.size == 1:
        return plan()
    captured, error, message = None, None, ("", "", {}, frozenset())
    if world.rank == 0:
        try:
            captured = plan()
            with ours("printing the plan", captured.program):
                foreign = foreign_targets(captured.program.graphs)
                message = ("program", print_program(captured.program), foreign, captured.fixed)
        except Exception as raised:  # whatever it is, the other ranks must not wait for a plan that never comes
            error = raised
            kind = type(raised).__name__
            own = isinstance(raised, GalvatronError)
            message = (kind, str(raised) if own else f"rank 0 failed while planning: {kind}: {raised}", {}, frozenset())
    with failure.guarded("waiting for the plan of rank 0"):
        kind, text, foreign, fixed = comm.broadcast_object(message, comm.all_ranks(), 0, phase="the plan", patient=True)
    if error is not None:
        raise error
    if kind != "program":
        raise error_of_kind(kind, text)
    # Rank 0 too goes on from the text, so that all ranks lower the very same program.
    with rt.together(world, "compile"), ours("reading the plan of rank 0"):
        adopt(foreign)
        program = parse_program(text)
    return Captured(program, _broadcast_constants(program, captured.constants if captured else {}, world), fixed)


def _broadcast_constants(program: Program, own: Mapping[str, Tensor], world: rt.World) -> dict[str, Tensor]:
    """The data of the program's constants, from rank 0."""
    constants: dict[str, Tensor] = {}
    for state in program.state:
        if state.kind == "constant":
            if state.name in own:
                value = rt.packed(own[state.name].detach().to(world.device, copy=True))
            else:
                dtype = getattr(torch, TORCH_DTYPE_NAMES[state.type.dtype])
                value = torch.empty([int(d) for d in state.type.shape], dtype=dtype, device=world.device)
            comm.broadcast(value, comm.all_ranks(), 0, phase="constants").wait()
            constants[state.name] = value.cpu()
    return constants
