"""The import direction, and what must not be loaded before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import galvatron

ROOT = Path(galvatron.__file__).parent
BASE = {"errors", "printing", "schedules", "units"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "units": {"errors"},
    "printing": set(),
    "recompute": {"errors"},
    "grouped": set(),
    "routes": set(),
    "schedules": {"errors", "schedules"},
    "solver": {"errors", "solver"},
    "ir": BASE | {"ir", "grouped"},
    "machine": BASE | {"ir", "machine"},
    "rewriting": BASE | {"ir", "rewriting"},
    "partition": BASE | {"ir", "machine", "partition"},
    "costs": BASE | {"ir", "machine", "partition", "costs", "recompute", "routes"},
    "passes": BASE | {"ir", "machine", "rewriting", "partition", "costs", "passes", "solver"},
    "codegen": BASE | {"ir", "codegen"},
    "runtime": {"errors", "grouped", "recompute", "routes", "runtime", "schedules"},
    "tensor_file": {"errors", "ir"},
    "checkpoints": {"checkpoints", "errors", "ir", "runtime", "tensor_file", "units"},
    "weights": {"errors", "ir", "runtime", "tensor_file", "units", "weights"},
    "data": {"data", "errors", "facts", "ir", "runtime"},
    "profiler": BASE | {"ir", "profiler", "runtime"},
    "calibration": BASE
    | {"breakdown", "calibration", "codegen", "costs", "ir", "machine", "partition", "passes", "profiler", "recompute"}
    | {"runtime", "units"},
    "breakdown": BASE | {"costs"},
    "facts": set(),
    "drift": {"errors"},
}
"""Part of the package → the parts it may import; `api`, `cli` and what serves them are on top and may import all."""

KNOWS_NOTHING_OF: dict[str, tuple[str, ...]] = {
    "ir/ops": ("ir.text", "ir.verify", "ir.capture", "ir.program", "ir.plan"),
    "passes/frontend": ("partition", "costs", "passes.planning", "passes.lower"),
    "passes/planning": ("passes.frontend", "passes.lower"),
    "passes/lower": ("costs", "passes.frontend", "passes.planning"),
}
"""Room → what it does not use, though the part that it is in may."""

RATES = {"memory_bytes_per_s", "matmul_flop_per_s", "flop_per_s", "bytes_per_s", "kernel_launch_s", "latency_s"}
READ_RATES = {
    "machine/machine.py", "machine/kernels.py", "machine/products.py", "machine/attention.py", "machine/collectives.py",
    "ir/cluster.py", "ir/cluster_file.py", "ir/device.py",
}  # fmt: skip
"""What makes seconds of bytes and FLOP, and who may: the machine, and who reads, checks and measures clusters."""

WITHOUT_TORCH = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if (relative := path.relative_to(ROOT)).parts[0]
    in {"__init__.py", "__main__.py", "errors.py", "schedules", "units.py", "printing.py", "cli"}
    or relative.parts[0] in {"machine", "solver"}
    or (relative.parts[0] == "ir" and "capture" not in relative.parts and relative.name != "interpreter.py")
    or (relative.parts[0] == "passes" and relative.name in {"base.py", "pipeline.py", "registry.py", "instrument.py"})
]
"""Modules that do not import torch when they are imported, if at all."""


def modules(part: str) -> list[Path]:
    return sorted((ROOT / part).rglob("*.py")) if (ROOT / part).is_dir() else [ROOT / f"{part}.py"]


def imported(tree: ast.AST, *, for_types: bool = False) -> Iterator[str]:
    """Every module that a tree imports, wherever the statement stands; those for type checkers only `for_types`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node, for_types=for_types)


