"""What a run is besides its parameters and its optimizer: where its random numbers and its loss scale are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from galvatron.errors import GalvatronError, did_you_mean

_VERSION = 1


@dataclass(frozen=True)
class RunState:
    """Plain numbers that are equal on every rank.

    Attributes:
        step: steps so far that drew random numbers.
        seed: of all random numbers.
        loss_scale: what the gradient of the loss is multiplied by, None without loss scaling.
        good_steps: steps since that last changed.
    """

    step: int
    seed: int
    loss_scale: float | None = None
    good_steps: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For `json`; `read` reads it back."""
        return {"version": _VERSION, **asdict(self)}

    @staticmethod
    def read(state: Any, *, scaled: bool) -> RunState:
        """
        Args:
            scaled: whether there is loss scaling.

        Raises:
            GalvatronError: this is no state of a run, or that of a run with another precision.
        """
        if not isinstance(state, Mapping):
            raise GalvatronError(f"the state of a run is what compiled.state() returns, not {type(state).__name__}")
        if state.get("version") != _VERSION:
            raise GalvatronError(
                f"the state of a run has version {state.get('version')!r}, but {_VERSION} is read here"
            )
        known = {"version", *RunState.__dataclass_fields__}
        for key in state:
            if key not in known:
                raise GalvatronError(f"the state of a run has no {key!r}; {did_you_mean(str(key), known)}")
        for key in known - {"version"}:
            if key not in state:
                raise GalvatronError(f"the state of a run has no {key!r}, which it needs")
        for key in ("step", "seed", "good_steps"):
            if type(state[key]) is not int or (state[key] < 0 and key != "seed"):
                raise GalvatronError(f"{key} of the state of a run must be a whole number, not {state[key]!r}")
        scale = state["loss_scale"]
        if scale is not None and not (type(scale) in (int, float) and 0 < scale < math.inf):
            raise GalvatronError(f"loss_scale of the state of a run must be a positive number or None, not {scale!r}")
        if (scale is not None) != scaled:
            raise GalvatronError(
                f"the state is of a run {'with' if scale is not None else 'without'} loss scaling, but this one has "
                f'{"it" if scaled else "none"}: loss scaling belongs to precision="fp16"'
            )
        return RunState(state["step"], state["seed"], None if scale is None else float(scale), state["good_steps"])
