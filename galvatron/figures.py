"""Figures of a run while it goes on: lines of JSON, TensorBoard, and one line of progress."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsFloat

import sympy

from galvatron.compiled import CompiledModel
from galvatron.errors import GalvatronError
from galvatron.ir.files import check_path
from galvatron.ir.json_values import finite
from galvatron.ir.program import Program
from galvatron.ir.types import BATCH
from galvatron.runtime import StepMetrics
from galvatron.units import format_bytes, format_seconds

_LOG = logging.getLogger("galvatron")

_PERIOD_S = 10.0
"""Between two lines of progress where they do not replace one another."""

_WRITTEN_OTHERWISE = ("waits_s", "peak_bytes", "samples", "tokens")
"""Of the fields of `StepMetrics`."""


class Figures:
    """Writes the figures of steps into a directory.

        with galvatron.Figures(compiled, "runs/first", total=1000) as figures:
            for step, batch in enumerate(batches, 1):
                compiled.train_step(batch)
                figures.add(step, learning_rate=scheduler.get_last_lr()[0])

    `figures.jsonl` gets one line of JSON for each step: loss, gradient norm, tokens and samples per second, MFU, parts
    of the step, memory and what checkpoints held training up for; as `StepMetrics` calls them, and None where a number
    is not finite. A run that goes on adds to it: lines of the steps that it does again are left out, those from the
    first one that is added here on, as TensorBoard does, which shows the same where it is installed. So a step has one
    line. Figures of a step are read when the next one has begun, so that no device is waited for; rates count all of
    the time between two steps. Nothing of it is collective.

    Args:
        compiled: what is trained.
        every: steps, of which one is written.
        total: steps of the run, for the time that is left.
        progress: show a line on rank 0's standard error.
        tensorboard: None, where it is installed.
        every_rank: all ranks write, `figures.rank_00001.jsonl` and so on: parts of a step are those of a rank.
        peak_flop_per_s: of a device, what MFU is relative to; None: the best rate of products of the cluster that
            `compile` was given or found; without that either, no MFU.

    Raises:
        GalvatronError: the directory cannot be written, or TensorBoard is asked for and not installed; of `add`, what
            it is given are no numbers.
    """

    def __init__(
        self,
        compiled: CompiledModel,
        directory: str | os.PathLike[str],
        *,
        every: int = 1,
        total: int | None = None,
        progress: bool = True,
        tensorboard: bool | None = None,
        every_rank: bool = False,
        peak_flop_per_s: float | None = None,
    ) -> None:
        check_path(directory, "figures go into a directory")
        if type(every) is not int or every < 1:
            raise GalvatronError(f"every must be a number of steps, not {every!r}")
        self._compiled, self._every, self._total = compiled, every, total
        rank, ranks = compiled.rank, compiled.plan.world_size
        peak = compiled.peak_flop_per_s if peak_flop_per_s is None else peak_flop_per_s
        self._peak = None if peak is None else peak * ranks
        self._progress = _Progress(total) if progress and rank == 0 else None
        self._folder = Path(directory)
        self._lines: Path | None = None
        self._board: Any = None
        if rank == 0 or every_rank:
            self._lines = self._folder / ("figures.jsonl" if rank == 0 else f"figures.rank_{rank:05d}.jsonl")
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._lines.touch()
            except OSError as error:
                raise GalvatronError(f"figures cannot be written into {directory}: {error.strerror}") from error
        self._writer = _writer_of(tensorboard) if rank == 0 else None
        self._flop: dict[int, float | None] = {}
        self._waiting: tuple[int, Callable[[], StepMetrics], float | None, dict[str, float]] | None = None
        self._last: tuple[int, float] | None = None
        self._first: int | None = None

    def add(self, step: int, **more: SupportsFloat) -> None:
        """A step has ended.

        Args:
            step: its number, as the caller counts.
            more: other figures of it, by name.
        """
        if type(step) is not int:
            raise GalvatronError(f"a step is a whole number, not {step!r:.80}")
        try:
            others = {name: float(value) for name, value in more.items()}
        except (TypeError, ValueError) as error:
            raise GalvatronError(f"the figures of step {step} are numbers: {error}") from error
        if self._first is None and self._lines is not None:
            self._first = step
            self._or_warn(step, lambda path: leave_out(path, step))
        now, before = time.perf_counter(), self._last
        self._last = step, now
        self._write_waiting()
        if self._lines is not None and step % self._every == 0:
            passed_s = None if before is None or step <= before[0] else (now - before[1]) / (step - before[0])
            self._waiting = step, self._compiled.pending_metrics(), passed_s, others

    def close(self) -> None:
        """Writes what is left."""
        self._write_waiting()
        if self._progress is not None:
            self._progress.end()
        if self._board is not None:
            self._board.close()
        self._lines = self._board = None

    def __enter__(self) -> Figures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # the device of a job that has failed may never end its step
            self._waiting = None
        self.close()

    def _write_waiting(self) -> None:
        if self._waiting is None or self._lines is None:
            return
        (step, read, passed_s, more), self._waiting = self._waiting, None
        found = read()
        figures = {"step": step, "time": time.time(), **figures_of(found, passed_s, self._mfu(found, passed_s)), **more}
        line = json.dumps(finite(figures)) + "\n"
        self._or_warn(step, lambda path: _append(path, line))
        if self._progress is not None:
            self._progress.show(figures)
        if self._writer is not None:
            if self._board is None:
                self._board = self._writer(str(self._folder), purge_step=self._first)
            for name, value in _scalars(figures):
                self._board.add_scalar(name, value, step)

    def _or_warn(self, step: int, write: Callable[[Path], None]) -> None:
        """Writes into the file of lines; one that cannot be written, for want of room say, does not stop training."""
        assert self._lines is not None
        try:
            write(self._lines)
        except OSError as error:
            _LOG.warning("the figures of step %d cannot be written into %s: %s", step, self._lines, error.strerror)

    def _mfu(self, found: StepMetrics, passed_s: float | None) -> float | None:
        if self._peak is None:
            return None
        if found.samples not in self._flop:
            self._flop[found.samples] = step_flop(self._compiled.program, found.samples)
        flop = self._flop[found.samples]
        return None if flop is None else flop / ((passed_s or found.step_s) * self._peak)


def leave_out(lines: Path, step: int) -> None:
    """Cuts a file of lines off before those of a step and later ones, and before one that a crash has cut short."""
    end = 0
    with open(lines, "r+b") as file:
        for line in file:
            if not line.endswith(b"\n") or not _is_before(line, step):
                break
            end += len(line)
        file.truncate(end)


def _is_before(line: bytes, step: int) -> bool:
    try:
        return json.loads(line)["step"] < step
    except (ValueError, KeyError, TypeError):
        return False


def _append(lines: Path, line: str) -> None:
    with open(lines, "a", encoding="utf-8") as file:
        file.write(line)


def figures_of(found: StepMetrics, passed_s: float | None, mfu: float | None) -> dict[str, Any]:
    """The figures of a step that are written, by name.

    Args:
        passed_s: from the end of the step before to the end of this one, if there was one.
    """
    figures = {name: value for name, value in asdict(found).items() if name not in _WRITTEN_OTHERWISE}
    figures["passed_s"] = passed_s = passed_s or found.step_s
    figures["samples_per_s"] = found.samples / passed_s
    figures["tokens_per_s"] = None if found.tokens is None else found.tokens / passed_s
    figures["mfu"] = mfu
    figures["peak_bytes"] = None if found.peak_bytes is None else max(found.peak_bytes)
    return figures | {f"waits_s/{name}": value for name, value in found.waits_s.items()}


def step_flop(program: Program, samples: int) -> float | None:
    """FLOP of forward and backward on so many samples, without what is recomputed; None where they depend on more."""
    total = sympy.Integer(0)
    for name, count in Counter(layer.cls for layer in program.all_layers).items():
        cost = program.class_of[name].cost
        if cost is None:
            return None
        total += count * (cost.forward_flop + cost.backward_flop)
    value = total.subs({BATCH: samples})
    return float(value) if value.is_number else None


def _writer_of(wanted: bool | None) -> Callable[..., Any] | None:
    """TensorBoard's writer."""
    if wanted is False:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        if wanted:
            raise GalvatronError("tensorboard=True, but TensorBoard is not there: pip install tensorboard") from error
        return None
    return SummaryWriter


