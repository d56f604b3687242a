"""`galvatron show`, on files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from galvatron.ir.text import print_program
from tests.cli.test_cli import run
from tests.ir.programs import FORMS
from tests.marks import some_slow


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("show")
    for form, make in FORMS.items():
        (folder / f"{form}.gir").write_text(print_program(make()))
    return folder


def test_tables_say_what_the_json_says(files: Path) -> None:
    told = json.loads(run("show", files / "planned.gir", "--json")[0])
    table, _ = run("show", files / "planned.gir")
    assert "Net, planned, batch 8, a100-80g:2x4, pp2/m4/1f1b" in table
    for row in told["classes"]:
        assert row["name"] in table
    assert f"{told['parameters']:,}" in table and "dp2-tp2" in table and "update" not in table
    staged, _ = run("show", files / "staged.gir")
    assert "one micro-batch on one rank" in staged and "0–1" in staged


def test_layers_and_ops(files: Path) -> None:
    table, _ = run("show", files / "clustered.gir", "--layer", "block_1")
    assert "4 layers: block_0 … block_3" in table and "net.py:13  line 13" in table
    assert [one["cls"] for one in json.loads(run("show", files / "clustered.gir", "--layer", "head", "--json")[0])] == [
        "head"
    ]
    facts, _ = run("show", files / "planned.gir", "--op", "up")
    assert "rule: ~b.1 b.0 k, ~n k -> b.1 b.0 n" in facts and "read by %silu = silu" in facts
    assert "axis tp=2@1" in facts and "shares n (16)" in facts and "layer then takes more" in facts
    told = json.loads(run("show", files / "sharded.gir", "--op", "up", "--json")[0])
    assert told[0]["mesh"] == ["dp=2@2", "tp=2@1"] and told[0]["placements"][-1]["spots"][1]["value"] == "S(2)"
    table, _ = run("show", files / "sharded.gir", "--op", "up")
    assert "S(2) | S(2)" in table and "cut along n" in table


def test_a_plan_from_outside(files: Path) -> None:
    table, _ = run("show", files / "clustered.gir", "-p", "pp2/m2/tp2")
    assert "pp2/m2/1f1b" in table and "tp2 " in table
    priced = ("--op", "up", "-p", "tp2", "--cluster", "a100-80g:1x2")
    assert "axis tp=2@1" in run("show", files / "clustered.gir", *priced)[0]
    table, note = run("show", files / "clustered.gir", *priced[:4])
    assert "axis" not in table and "name a --cluster" in note


@pytest.mark.parametrize("ending", some_slow(["svg"], ["svg", "dot", "html"]))
def test_graphs_are_drawn(files: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    assert run("show", files / "costed.gir", "--graph", path)[0] == f"{path}\n"
    assert "block_0 … block_3" in path.read_text() or ending == "dot"
    run("show", files / "clustered.gir", "--graph", path, "--layer", "block")
    assert "silu" in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layer", "blok_1"), "did you mean 'block_1'"),
        (("--op", "silo"), "did you mean 'silu'"),
        (("--graph", "out.png"), "none of the endings .svg, .dot, .html"),
        (("--graph", "out.svg", "--op", "up"), "leave --op out"),
        (("--cluster", "a100-80g:1x2"), "name one with --plan"),
        (("-p", "dp3"), "batch"),
    ],
)
def test_bad_questions(files: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in run("show", files / "clustered.gir", *arguments, code=2)[1]


@pytest.mark.slow
def test_a_program_with_costs_is_shown_without_torch(files: Path) -> None:
    script = (
        "import sys\nfrom galvatron.cli import app\n"
        "for arguments in ([], ['--graph', sys.argv[2]]):\n"
        "    app(['show', sys.argv[1], *arguments], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script, str(files / "planned.gir"), str(files / "cold.html")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
