"""Bad files and arguments: one message on stderr and an exit status, never a traceback, whatever is in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from galvatron.cli import app
from galvatron.cli.capture import call_factory
from galvatron.cli.output import tie_line
from galvatron.cli.stats import print_statistics
from galvatron.cli.tables import print_plan
from galvatron.costs import fallbacks
from galvatron.errors import CaptureError
from galvatron.ir.graph import Source
from galvatron.ir.layout import Axis
from galvatron.ir.planned import resolve
from galvatron.ir.program import Program
from galvatron.ir.text import print_program
from galvatron.printing import printable
from tests.ir.programs import captured, clustered

HOSTILE = ("[/x]", "[red]", "[bold", "\ud800", "\x1b[31m", "a\nb", "\\[", "{i}", "'; DROP", "\0")
PLANNED = "annotate-costs{cluster=a100-80g:1x4},enumerate-strategies{roles=[tp],pipeline-degrees=[1]},prune,search"
CLUSTER = ("--cluster", "a100-80g:1x4", "--global-batch", 8)


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr; an exception other than an exit fails the test."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def assert_refused(message: str, *arguments: object) -> None:
    code, out, err = run(*arguments)
    assert code in (1, 2) and not out
    assert message in " ".join(err.replace("│", " ").split()), err
    assert "Traceback" not in err
    assert all(c.isprintable() or c in "\n" for c in err)


def named(text: str) -> Program:
    """The program of the tests with a text in the name of everything that tables and messages show."""
    program = clustered(4)
    return replace(
        program,
        name=text,
        classes=tuple(replace(cls, name=f"{text}{cls.name}") for cls in program.classes),
        layers=tuple(
            replace(
                layer, name=f"{text}{layer.name}", cls=f"{text}{layer.cls}", state=tuple(text + n for n in layer.state)
            )
            for layer in program.layers
        ),
        state=tuple(replace(state, name=f"{text}{state.name}") for state in program.state),
    )  # fmt: skip


@pytest.fixture(scope="module")
def program_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "p.gir"
    path.write_text(print_program(clustered(4)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plan_text(program_file: Path) -> str:
    path = program_file.with_name("good.json")
    code, _, err = run("search", program_file, *CLUSTER, "-o", path)
    assert code == 0, err
    return path.read_text()


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_tables_show_names_and_do_not_interpret_them(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    program = named(text)
    plan = replace(resolve(program, "pp2/m2/1f1b/dp1-tp2", 8, 4), cluster=text, peak_bytes=(1, 2))
    print_plan(plan, program)
    reason = fallbacks.Fallback(f"aten.{text}.x", Axis(text, 2, 1), None, 1, 1.0, 0.5)
    print_statistics((fallbacks.ClassStatistics(text, 1, 1.0, (reason,), ()),), tie_line(plan))
    shown = "".join(capsys.readouterr())
    assert shown.count(printable(f"shared parameters: {text}embed.weight as under tp2").replace("\n", "\\n")) == 2
    assert printable(f"{text}embedding").replace("\n", "\\n") in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


@pytest.mark.slow
def test_every_command_takes_any_name(tmp_path: Path) -> None:
    path = tmp_path / "p.gir"
    path.write_text(print_program(named("".join(HOSTILE))), encoding="utf-8")
    for arguments in (
        ("search", path, *CLUSTER, "-o", tmp_path / "plan.json"),
        ("estimate", path, *CLUSTER, "--plan", tmp_path / "plan.json"),
        ("emit", path, *CLUSTER, "--plan", "pp2/m2/1f1b/dp1-tp2", "-o", tmp_path / "out"),
        ("opt", path, "--passes", f"{PLANNED},shard", "--stats"),
    ):
        code, out, err = run(*arguments)
        assert code == 0, err
        assert all(c.isprintable() or c == "\n" for c in out + err)
    for file in (tmp_path / "out").iterdir():
        compile(file.read_text(encoding="utf-8"), file, "exec")


PROGRAMS: dict[str, tuple[Callable[[str], bytes], str]] = {
    "not UTF-8": (lambda text: b"\xff\xfe" + text.encode(), "is not a text file"),
    "empty": (lambda text: b"", "line 1, column 1"),
    "NUL": (lambda text: text.replace("Net", "\0").encode(), "line 3, column 9: unexpected"),
    "escapes": (lambda text: text.replace("Net", "\x1b[31m").encode(), "unexpected character '\\x1b'"),
    "markup": (lambda text: text.replace("Net", "[/x]").encode(), "unexpected '['"),
    "a lone surrogate": (lambda text: text.replace("clustered", '"\\ud800"').encode(), "expected"),
    "unknown form": (lambda text: text.replace("clustered", "clustred").encode(), "did you mean 'clustered'"),
    "deep": (lambda text: text.replace("[B, 6]", "[" * 9999).encode(), "a list nests deeper than 16"),
    "long": (lambda text: text.encode() + b"// " + b"x" * (1 << 24), "at most 16777216 are read"),
    "a long number": (lambda text: text.replace("batch 8", "batch " + "8" * 5000).encode(), "a number of more"),
    "a long name": (lambda text: text.replace("Net", "N" * 10**5).encode(), "a name of more than 65536 characters"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("command", ["search", "opt"])
def test_programs(name: str, command: str, program_file: Path, tmp_path: Path) -> None:
    change, message = PROGRAMS[name]
    path = tmp_path / "bad.gir"
    path.write_bytes(change(program_file.read_text(encoding="utf-8")))
    assert_refused(message, command, path, *(CLUSTER if command == "search" else ()))


PLANS: dict[str, tuple[Callable[[str], bytes], str]] = {
    "not UTF-8": (lambda text: b"\xff\xfe" + text.encode(), "is not a text file"),
    "empty": (lambda text: b"", "plan is not valid JSON"),
    "deep": (lambda text: b"[" * 10**5, "nests deeper than 16"),
    "a long number": (lambda text: text.replace("8,", "8" * 5000 + ",").encode(), "a number of more than 320 digits"),
    "a large number": (lambda text: text.replace("8,", "8" * 300 + ",").encode(), "must be at most"),
    "many layers": (lambda text: text.replace('"layers": ', '"layers": 1000000').encode(), "must be at most 100000"),
    "a lone surrogate": (lambda text: text.replace("a100-80g:1x4", "\\ud800").encode(), "must be text, not '\\ud800'"),
    "a key twice": (lambda text: text.replace("{", '{"format": 1,', 1).encode(), "gives 'format' twice"),
    "not a number": (lambda text: text.replace('"step_time_s": ', '"step_time_s": NaN, "x": ').encode(), "has NaN"),
    "another model": (lambda text: text.replace('"fingerprint": "', '"fingerprint": "\\u001b').encode(), "another"),
    "another object": (lambda text: b"[]", "a plan is a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_plans(name: str, program_file: Path, plan_text: str, tmp_path: Path) -> None:
    change, message = PLANS[name]
    path = tmp_path / "bad.json"
    path.write_bytes(change(plan_text))
    assert path.read_bytes() != plan_text.encode()
    assert_refused(message, "estimate", program_file, *CLUSTER, "--plan", path)


ARGUMENTS: dict[str, tuple[str, str]] = {
    "no such program": ("opt {dir}/nowhere.gir", "nowhere.gir: No such file"),
    "a directory for a program": ("opt {dir}", "Is a directory"),
    "a NUL in a path": ("opt a\0b", "embedded null byte"),
    "a long path": ("opt " + "x" * 5000, "File name too long"),
    "unknown cluster": ("search {p} --cluster nowhere:1x4 --global-batch 8", "unknown device preset 'nowhere'"),
    "a cluster of markup": ("search {p} --cluster [/x] --global-batch 8", "cluster '[/x]' is not of the form"),
    "a huge cluster": ("search {p} --cluster a100-80g:99999x99999 --global-batch 8", "at most 1048576 are possible"),
    "a cluster of digits": ("search {p} --global-batch 8 --cluster a100-80g:1x" + "9" * 5000, "is not of the form"),
    "no samples": ("search {p} --cluster a100-80g:1x4 --global-batch 0", "is no number of samples"),
    "too many samples": ("search {p} --cluster a100-80g:1x4 --global-batch " + "9" * 400, "is no number of samples"),
    "no number": ("search {p} --cluster a100-80g:1x4 --global-batch " + "9" * 5000, "is no number of samples"),
    "memory": ("search {p} {on} --memory " + "9" * 5000, "is not a size in bytes"),
    "a surrogate in memory": ("search {p} {on} --memory \ud800", "not a size"),
    "where nothing can be written": ("search {p} {on} -o /dev/null/plan.json", "cannot write '/dev/null/plan.json'"),
    "a directory for a plan": ("search {p} {on} -o {dir}", "is a directory: name a file in it"),
    "code where a file is": ("emit {p} {on} --plan dp4 -o {p}", "cannot write"),
    "code in a NUL": ("emit {p} {on} --plan dp4 -o a\0b", "embedded null byte"),
    "an empty plan": ("estimate {p} {on} --plan=", "the plan is empty"),
    "a long plan": ("estimate {p} {on} --plan " + "x" * 5000, "unknown token"),
    "a plan in a directory": ("estimate {p} {on} --plan {dir}", "Is a directory"),
    "a plan of markup": ("estimate {p} {on} --plan [/x]", "unknown"),
    "a plan of digits": ("estimate {p} {on} --plan pp" + "9" * 5000 + "/dp4", "unknown part"),
    "a plan of a NUL": ("estimate {p} {on} --plan a\0b.json", "cannot read plan 'a\\x00b.json'"),
    "a plan of a surrogate": ("estimate {p} {on} --plan \ud800", "unknown token '\\ud800'"),
    "statistics in a file": ("opt {p} --passes {sharded} --json {p}/x", "cannot write"),
    "a pass of markup": ("opt {p} --passes [/x]", "is not a pass"),
    "an option of digits": ("opt {p} --passes enumerate-strategies{pipeline-degrees=[" + "9" * 5000 + "]}", "degree"),
    "an open bracket": ("opt {p} --passes search{", "a bracket is not closed"),
    "an unknown command": ("serch {p}", "No such command"),
    "an unknown option": ("search {p} --[/x]", "No such option"),
    "an unknown precision": ("capture {dir}/model.py:good --precision [/x]", "precision must be"),
    "output of capture": ("capture {dir}/model.py:good -o {p}/x", "cannot write"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name: str, program_file: Path, model_file: Path) -> None:
    text, message = ARGUMENTS[name]
    places = {"{dir}": model_file.parent, "{p}": program_file, "{sharded}": f"{PLANNED},shard"}
    words = text.replace("{on}", " ".join(map(str, CLUSTER))).split(" ")
    for place, path in places.items():
        words = [word.replace(place, str(path)) for word in words]
    assert_refused(message, *words)


MODEL = """\
import sys