def _scalars(figures: Mapping[str, Any]) -> list[tuple[str, float]]:
    return [(k, float(v)) for k, v in figures.items() if k not in ("step", "time") and isinstance(v, (int, float))]


class _Progress:
    """One line on standard error, which each step replaces; in a file of logs, one every few seconds."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._replaces = sys.stderr.isatty()
        self._width = 0
        self._shown_s = -math.inf
        self._left = ""

    def show(self, figures: Mapping[str, Any]) -> None:
        """The figures of a step."""
        line = progress_line(figures, self._total)
        if self._replaces:
            sys.stderr.write("\r" + line.ljust(self._width))
            sys.stderr.flush()
            self._width = len(line)
        elif time.perf_counter() - self._shown_s >= _PERIOD_S:
            sys.stderr.write(line + "\n")
            self._shown_s, self._left = time.perf_counter(), ""
        else:
            self._left = line

    def end(self) -> None:
        """The last line stays."""
        sys.stderr.write("\n" if self._replaces and self._width else self._left and self._left + "\n")
        self._width, self._left = 0, ""


def progress_line(figures: Mapping[str, Any], total: int | None) -> str:
    """Figures in a line."""
    step, rate = figures["step"], figures["samples_per_s"]
    tokens, mfu, peak = figures["tokens_per_s"], figures["mfu"], figures["peak_bytes"]
    parts = [f"step {step}" + (f"/{total}" if total else ""), f"loss {figures['loss']:.4g}"]
    parts.append(f"{rate:,.1f} samples/s" if tokens is None else f"{tokens:,.0f} tokens/s")
    parts += [f"MFU {mfu:.1%}"] if mfu is not None else []
    parts += [format_bytes(peak)] if peak is not None else []
    if total and step < total:
        parts.append(f"{format_seconds((total - step) * figures['passed_s'])} left")
    return "  ".join(parts)
