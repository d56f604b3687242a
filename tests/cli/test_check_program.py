"""`galvatron check PROGRAM.gir`: where everything is and why, and what is wrong at which line of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from galvatron.ir.program import Program
from galvatron.ir.text import print_program
from tests.cli.test_cli import run
from tests.debugging.silent import is_collective, left_out, with_ops
from tests.ir.programs import captured, clustered, sharded, staged


def written(program: Program, folder: Path) -> Path:
    path = folder / "p.gir"
    path.write_text(print_program(program))
    return path


def test_a_right_program_is_told_with_reasons(tmp_path: Path) -> None:
    path = written(staged(5), tmp_path)
    assert run("check", path)[0].count("\n") == 2
    out, _ = run("check", path, "--placements")
    assert "Net (staged) keeps all" in out
    assert "block_0 … block_4 (5)" in out and out.count("@block.dp2_tp2, of") == 1
    text = " ".join(out.replace("│", " ").split())
    assert "dp=2@2" in out and "R' | P" in out
    assert "over dp once per step" in text and "all_reduce P → R; backward copy R → R'" in text


def test_what_is_told_is_what_is_asked_for(tmp_path: Path) -> None:
    path = written(staged(), tmp_path)
    told = json.loads(run("check", path, "--layer", "block_2", "--only", "linear", "--json")[0])
    assert told["valid"] and [cls["layers"] for cls in told["classes"]] == [[f"block_{i}" for i in range(4)]]
    up, down = told["classes"][0]["values"]
    assert [up["name"], down["name"]] == ["up", "down"]
    assert up["rule"] == "~b.1 b.0 k, ~n k -> b.1 b.0 n" and up["line"] == "/home/user/net.py:12"
    assert [(spot["value"], spot["gradient"]) for spot in down["spots"]] == [("S(0)", "S(0)"), ("P", "R'")]
    assert "cut along k" in down["spots"][1]["why"]
    assert "%silu" in run("check", path, "--only", "%silu")[0]
    assert "there is no layer 'block_9'; did you mean" in run("check", path, "--layer", "block_9", code=2)[1]
    assert "no value, operator or module 'silo'" in run("check", path, "--only", "silo", code=2)[1]


def test_borders_between_layers_have_a_reason(tmp_path: Path) -> None:
    found = json.loads(run("check", written(sharded(), tmp_path), "--json")[0])["borders"]
    own = {(b["maker"], b["reader"]): b for b in found}
    assert own["block.dp2_tp2", "block.dp2_tp2"]["why"] == "as it is made"
    assert own["", "embedding.dp2_tp2"]["why"] == "every rank takes what it needs of the batch"


def test_a_program_that_is_not_sharded_has_rules_alone(tmp_path: Path) -> None:
    out, _ = run("check", written(clustered(), tmp_path))
    assert out.strip().endswith("rules of its form")


def test_an_edited_program_is_refused_at_its_line(tmp_path: Path) -> None:
    path = written(with_ops(staged(), is_collective("all_reduce", "tp"), left_out), tmp_path)
    out, _ = run("check", path, code=1)
    assert "breaks the rule ops-on-slices" in out and 'comm.all_reduce(%down, axis="tp", grad="identity")' in out
    number = int(out.partition("line ")[2].partition(":")[0])
    line = path.read_text().splitlines()[number - 1]
    assert line.lstrip().startswith("%add ") and f">>> {number:>4} | {line}" in out


def test_a_line_of_a_captured_program_is_found(tmp_path: Path) -> None:
    path = written(captured(), tmp_path)
    assert "graph of program {" in path.read_text()
    lines = path.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if "aten.silu.default(" in line)
    lines[place] = lines[place].replace("f32[", "f16[")
    path.write_text("\n".join(lines))
    fault = json.loads(run("check", path, "--json", code=1)[0])["refused"]["faults"][0]
    assert "%block_0.silu" in lines[fault["line"] - 1]


def test_reasons_are_of_what_there_is(tmp_path: Path) -> None:
    told = json.loads(run("check", written(staged(), tmp_path), "--json")[0])
    value = {v["name"]: [spot["why"] for spot in v["spots"]] for cls in told["classes"] for v in cls["values"]}
    assert set(value["ids"]) == {"every rank takes what it needs of the batch"}
    assert set(value["x"]) == {"as the layer that makes it gives it"}


def test_questions_that_are_wrong(tmp_path: Path) -> None:
    path = written(staged(), tmp_path)
    assert "--run is for a model" in run("check", path, "--run", code=2)[1]
    assert "--degree is for a model" in run("check", path, "--degree", "2", code=2)[1]
    assert "--no-checks is for a model" in run("check", path, "--no-checks", code=2)[1]
    assert "did you mean 'linear'" in run("check", path, "--only", "linaer", code=2)[1]
    for option in ("--layer", "block_0"), ("--only", "linear"):
        assert "name a sharded program" in run("check", written(clustered(), tmp_path), *option, code=2)[1]
    path = written(staged(), tmp_path)
    assert "--layer is for a program" in run("check", "m.py:f", "--layer", "x", code=2)[1]
    path.write_text(print_program(staged()).replace("aten.silu.default", "aten.silu"))
    assert "did you mean 'aten.silu.default'?" in run("check", path, code=2)[1]
    path.write_text(print_program(staged()).replace("stage 0 {", "stage 0 ("))
    assert "line " in run("check", path, code=2)[1]


EDITS = {
    "state that has not the size of its part": (
        "state %up.weight   : f32[8, 8] ",
        "state %up.weight   : f32[16, 8] ",
        "f32[16, 8] as (dp=2@2: R', tp=2@1: S(0)) is f32[8, 8], not f32[16, 8]",
    ),
    "what stands in a loop": (
        "keep blocks.{i}.down.bias   : (dp=2@2, tp=2@1) (dp:R', tp:R)",
        "keep blocks.{i}.down.bias   : (dp=2@2, tp=2@1) (dp:R, tp:R)",
        "is kept as (dp=2@2: R, tp=2@1: R), but block_0 reads it as",
    ),
    "axes with each other's strides": (
        "keep embed.weight             : (dp=2@2, tp=2@1)",
        "keep embed.weight             : (dp=2@1, tp=2@2)",
        "axes stand outermost first, so that before tp=2@2 there is one with a stride of at least 4",
    ),
    "what may follow": (
        "%silu = aten.silu.default(%up)                             : f32[b, 6, 8] (dp:S(0), tp:S(2))",
        "%silu = aten.silu.default(%up)                             : f32[b, 6, 8] (dp:S(0), tp:P)",
        "(this may follow from what is wrong with %silu)",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_is_wrong_is_told_at_the_line_that_is(name: str, tmp_path: Path) -> None:
    path, (old, new, told) = written(staged(), tmp_path), EDITS[name]
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    refused = json.loads(run("check", path, "--json", code=1)[0])["refused"]
    assert told in " ".join(fault["message"] for fault in refused["faults"])
    number = text[: text.index(old)].count("\n") + 1
    assert refused["faults"][0]["line"] == number and f">>> {number:>4} | " in refused["excerpt"]
    assert len({fault["line"] for fault in refused["faults"]}) == len(refused["faults"])


def test_what_may_follow_is_told_without_what_would_mend_it(tmp_path: Path) -> None:
    path = written(staged(), tmp_path)
    lines = path.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("  %add "))
    lines[place] = lines[place].replace("tp:R)", "tp:P)")
    path.write_text("\n".join(lines))
    first, *others = json.loads(run("check", path, "--json", code=1)[0])["refused"]["faults"]
    assert first["line"] == place + 1 and "to mend it" in first["message"] and others
    assert not [fault for fault in others if "may follow" not in fault["message"] or "to mend it" in fault["message"]]
