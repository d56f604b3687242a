"""`galvatron opt` and `diff`: what is shown of passes, and where they stop."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import galvatron
from galvatron.cli.opt import pass_names_from
from galvatron.ir.text import print_program
from galvatron.passes import FRONT_END, PASSES
from tests.cli.test_cli import run
from tests.debugging import planted

PASSES_TO_LAYERS = ",".join(FRONT_END)


@pytest.fixture(scope="module")
def captured_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("opt") / "captured.gir"
    path.write_text(print_program(galvatron.capture(*planted.net(), form="captured")))
    return path


def test_passes_are_listed_with_options_and_forms(tmp_path: Path) -> None:
    out, _ = run("opt", "--list-passes")
    assert "search  (candidates → planned)" in out and "    memory: bytes|none = none" in out
    run("opt", "--list-passes", "--json", tmp_path / "passes.json")
    rows = json.loads((tmp_path / "passes.json").read_text())
    assert {row["name"] for row in rows} >= set(PASSES)
    assert all(row["does"] and row["needs"] for row in rows)


def test_the_listed_pipeline_compiles_a_program(captured_file: Path, tmp_path: Path) -> None:
    assert "annotate-costs{cluster=PRESET:NODESxDEVICES}," in run("opt", "--list-pipeline", captured_file)[0]
    pipeline = run("opt", "--list-pipeline", captured_file, "--cluster", "a100-80g:1x2")[0].strip()
    assert pipeline.startswith(PASSES_TO_LAYERS) and pipeline.endswith("shard,redistribute,overlap,split-stages")
    costed = tmp_path / "costed.gir"
    cluster = "annotate-costs{cluster=a100-80g:1x2}"
    run("opt", captured_file, "--passes", f"{PASSES_TO_LAYERS},{cluster}", "-o", costed)
    rest = run("opt", "--list-pipeline", costed)[0].strip()
    staged, _ = run("opt", costed, "--passes", rest)
    assert run("opt", captured_file, "--passes", pipeline)[0] == staged
    assert run("opt", "--list-pipeline", "-", code=2)[1]


def test_programs_and_differences_are_shown_on_stderr(captured_file: Path) -> None:
    out, err = run("opt", captured_file, "--passes", PASSES_TO_LAYERS, "--diff", "--only", "blocks.1")
    assert out.startswith("galvatron ir") and "// after fuse\ngraph\n  in blocks.1\n" in err
    assert "+ %rms_norm" in err and "blocks.0" not in err.partition("// after cluster-layers")[0]
    assert not re.search(r"(blocks\.2|embed|head)\.", err), "what only others have is no change of it"
    _, err = run("opt", captured_file, "--passes", PASSES_TO_LAYERS, "--print-before", "fuse", "--print-after", "fuse")
    assert err.count("program Net captured") == 2 and "// before fuse\n" in err
    _, err = run("opt", captured_file, "--passes", "fuse", "--print-before", "fuse", "--only", "blocks.1")
    assert "  input %" in err and "state %blocks.1." in err and "blocks.0" not in err and "embed" not in err
    _, err = run("opt", captured_file, "--passes", "normalize", "--print-after", "fusse", code=2)
    assert "pass 'fusse' is not among --passes; known: normalize" in err
    _, err = run("opt", captured_file, "--passes", "normalize", "--only", "blocks.1", code=2)
    assert "show something" in err
    _, err = run("opt", captured_file, "--passes", PASSES_TO_LAYERS, "--diff", "--only", "blocks.1.up")
    assert "// there is no layer 'blocks.1.up'" in err
    out, err = run("opt", captured_file, "--passes", PASSES_TO_LAYERS, "--print-after-all", "--only", "embedding")
    assert out and "// there is no layer" not in err.partition("// after cluster-layers")[2]
    _, err = run("opt", captured_file, "--passes", "normalize", "--print-after-all", "--only", "blocks.9", code=2)
    assert "no op is of a module 'blocks.9'; did you mean 'blocks.2'" in err


def test_passes_stop_where_they_are_told_to(captured_file: Path, tmp_path: Path) -> None:
    normalized, _ = run("opt", captured_file, "--passes", "normalize")
    assert run("opt", captured_file, "--passes", PASSES_TO_LAYERS, "--stop-after", "normalize")[0] == normalized
    assert run("opt", captured_file, "--passes", PASSES_TO_LAYERS, "--bisect-limit", 1)[0] == normalized
    assert run("opt", captured_file, "--passes", PASSES_TO_LAYERS, "--bisect-limit", 0)[0] == captured_file.read_text()
    some, _ = run("opt", captured_file, "--passes", "normalize,fuse", "--limit-rewrites", "fuse=1")
    assert some.count("aten.rms_norm") == 1
    _, err = run("opt", captured_file, "--passes", "normalize,fuse", "--limit-rewrites", "fuse", code=2)
    assert "is not like fuse=12" in err
    _, err = run("opt", captured_file, "--passes", "normalize,count-once", "--limit-rewrites", "count-once=1", code=2)
    assert "does not count its rewrites" in err


def test_what_passes_did_is_counted_and_remarked(captured_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "told.json"
    _, err = run("opt", captured_file, "--passes", PASSES_TO_LAYERS, "--stats", "--remarks", "--json", path)
    assert "what passes did" in err and "rms-norm-weight" in err
    assert "fuse: sigmoid.default" not in err and "rewritten by 'silu'" in err and "h * torch.sigmoid(h)" in err
    told = {row["pass"]: row for row in json.loads(path.read_text())["passes"]}
    assert told["fuse"]["counts"]["silu"] == 3 and told["fuse"]["changes"]["ops"][0] > told["fuse"]["changes"]["ops"][1]
    assert any(remark["line"] and remark["module"] == "blocks.2" for remark in told["fuse"]["remarks"])
    assert told["cluster-layers"]["changes"]["layers"] == [0, 6]
    _, err = run("opt", captured_file, "--passes", "shard", "--json", path, code=2)
    assert "needs a program in form planned" in err
    run("opt", captured_file, "--passes", "normalize,prune", "--json", path, code=2)
    told = json.loads(path.read_text())
    assert told["error"]["type"] == "PassError" and told["passes"] == []


def test_a_tree_of_files(captured_file: Path, tmp_path: Path) -> None:
    run("opt", captured_file, "--passes", "normalize,fuse", "--dump-tree", tmp_path / "tree")
    names = sorted(path.name for path in (tmp_path / "tree").iterdir())
    assert names == ["00-given.gir", "01-normalize.diff", "01-normalize.gir", "02-fuse.diff", "02-fuse.gir"]
    out, _ = run("diff", tmp_path / "tree" / "01-normalize.gir", tmp_path / "tree" / "02-fuse.gir", code=1)
    assert out == (tmp_path / "tree" / "02-fuse.diff").read_text()
    assert "and the same in blocks.1, blocks.2 (2 times)" in out
    same, _ = run("diff", captured_file, captured_file)
    assert same == "the programs compute the same\n"


def test_the_output_is_no_input(captured_file: Path) -> None:
    _, err = run("opt", captured_file, "-o", captured_file, code=2)
    assert "would be overwritten" in err
    assert "name a program" in run("opt", "--passes", "fuse", code=2)[1]
    assert run("--version")[0].startswith("galvatron ")


def test_json_goes_to_stdout_for_a_dash(captured_file: Path, tmp_path: Path) -> None:
    arguments = "opt", captured_file, "--passes", "normalize", "--json", "-"
    assert json.loads(run(*arguments, "-o", tmp_path / "out.gir")[0])["error"] is None
    assert "both go to stdout" in run(*arguments, code=2)[1]
    assert "--cluster is for --list-pipeline" in run(*arguments, "--cluster", "a100-80g:1x2", code=2)[1]


def test_a_shell_completes_passes() -> None:
    assert pass_names_from("normalize,cl") == ["normalize,cluster-layers"] and "fuse" in pass_names_from("")
