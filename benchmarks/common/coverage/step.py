"""A step of a captured architecture under plans, on ranks forked from this process."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import galvatron
from common.architectures.base import Batch, Subject
from common.coverage.eager import eager, errors_of
from common.coverage.outcomes import PlanOutcome, told, without_paths
from common.coverage.plans import Attempts
from common.jobs import free_port
from galvatron import api
from galvatron import runtime as rt
from galvatron.errors import PlanError, RankError, StrategyError
from galvatron.ir.capture import Captured

RANKS = 2
EXAMPLE, STEP = 4, 8
"""Samples of the batch that a model is captured with, and of that which the step is compared on."""

TOLERANCE, SINGLE_TOLERANCE = 1e-9, 1e-5
"""The relative error that is allowed, and where the model itself computes something in float32."""

_DOES_NOT_APPLY = (PlanError.__name__, StrategyError.__name__)

LIMIT_S, PATIENCE_S = 60.0, 10.0
"""What a plan may take, and how much longer the other rank may take once one has failed."""


@dataclass(frozen=True)
class Answer:
    """What a rank says: "ran" with the relative errors (on rank 0), or what became of it and why."""

    kind: str
    cause: str = ""
    errors: dict[str, float] | None = None


class Step:
    """A captured architecture, and the step that it is to do.

    Args:
        single: the model computes something in float32.
    """

    def __init__(self, subject: Subject, captured: Captured, batch: Batch, single: bool) -> None:
        self._subject, self._captured, self._batch = subject, captured, batch
        self._expected = eager(subject, batch)
        self._tolerance = SINGLE_TOLERANCE if single else TOLERANCE

    def under(self, attempts: Attempts) -> PlanOutcome:
        """What becomes of it under the first of some plans that applies; under the first of all, if none does."""
        passed_over: dict[str, str] = {}
        for plan in attempts:
            began = time.perf_counter()
            answer = self._on_ranks(plan)
            outcome = self._judged(plan, answer, round(time.perf_counter() - began, 2), passed_over)
            if answer.kind not in _DOES_NOT_APPLY:
                return outcome
            passed_over[plan] = without_paths(answer.cause)
        plan, cause = next(iter(passed_over.items()))
        return PlanOutcome(plan, "refused", cause, passed_over=passed_over)

    def _judged(self, plan: str, answer: Answer, seconds: float, passed_over: dict[str, str]) -> PlanOutcome:
        if answer.errors is None:
            return PlanOutcome(
                plan, answer.kind, without_paths(answer.cause), seconds=seconds, passed_over=dict(passed_over)
            )
        where, error = max(answer.errors.items(), key=lambda item: item[1])
        wrong = {name: found for name, found in answer.errors.items() if not found <= self._tolerance}
        some = ", ".join(f"{name} {found:.1e}" for name, found in list(wrong.items())[:5])
        cause = f"relative errors of {len(wrong)} out of {len(answer.errors)}: {some}" if wrong else ""
        outcome = "wrong" if wrong else "equal"
        return PlanOutcome(plan, outcome, cause, min(error, 1e300), where, seconds, dict(passed_over))

    def _on_ranks(self, plan: str) -> Answer:
        context = multiprocessing.get_context("fork")
        port = free_port()
        with tempfile.TemporaryDirectory() as folder:
            connections: list[Connection] = []
            processes = []
            for rank in range(RANKS):
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=self._rank, args=(rank, port, plan, there, f"{folder}/{rank}"))
                process.start()
                there.close()
                connections.append(here)
                processes.append(process)
            try:
                return _answer(connections, folder)
            finally:
                for process in processes:
                    process.kill()
                for process in processes:
                    process.join()

    def _rank(self, rank: int, port: int, plan: str, results: Connection, log: str) -> None:
        """The main function of a rank."""
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
        try:
            results.send(Answer("ran", errors=self._errors(rank, plan)))
        except BaseException as error:
            kind, cause = told(error)
            own = isinstance(error, (PlanError, StrategyError, RankError))
            results.send(Answer(type(error).__name__ if own else kind, cause))
        results.close()
        os._exit(0)

    def _errors(self, rank: int, plan: str) -> dict[str, float]:
        """The relative errors of a step on this rank, on rank 0; the whole way of `compile`, but for the capture."""
        rt.initialize("cpu", timeout_s=LIMIT_S / 2)
        api.capture_graph = lambda *args, **options: self._captured
        subject = self._subject
        example = subject.batch(EXAMPLE, 0)
        compiled = galvatron.compile(subject.model, example, loss_fn=subject.loss_fn, plan=plan, timeout_s=LIMIT_S / 2)
        loss = float(compiled.forward_backward(self._batch))
        gradients = compiled.full_gradients(rank0_only=True)
        state = compiled.full_state_dict(rank0_only=True)
        has_evaluation = self._expected.evaluated is not None and not self._captured.program.unlike_evaluated
        evaluated = float(compiled.eval_step(self._batch)) if has_evaluation else None
        return errors_of(loss, gradients, state, evaluated, self._expected) if rank == 0 else {}


def _answer(connections: list[Connection], folder: str) -> Answer:
    """Rank 0's answer if all ranks have run, otherwise that of the rank that failed by itself."""
    answers: dict[int, Answer] = {}
    left = {connection: rank for rank, connection in enumerate(connections)}
    deadline = time.monotonic() + LIMIT_S
    while left:
        ready = wait(list(left), max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for connection in ready:
            assert isinstance(connection, Connection)
            rank = left.pop(connection)
            try:
                answers[rank] = connection.recv()
            except EOFError:
                answers[rank] = Answer("ended", f"the process of rank {rank} ended: {_last_lines(f'{folder}/{rank}')}")
            if answers[rank].kind != "ran":
                deadline = min(deadline, time.monotonic() + PATIENCE_S)
    failed = sorted((a for a in answers.values() if a.kind != "ran"), key=lambda a: a.kind in ("RankError", "ended"))
    if failed:
        first = failed[0]
        return Answer("crash", first.cause) if first.kind in ("RankError", "ended") else first
    return Answer("timeout", f"no answer within {LIMIT_S:.0f} s") if left else answers[0]


def _last_lines(file: str) -> str:
    with open(file, encoding="utf-8", errors="replace") as log:
        return "\n".join(log.read().strip().splitlines()[-12:])
