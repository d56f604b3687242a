"""What becomes of an architecture: values that are written to and read from JSON."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from galvatron.errors import GalvatronError, InternalError, VerifyError

OUTCOMES = ("equal", "refused", "wrong", "crash", "timeout", "unsound", "absent")
"""From the best to the worst that says something of the compiler; `unsound`: eager training fails or does not repeat;
`absent`: the library is not installed."""


@dataclass(frozen=True)
class PlanOutcome:
    """What became of an architecture under one plan.

    Attributes:
        error: the largest relative error of loss, gradients and buffers, and `where`.
        cause: the message, if it is not equal.
        passed_over: plans of the same kind that do not apply to the program, and why.
    """

    plan: str
    outcome: str
    cause: str = ""
    error: float | None = None
    where: str = ""
    seconds: float = 0.0
    passed_over: Mapping[str, str] | None = None


@dataclass(frozen=True)
class RowOutcome:
    """What became of an architecture; without plans it was not captured.

    Attributes:
        capture_s: CPU seconds.
        layers: those that a plan gives strategies to.
        single: the model computes something in float32, so errors are those of float32.
        evaluation: why it cannot be evaluated as in evaluation mode; empty if it can.
    """

    name: str
    family: str
    library: str
    parameters: int = 0
    layers: int = 0
    capture_s: float | None = None
    single: bool = False
    evaluation: str = ""
    outcome: str = ""
    cause: str = ""
    plans: tuple[PlanOutcome, ...] = ()

    @staticmethod
    def read(row: Mapping[str, Any]) -> RowOutcome:
        """From a row of a results file."""
        plans = tuple(PlanOutcome(**plan) for plan in row["plans"])
        own = {name: row[name] for name in RowOutcome.__dataclass_fields__ if name != "plans"}
        return RowOutcome(**own, plans=plans)


def worst(outcomes: list[str]) -> str:
    """The outcome of a row whose plans have these: wrong before crash before timeout before refused before equal."""
    return next((kind for kind in ("wrong", "crash", "timeout", "refused") if kind in outcomes), "equal")


_PATH = re.compile(r"(?<![\w./-])(?:/[\w.+-]+)+/(?:site-packages/|python3\.\d+/|(?=(?:benchmarks|galvatron)/))")
_OTHER = re.compile(r"(?<![\w./-])(?:/[\w.+-]+){2,}/(?=[\w.+-]+)")


def without_paths(message: str) -> str:
    """A message whose files are named from the folder of their library on."""
    return _OTHER.sub("", _PATH.sub("", message))


def told(error: BaseException) -> tuple[str, str]:
    """The outcome that an error is, and its message: a refusal, or a bug with its last frames."""
    if not isinstance(error, GalvatronError):
        return "crash", "".join(traceback.format_exception(type(error), error, error.__traceback__, limit=-3))
    if isinstance(error, (InternalError, VerifyError)):
        return "crash", f"{type(error).__name__}: {error}"
    return "refused", str(error)
