"""A pipeline: passes in order, as a value that parses from text and prints back, with instruments around each pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from galvatron.errors import PassError, did_you_mean
from galvatron.ir.documents import shown
from galvatron.ir.program import Form, Program
from galvatron.passes.base import Pass, PassResult, split_outside_quotes
from galvatron.passes.others import code_of_others, is_ours
from galvatron.passes.registry import load_pass, loadable_passes


@dataclass(frozen=True)
class Step:
    """One pass about to run: its pipeline, its place in it, and the program it gets."""

    pipeline: Pipeline
    index: int
    program: Program

    @property
    def pass_(self) -> Pass:
        return self.pipeline.passes[self.index]


Instrument = Callable[[Step, Callable[[], PassResult]], PassResult]
"""What stands around every pass: it gets the step and a function that runs the pass, and gives back a result."""


@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run, written `normalize,cluster-layers,prune,search{memory=36GiB}`."""

    passes: tuple[Pass, ...]

    @staticmethod
    def parse(text: str) -> Pipeline:
        """Reads pipeline text.

        Raises:
            PassError: malformed text, an unknown pass or option (with the nearest known one), a wrong value.
        """
        return Pipeline(tuple(parse_pass(item) for item in split_outside_quotes(text)))

    @staticmethod
    def of(names: Iterable[str], options: Mapping[str, Mapping[str, Any]] | None = None) -> Pipeline:
        """The named passes with their options as Python values, `options` by pass name.

        Raises:
            PassError: an unknown pass, or options for a pass that is not among the names.
        """
        names, options = tuple(names), options or {}
        for stray in options.keys() - set(names):
            raise PassError(f"options for pass {stray!r}, which is not in the pipeline; {did_you_mean(stray, names)}")
        return Pipeline(tuple(load_pass(name)(**options.get(name, {})) for name in names))

    def __str__(self) -> str:
        return ",".join(str(p) for p in self.passes)

    def check(self, form: Form) -> None:
        """Checks, before anything runs, that each pass gets the form it needs from the one before it.

        Raises:
            PassError: one does not; the message says which, and which passes would give that form.
        """
        giver = "the program given"
        for pass_ in self.passes:
            if not pass_.takes(form):
                raise PassError(
                    f"pass {pass_.name!r} needs a program in form {pass_.needed()}, but {giver} is in form {form}; "
                    f"{_way_to(type(pass_), form)}"
                )
            if pass_.leaves is not None:
                form, giver = pass_.leaves, f"what {pass_.name!r} leaves"

    def run(self, program: Program, instruments: Iterable[Instrument] = ()) -> Program:
        """The program after every pass. Instruments stand around each pass, the first of them outermost.

        Raises:
            PassError: a pass needs another form than it gets, or leaves another than it declares; or one of others, or
                an instrument, fails.
            GalvatronError: whatever a pass or an instrument raises.
        """
        self.check(program.form)
        instruments = tuple(instruments)
        for index in range(len(self.passes)):
            step = Step(self, index, program)
            proceed: Callable[[], PassResult] = partial(run_step, step)
            for instrument in reversed(instruments):
                proceed = partial(_run_instrument, instrument, step, proceed)
            program = proceed().program
        return program


_PASS = re.compile(r"([A-Za-z][\w-]*)\s*(?:\{(.*)\})?", re.DOTALL)


def parse_pass(text: str) -> Pass:
    """Reads one pass, such as `search{memory=36GiB,schedule=1f1b}`.

    Raises:
        PassError: see `Pipeline.parse`.
    """
    match = _PASS.fullmatch(text)
    if match is None:
        raise PassError(f"{text!r} is not a pass; write it like 'prune' or 'search{{memory=36GiB,schedule=1f1b}}'")
    name, option_text = match.groups()
    cls = load_pass(name)
    options: dict[str, str] = {}
    for item in split_outside_quotes(option_text or ""):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise PassError(f"pass {name!r}: option {item!r} has no value; write {item}=…")
        if key in options:
            raise PassError(f"pass {name!r}: option {key!r} is given twice")
        options[key] = value
    with _called(cls, f"pass {name!r}"):
        return cls.with_options(options)


def _called(code: object, what: str, passing: Sequence[BaseException] = ()) -> AbstractContextManager[None]:
    """Around a call of a pass or an instrument, which others may have written."""
    return nullcontext() if is_ours(code) else code_of_others(what, passing)


def _run_instrument(instrument: Instrument, step: Step, proceed: Callable[[], PassResult]) -> PassResult:
    """What an instrument gives that stands around a pass.

    Raises:
        PassError: it fails, or gives no result.
        GalvatronError: whatever it raises, or the pass.
    """
    passing: list[BaseException] = []

    def watched() -> PassResult:
        try:
            return proceed()
        except BaseException as error:
            passing.append(error)
            raise

    what = f"instrument {_name(instrument)} around pass {step.pass_.name!r}"
    with _called(instrument, what, passing):
        result = instrument(step, watched)
    return _checked(result, what, "give back what the function gives that it is called with")


def _name(instrument: Instrument) -> str:
    return repr(getattr(instrument, "__qualname__", type(instrument).__qualname__))


def _checked(result: Any, what: str, advice: str) -> PassResult:
    """
    Raises:
        PassError: what a pass or an instrument gave is no result with a program.
    """
    if isinstance(result, PassResult) and isinstance(result.program, Program):
        return result
    given = f"a PassResult of {type(result.program).__name__}" if isinstance(result, PassResult) else shown(result)
    raise PassError(f"{what} gave {given}, not a PassResult of a Program: {advice}")


def run_step(step: Step) -> PassResult:
    """What a pass gives of the program that it gets.

    Raises:
        PassError: it leaves another form than it declares; or it is one of others, and fails, or gives no result.
        GalvatronError: whatever the pass raises.
    """
    what = f"pass {step.pass_.name!r}"
    with _called(step.pass_, what):
        result = step.pass_.result(step.program)
    result = _checked(result, what, "`run` gives a Program, and `result` one in a PassResult")
    leaves = step.program.form if step.pass_.leaves is None else step.pass_.leaves
    if result.program.form != leaves:
        raise PassError(
            f"pass {step.pass_.name!r} declares that it leaves form {leaves}, but it left {result.program.form}"
        )
    return result


def _way_to(needing: type[Pass], form: Form) -> str:
    first, last = needing.needs if isinstance(needing.needs, tuple) else (needing.needs, needing.needs)
    if last < form:
        return f"run it earlier, on a program that is still {last}"
    givers = [cls.name for cls in loadable_passes() if cls.leaves == first and not cls.takes(first)]
    return f"run {' or '.join(map(repr, givers))} before it" if givers else "no pass gives that form"
