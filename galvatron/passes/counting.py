"""What passes did, counted: what a program consists of before and after each, and what passes tell themselves."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from galvatron.ir.program import Program
from galvatron.passes.base import PassResult, Remark
from galvatron.passes.pipeline import Step


@dataclass(frozen=True)
class Counted:
    """What is known of one pass that ran.

    Attributes:
        changes: what the program has more or less of: how much before, and after.
        counts: how often the pass did what, by its own account.
    """

    pass_: str
    changes: dict[str, tuple[int, int]]
    counts: dict[str, int]
    remarks: tuple[Remark, ...]

    def as_json(self) -> dict[str, Any]:
        """The same for programs; a remark has the op and the line of the model that it is about, or null."""
        return {
            "pass": self.pass_,
            "changes": {name: list(pair) for name, pair in self.changes.items()},
            "counts": self.counts,
            "remarks": [_remark_json(remark) for remark in self.remarks],
        }


def _remark_json(remark: Remark) -> dict[str, Any]:
    op = remark.op
    source = op and op.source
    return {
        "text": remark.text,
        "within": remark.within or None,
        "op": op and op.target,
        "value": op.results[0].name if op and op.results else None,
        "file": source and source.file,
        "line": source and source.line,
        "module": source and source.scope,
    }


@dataclass
class Counting:
    """Instrument: counts what each pass did."""

    found: list[Counted] = field(default_factory=list)

    def __call__(self, step: Step, proceed: Callable[[], PassResult]) -> PassResult:
        result = proceed()
        before, after = contents(step.program), contents(result.program)
        names = dict.fromkeys((*before, *after))
        changes = {name: (before[name], after[name]) for name in names if before[name] != after[name]}
        counts = {name: count for name, count in result.counts.items() if count}
        self.found.append(Counted(str(step.pass_), changes, counts, result.remarks))
        return result


@dataclass(frozen=True)
class PrintCounts:
    """Instrument: prints what each pass did to stderr, on a line."""

    def __call__(self, step: Step, proceed: Callable[[], PassResult]) -> PassResult:
        counting = Counting()
        result = counting(step, proceed)
        (counted,) = counting.found
        told = [f"{name} {before} → {after}" for name, (before, after) in counted.changes.items()]
        told += [f"{name} ×{count}" for name, count in counted.counts.items()]
        print(f"// {step.pass_}: {', '.join(told) or 'nothing'}", file=sys.stderr)
        return result


def contents(program: Program) -> Counter[str]:
    """How many layers, classes, ops, collectives of each kind and so on a program has."""
    graphs = [cls.graph for cls in program.classes] if program.graph is None else [program.graph]
    ops = [op for graph in graphs for op in graph.ops]
    counted = Counter(
        {
            "layers": len(program.all_layers),
            "classes": len(program.classes),
            "stages": len(program.stages),
            "ops": sum(op.namespace != "comm" for op in ops),
            "state": len(program.state),
            "strategies": sum(len(one.strategies) for one in program.candidates),
            "messages between stages": sum(len(stage.sends) for stage in program.stages),
        }
    )
    counted.update(f"comm.{op.name}" for op in ops if op.namespace == "comm")
    counted.update(f"cut by {cut.rule}" for cut in program.cuts)
    counted.update(f"{layer.kind} layers" for layer in program.all_layers if str(layer.kind) != "layer")
    return counted
