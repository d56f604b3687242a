"""Before/after text: every `.gir` file beside this one runs what its RUN line says and checks the output.

    // RUN: galvatron opt %s --passes "normalize,cluster-layers" | filecheck %s
    // RUN: not galvatron opt %s 2>&1 | filecheck %s

The command line runs in this process. `not` expects it to fail, `2>&1` checks what it says on stderr as well;
`filecheck` takes its own options, such as `--check-prefix`.
"""

from __future__ import annotations

import io
import shlex
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import parse_argv_options
from filecheck.parser import Parser
from typer.testing import CliRunner

from galvatron.cli import app

CASES = sorted(Path(__file__).parent.rglob("*.gir"))


def run_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.partition("RUN:")[2].strip() for line in lines if line.startswith("// RUN:")]


def check(path: Path, command: str) -> str:
    """Runs one RUN line; what is wrong with the outcome, or nothing."""
    left, bar, right = (command.replace("%s", shlex.quote(str(path)))).rpartition("|")
    words, checker = shlex.split(left), shlex.split(right)
    assert bar and checker[0] == "filecheck", f"the RUN line must end in '| filecheck %s': {command}"
    must_fail = words[0] == "not"
    both = "2>&1" in words
    program, *arguments = (word for word in words[must_fail:] if word != "2>&1")
    assert program == "galvatron", f"only galvatron runs here, not {program}"
    result = CliRunner().invoke(app, arguments)
    output = result.output if both else result.stdout
    if (result.exit_code != 0) != must_fail:
        return f"{command}\nended with status {result.exit_code}:\n{result.output}"
    options = parse_argv_options(checker)
    matcher = Matcher(options, FInput("output", output), Parser.from_opts(options))
    complaint = io.StringIO()
    with redirect_stderr(complaint):
        matcher.stderr = complaint
        status = matcher.run()
    return f"{command}\n{complaint.getvalue()}\n{output}" if status else ""


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_text(path: Path) -> None:
    commands = run_lines(path)
    assert commands, f"{path} has no line that starts with '// RUN:'"
    for command in commands:
        if problem := check(path, command):
            pytest.fail(problem, pytrace=False)


def test_a_wrong_expectation_fails(tmp_path: Path) -> None:
    """The checker itself: text that does not match, and a command that fails unasked, are both told."""
    source = CASES[0].read_text(encoding="utf-8")
    body = "\n".join(line for line in source.splitlines() if not line.startswith("//"))
    case = tmp_path / "case.gir"
    case.write_text(f"// CHECK: no such thing\n{body}", encoding="utf-8")
    assert "no such thing" in check(case, "galvatron opt %s | filecheck %s")
    assert "ended with status" in check(case, "galvatron opt missing.gir | filecheck %s")