def at_module_level(tree: ast.Module) -> ast.Module:
    """The tree without the bodies of functions."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

    return Strip().visit(tree)


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_point_one_way(part: str) -> None:
    for path in modules(part):
        for name in imported(ast.parse(path.read_text())):
            package, _, rest = name.partition(".")
            if package == "galvatron" and rest:
                assert rest.split(".")[0] in MAY_IMPORT[part], f"{path.relative_to(ROOT)} imports {name}"


def files_imported(path: Path, files: dict[str, Path], *, for_types: bool) -> set[str]:
    """The files of the package that one imports; what a package merely re-exports is imported from where it is."""
    found: set[str] = set()
    for name in imported(ast.parse(path.read_text()), for_types=for_types):
        found.add(name if name in files else name.rpartition(".")[0])
    return {name for name in found & files.keys() if not any(other.startswith(f"{name}.") for other in found)}


@pytest.mark.parametrize("part", ["", "runtime"])
def test_files_import_each_other_in_no_circle(part: str) -> None:
    """In the runtime imports for type checkers count too: a circle of them is one of ideas."""
    paths = sorted((ROOT / part).rglob("*.py"))
    files = {
        ".".join(["galvatron", *p.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): p for p in paths
    }
    files.pop("galvatron.runtime")  # its face, on top of all others
    graph = {name: files_imported(path, files, for_types=bool(part)) - {name} for name, path in files.items()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


COLLECTIVES = {
    *("all_gather", "all_gather_object", "all_reduce", "all_to_all", "barrier", "batch_isend_irecv", "broadcast"),
    *("broadcast_object_list", "irecv", "isend", "recv", "reduce", "scatter", "send"),
    *("allgather", "_allgather_base", "allreduce", "alltoall_base", "_reduce_scatter_base"),
}
CALL_THE_LIBRARY = {"runtime/comm", "demo"}
"""The one place of the runtime, and a script, which is no part of a step."""


def test_one_place_calls_the_communication_library() -> None:
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if any(place.startswith(f"{allowed}/") for allowed in CALL_THE_LIBRARY):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in COLLECTIVES:
                owner = ast.unparse(node.value)
                assert owner.split(".")[-1] in {"comm", "rt", "collectives"}, f"{place}: {owner}.{node.attr}"


@pytest.mark.parametrize("part", KNOWS_NOTHING_OF)
def test_rooms_do_not_use_each_other(part: str) -> None:
    for path in modules(part):
        names = {name.removeprefix("galvatron.") for name in imported(ast.parse(path.read_text()))}
        assert not [name for name in names if name.startswith(KNOWS_NOTHING_OF[part])], path.relative_to(ROOT)


def test_only_the_machine_makes_seconds() -> None:
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in RATES
    }
    assert readers == READ_RATES


@pytest.mark.parametrize("path", WITHOUT_TORCH, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_torch_waits_until_it_is_needed(path: Path) -> None:
    names = imported(at_module_level(ast.parse(path.read_text())))
    assert not {name.partition(".")[0] for name in names} & {"torch", "transformers"}


@pytest.mark.parametrize(
    "statement",
    [
        "import galvatron",
        "import sys; sys.argv = ['galvatron', '--help']; from galvatron.cli import main; exit_of(main)",
        "import sys; sys.argv = ['galvatron', 'search', '--help']; from galvatron.cli import main; exit_of(main)",
    ],
)
def test_help_and_import_load_nothing_heavy(statement: str) -> None:
    script = (
        "def exit_of(main):\n"
        "    try: main()\n"
        "    except SystemExit as exit: assert not exit.code\n"
        f"{statement}\n"
        "import sys\n"
        "heavy = {'torch', 'sympy', 'numpy', 'scipy', 'networkx', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_reading_and_planning_need_no_torch() -> None:
    script = (
        "import sys, galvatron.ir.program, galvatron.ir.text, galvatron.ir.verify, galvatron.ir.plan\n"
        "import galvatron.passes.pipeline, galvatron.passes.instrument, galvatron.cli.tables\n"
        "import galvatron.checking.program, galvatron.cli\n"
        "for option in ('--list-passes', '--list-pipeline'):\n"
        "    galvatron.cli.app(['opt', option], standalone_mode=False)\n"
        "assert not {'torch', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_what_traces_and_trains_is_not_loaded_for_programs_alone() -> None:
    """It takes longer to import than most plans to estimate."""
    script = (
        "import sys, galvatron.offline, galvatron.answers.explain, galvatron.cli.search\n"
        "assert not {'torch._dynamo', 'torch.distributed.fsdp', 'galvatron.ir.capture'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_verifying_everyday_ops_needs_no_torch() -> None:
    """Of the first op that the table does not describe it is loaded, and of some its compiler, which takes as long."""
    graph = (
        "galvatron ir 2\n\ngraph {\n input %i : i64[4, 8]\n state %t : f32[9, 6]\n state %w : f32[6]\n"
        " %x = aten.embedding.default(%t, %i) : f32[4, 8, 6]\n"
        " %n = aten.rms_norm.default(%x, [6], %w, 1e-6) : f32[4, 8, 6]\n"
        ' %g = aten.gelu.default(%n, approximate="tanh") : f32[4, 8, 6]\n'
        " %d = aten.dropout.default(%g, 0.1, true) : f32[4, 8, 6]\n"
        " %a = aten.add.Tensor(%x, %d) : f32[4, 8, 6]\n"
        " %q = aten.reshape.default(%a, [4, 8, 2, 3]) : f32[4, 8, 2, 3]\n"
        " %h = aten.scaled_dot_product_attention.default(%q, %q, %q, is_causal=true) : f32[4, 8, 2, 3]\n"
        " %c = aten.cat.default([%h, %q], 3) : f32[4, 8, 2, 6]\n"
        " %s = aten.silu.default(%c) : f32[4, 8, 2, 6]\n"
        " %p = aten.pad.default(%i, [0, 1], value=-100.0) : i64[4, 9]\n"
        " %l = aten.slice.Tensor(%p, 1, 1, 9) : i64[4, 8]\n"
        " %b = aten.ne.Scalar(%l, -100) : bool[4, 8]\n"
        " %k = aten.sum.dim_IntList(%b, [1]) : i64[4]\n"
        " %r = aten.arange.default(4) : i64[4]\n"
        " %e = aten.add.Tensor(%k, %r) : i64[4]\n"
        " %m = aten.mean.dim(%s, [1, 2, 3]) : f32[4]\n"
        " %o = aten.mul.Tensor(%m, %e) : f32[4]\n return %o\n}"
    )
    script = (
        "import sys\nfrom galvatron.ir.text import parse_graph\n"
        "from galvatron.ir.verify.computed import computed_problem\n"
        f"graph = parse_graph({graph!r})\n"
        "assert not any(computed_problem(op, graph.types) for op in graph.ops)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("name", galvatron.__all__)
def test_public_names(name: str) -> None:
    assert getattr(galvatron, name).__name__ == name


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        _ = galvatron.train  # type: ignore[attr-defined]  # the point of the test
