"""Galvatron: a compiler from an unmodified PyTorch model to the fastest distributed training program that fits.

The names below are the whole public interface. They are imported when they are first used, so that `import galvatron`
and the command line's `--help` do not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from galvatron.api import CompiledModel, capture, compile
    from galvatron.checking.examine import check
    from galvatron.checking.report import Report
    from galvatron.errors import GalvatronError
    from galvatron.figures import Figures
    from galvatron.inspection.dataflow import graph
    from galvatron.ir.cluster import Cluster
    from galvatron.ir.ops.foreign import register_rule
    from galvatron.ir.plan import Plan
    from galvatron.ir.program import Program
    from galvatron.ir.strategy import Strategy
    from galvatron.offline import estimate, search
    from galvatron.reporting.page import report
    from galvatron.runtime.averaging import ema
    from galvatron.runtime.joined import JoinedOptimizer
    from galvatron.runtime.whole import WholeParameters
    from galvatron.search_options import SearchOptions
    from galvatron.trainer.arguments import GalvatronArguments
    from galvatron.trainer.trainer import GalvatronTrainer

__all__ = [
    "Cluster",
    "CompiledModel",
    "Figures",
    "GalvatronArguments",
    "GalvatronError",
    "GalvatronTrainer",
    "JoinedOptimizer",
    "Plan",
    "Program",
    "Report",
    "SearchOptions",
    "Strategy",
    "WholeParameters",
    "capture",
    "check",
    "compile",
    "ema",
    "estimate",
    "graph",
    "register_rule",
    "report",
    "search",
]

_HOME = {
    "Cluster": "galvatron.ir.cluster",
    "Figures": "galvatron.figures",
    "GalvatronArguments": "galvatron.trainer",
    "GalvatronError": "galvatron.errors",
    "GalvatronTrainer": "galvatron.trainer",
    "JoinedOptimizer": "galvatron.runtime.joined",
    "Plan": "galvatron.ir.plan",
    "Program": "galvatron.ir.program",
    "Report": "galvatron.checking.report",
    "SearchOptions": "galvatron.search_options",
    "Strategy": "galvatron.ir.strategy",
    "WholeParameters": "galvatron.runtime.whole",
    "check": "galvatron.checking.examine",
    "ema": "galvatron.runtime.averaging",
    "estimate": "galvatron.offline",
    "graph": "galvatron.inspection.dataflow",
    "register_rule": "galvatron.ir.ops.foreign",
    "report": "galvatron.reporting.page",
    "search": "galvatron.offline",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'galvatron' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME.get(name, "galvatron.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