import torch
from torch import nn

BATCH = {"x": torch.zeros(4, 3)}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(3, 3)

    def forward(self, x):
        return self.l(x).sum()


class Broken(Model):
    def forward(self, x):
        return self.l(x).nowhere


def good():
    return Model(), BATCH


def raises():
    raise RuntimeError("[/x] \\ud800")


def leaves():
    sys.exit(0)


def recurses():
    return recurses()


def takes(size):
    return Model(), BATCH


def one():
    return Model()


def two():
    return 3, BATCH


def four():
    return Model(), BATCH, None, None


def nothing():
    return Model(), {}


def text():
    return Model(), "x"


def numbers():
    return Model(), {"x": 3}


def other():
    return Model(), {"y": torch.zeros(4, 3)}


def loss():
    return Model(), BATCH, 7


def fails():
    return Broken(), BATCH


value = 3
"""


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.py"
    path.write_text(MODEL, encoding="utf-8")
    path.with_name("syntax.py").write_text("x = 1\ndef f(:\n")
    path.with_name("binary.py").write_bytes(b"x = '\xff\0'")
    path.with_name("imports.py").write_text("import sys\nsys.exit(0)\n")
    path.with_name("model.txt").write_text("def f():\n    return 3\n")
    return path


FACTORIES: dict[str, tuple[str, str]] = {
    "model.py:raises": (
        '    raise RuntimeError("[/x] \\ud800")',
        ': raise RuntimeError("[/x] \\ud800") RuntimeError: [/x]',
    ),
    "model.py:leaves": ("    sys.exit(0)", ": sys.exit(0) SystemExit: 0"),
    "model.py:recurses": ("    return recurses()", ": return recurses() RecursionError"),
    "model.py:takes": ("def takes(size):", " TypeError: takes() missing 1 required"),
    "model.py:one": ("def one():", ": one must return (model, example_inputs) or"),
    "model.py:two": ("def two():", ": two must return a torch.nn.Module first, not int"),
    "model.py:four": ("def four():", ": four must return (model, example_inputs) or"),
    "model.py:nothing": ("def nothing():", ": nothing must return one batch second"),
    "model.py:text": ("def text():", ": text must return one batch second"),
    "model.py:numbers": ("", "example_inputs hold no tensor"),
    "model.py:other": ("", "example_inputs do not fit Model.forward(x)"),
    "model.py:loss": ("", "loss_fn must be a function"),
    "model.py:fails": ("        return self.l(x).nowhere", ""),
    "model.py:value": ("", "has no function 'value'"),
    "model.py:nowhere": ("", "has no function 'nowhere'"),
    "model.py:a b": ("", "is not FILE.py:FACTORY"),
    "model.py": ("", "is not FILE.py:FACTORY"),
    "nowhere.py:f": ("", "there is no file"),
    "a\0b.py:f": ("", "there is no file"),
    ":f": ("", "is a directory"),
    "syntax.py:f": ("", "syntax.py:2: "),
    "binary.py:f": ("", "binary.py"),
    "imports.py:f": ("", "imports.py:2: sys.exit(0) SystemExit: 0"),
    "model.txt:f": ("", "model.txt:1: f must return"),
}
"""By factory the line of the model file that the message names, if any, and what follows it."""


@pytest.mark.parametrize("factory", FACTORIES, ids=ascii)
def test_factories(factory: str, model_file: Path) -> None:
    line, message = FACTORIES[factory]
    where = f"model.py:{MODEL.split(chr(10)).index(line) + 1}" if line else ""
    assert_refused(where + message, "capture", f"{model_file.parent}/{factory}")


def test_a_factory_that_is_interrupted_is_not_to_blame(tmp_path: Path) -> None:
    path = tmp_path / "stops.py"
    path.write_text("def f():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        call_factory(f"{path}:f")
    path.write_text("def f():\n    raise ValueError\n")
    with pytest.raises(CaptureError, match="stops.py:2"):
        call_factory(f"{path}:f")


def test_a_directory_is_no_file_to_write(tmp_path: Path) -> None:
    for output in (tmp_path, f"{tmp_path}/new/"):
        assert_refused("is a directory: name a file in it", "report", "plan.json", "-p", "p.gir", "-o", output)
    assert not list(tmp_path.iterdir())


def test_what_is_read_is_not_overwritten(tmp_path: Path) -> None:
    path, plan = tmp_path / "p.gir", tmp_path / "plan.json"
    path.write_text(print_program(clustered(4)))
    plan.write_text("{}")
    model, tree = tmp_path / "m.py", tmp_path / "00-given.gir"
    model.write_text("def f(): return 1")
    tree.write_text(print_program(captured(4)))
    link = tmp_path / "link"
    link.symlink_to(path)
    picture = tmp_path / "p.svg"
    picture.write_text(print_program(clustered(4)))
    for output, arguments in (
        (path, ("search", path, *CLUSTER, "-o", path)),
        (plan, ("report", plan, "-p", path, "-o", plan)),
        (plan, ("trace", plan, "-p", path, "-o", plan)),
        (path, ("opt", path, "--json", path)),
        (path, ("opt", path, "--json", link)),
        (path, ("opt", path, "--reproducer", path)),
        (path, ("reduce", path, "-o", path)),
        (picture, ("show", picture, "--graph", picture)),
        (model, ("capture", f"{model}:f", "-o", model)),
        (model, ("--import", model, "opt", path, "-o", model)),
        (plan, ("opt", path, "--passes", f"use-plan{{plan={plan}}}", "-o", plan)),
        (model, ("reduce", path, "--check", f"python {model}", "-o", model)),
        (tree, ("opt", tree, "--passes", "normalize", "--dump-tree", tmp_path)),
    ):
        before = output.read_text()
        assert_refused("would be overwritten", *arguments)
        assert output.read_text() == before
    both = tmp_path / "both"
    assert_refused("would be written twice", "opt", path, "-o", both, "--json", both)
    assert_refused("would be written twice", "opt", path, "--reproducer", both, "--json", both)
    assert not both.exists()


def test_names_of_strangers_are_shown_as_text(tmp_path: Path) -> None:
    first, second = tmp_path / "a.gir", tmp_path / "b.gir"
    evil = "".join(HOSTILE)
    program = captured(1)
    graph = program.required_graph
    ops = tuple(replace(op, source=Source(evil, 1, evil, evil)) for op in graph.ops)
    first.write_text(print_program(replace(program, graph=replace(graph, ops=ops))), encoding="utf-8")
    place = next(place for place, op in enumerate(ops) if op.target == "aten.silu.default")
    changed = replace(ops[place], target="aten.relu.default")
    ops = (*ops[:place], changed, *ops[place + 1 :])
    second.write_text(print_program(replace(program, graph=replace(graph, ops=ops))), encoding="utf-8")
    for arguments in (("run", second, "--against", first), ("diff", first, second)):
        code, out, err = run(*arguments)
        assert code == 1 and "\\x1b[31m" in out
        assert all(c.isprintable() or c == "\n" for c in out + err)


def test_errors_are_json_where_that_is_asked_for(tmp_path: Path) -> None:
    path, bad, told = tmp_path / "p.gir", tmp_path / "bad.gir", tmp_path / "told.json"
    path.write_text(print_program(clustered(4)))
    bad.write_text("program")
    for arguments, kind in (
        (("opt", path, "--passes", "nonsense"), "PassError"),
        (("opt", tmp_path / "none.gir"), "FileNotFoundError"),
        (("opt", bad), "ParseError"),
    ):
        assert_refused("galvatron: error: ", *arguments, "--json", told)
        assert json.loads(told.read_text())["error"]["type"] == kind
        told.unlink()
    for file, kind in ((bad, "ParseError"), (tmp_path / "none.gir", "FileNotFoundError")):
        code, out, err = run("check", file, "--json")
        assert code == 2 and err.startswith("galvatron: error: ")
        assert json.loads(out)["error"]["type"] == kind
