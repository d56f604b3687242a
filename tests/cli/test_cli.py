"""The command line: how errors are shown, and the whole way from a model file to generated source."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from galvatron.cli import app
from galvatron.cli.capture import call_factory
from galvatron.errors import CaptureError, GalvatronError

MODEL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.blocks = nn.ModuleList([Block() for _ in range(4)])
        self.head = nn.Linear(8, 16)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def loss(output, batch):
    return nn.functional.cross_entropy(output.flatten(0, 1), batch["tokens"].flatten())


def model():
    return Model(), {"tokens": torch.zeros(8, 4, dtype=torch.int64)}, loss


def broken():
    return Model(width=7)


def wrong():
    return 3
"""


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "toy_model.py"
    path.write_text(MODEL)
    return path


@pytest.fixture(scope="module")
def program_file(model_file: Path) -> Path:
    path = model_file.with_name("p.gir")
    out, err = run("capture", f"{model_file}:model", "-o", path)
    assert not out and "layers" in err
    return path


CLUSTER = ("--cluster", "a100-80g:1x4", "--global-batch", "8")


def test_module_and_command_agree() -> None:
    command = [sys.executable, "-m", "galvatron", "--help"]
    help_text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    for name in ("demo", "check", "capture", "search", "estimate", "explain", "diff", "emit", "opt"):
        assert name in help_text


def test_capture_prints_to_stdout(model_file: Path, program_file: Path) -> None:
    out, _ = run("capture", f"{model_file}:model")
    assert out == program_file.read_text()


def test_search_estimate_and_emit_agree(program_file: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    table, _ = run("search", program_file, *CLUSTER, "--memory", "1GiB", "-o", plan)
    assert "predicted step time" in table
    document, _ = run("search", program_file, *CLUSTER, "--memory", "1GiB", "--json")
    assert document == plan.read_text()

    estimate, _ = run("estimate", program_file, *CLUSTER, "--plan", plan, "--json")
    assert json.loads(estimate)["step_time_s"] == pytest.approx(json.loads(document)["step_time_s"], rel=1e-12)
    own, _ = run("estimate", program_file, *CLUSTER[:2], "--plan", plan)
    assert "predicted step time" in own and "global batch 8" in own
    more, _ = run("estimate", program_file, *CLUSTER[:2], "--plan", plan, "--global-batch", 64)
    assert "global batch 64" in more

    paths, _ = run("emit", program_file, *CLUSTER, "--plan", plan, "-o", tmp_path / "out")
    for path in paths.split():
        compile(Path(path).read_text(), path, "exec")
    assert len(paths.split()) == len(json.loads(document)["stages"])


SMALL = ("--roles", "dp,tp", "--zero", "0,3", "--recompute", "none")


def test_a_search_says_what_it_must_and_may_not(program_file: Path) -> None:
    asked = ("--require", "head=zero3", "--forbid", "blocks.*=tp", "--pp", 1, "--micro-batches", 2)
    found = json.loads(run("search", program_file, *CLUSTER, *SMALL, *asked, "--no-cache", "--json")[0])
    runs = [run for stage in found["stages"] for run in stage]
    assert "zero3" in runs[-1]["strategy"] and found["micro_batches"] == 2
    assert found["search"]["budget_bytes"] > 0 and "head=zero3 required" in found["search"]["space"]
    assert found["search"]["bound_s"] == pytest.approx(found["step_time_s"] * (1 - found["search"]["gap"]))


def test_a_plan_that_was_searched_before_is_said_to_be(program_file: Path) -> None:
    first, _ = run("search", program_file, *CLUSTER, *SMALL, "--memory", "3GiB", "--json")
    again, err = run("search", program_file, *CLUSTER, *SMALL, "--memory", "3GiB", "--json")
    assert again == first and "the plan is that of an earlier search" in err
    assert "earlier" not in run("search", program_file, *CLUSTER, *SMALL, "--memory", "3GiB", "--no-cache")[1]


def test_budgets_and_batches_in_a_range(program_file: Path, tmp_path: Path) -> None:
    table, _ = run("search", program_file, *CLUSTER, *SMALL, "--memory", "1..2GiB")
    assert "1 GiB" in table and "2 GiB" in table
    curve = json.loads(run("search", program_file, *CLUSTER, *SMALL, "--memory", "1..2GiB", "--json")[0])
    assert [point["memory_bytes"] for point in curve][::8] == [2**30, 2**31]
    machines = ("--cluster", "a100-80g:1x2", *SMALL)
    found = json.loads(run("search", program_file, *machines, "--global-batch", "4..8", "--json")[0])
    assert found["global_batch_size"] in (4, 8)
    _, err = run("search", program_file, *machines, "--global-batch", "8..x", code=2)
    assert "no range such as 8..128" in err


def test_plans_are_explained_and_compared(program_file: Path, tmp_path: Path) -> None:
    plan, other = tmp_path / "plan.json", tmp_path / "other.json"
    machines = ("--cluster", "a100-80g:1x2", "--global-batch", "8")
    run("search", program_file, *machines, "-o", plan)
    run("search", program_file, *machines, "--micro-batches", 8, "-o", other)
    text, _ = run("explain", plan, "-p", program_file)
    assert "limited by" in text and "twice the bandwidth" in text and "one more GiB" in text
    told = json.loads(run("explain", plan, "-p", program_file, "--json")[0])["explanation"]
    assert told["step_time_s"] == pytest.approx(json.loads(plan.read_text())["step_time_s"])
    told = json.loads(run("explain", plan, "-p", program_file, "--why-not", "zero3", "--alternatives", 2, "--json")[0])
    assert told["why_not"]["more_s"] >= 0 and len(told["alternatives"]) == 2
    text, _ = run("explain", plan, "-p", program_file, "--why-not", "zero3", "--alternatives", 2)
    assert "the best plan with zero3 takes" in text and "peak memory" in text
    changed, _ = run("diff", plan, other, "-p", program_file, code=1)
    assert "micro-batches" in changed and "step time" in changed
    differences, err = run("diff", plan, other, "--json", code=1)
    assert json.loads(differences) and not any("_" in one["what"] for one in json.loads(differences))
    assert run("diff", plan, plan)[0] == "the plans are the same\n"


@pytest.mark.slow
def test_where_nothing_fits_ways_out_are_told(program_file: Path) -> None:
    _, err = run("search", program_file, *CLUSTER, *SMALL, "--memory", "17040000", code=2)
    assert "MiB in stage" in err and "\n  fits with " in err and "more: " in err


def test_shorthand_is_a_plan(program_file: Path, tmp_path: Path) -> None:
    paths, err = run("emit", program_file, *CLUSTER, "--plan", "pp2/m2/1f1b/dp1-tp2", "-o", tmp_path, "--timing")
    assert "verified the program of 2 stages in 0." in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["stage_0.py", "stage_1.py"]


def test_opt_keeps_stdout_for_the_program(program_file: Path, tmp_path: Path) -> None:
    out, err = run("opt", program_file)
    assert out == program_file.read_text() and not err
    costed = "annotate-costs{cluster=a100-80g:1x4}"
    out, err = run("opt", program_file, "--passes", costed, "--timing", "--print-after-all")
    assert "annotate-costs" in err and "time in passes" in err
    again = tmp_path / "costed.gir"
    again.write_text(out)
    assert run("opt", again)[0] == out


def test_opt_names_a_pass_in_the_wrong_place(program_file: Path) -> None:
    _, err = run("opt", program_file, "--passes", "shard", code=2)
    assert "pass 'shard' needs a program in form planned" in err and "run 'search' or 'use-plan' before it" in err


def test_opt_unknown_pass(program_file: Path) -> None:
    _, err = run("opt", program_file, "--passes", "sherd", code=2)
    assert err == "galvatron: error: unknown pass 'sherd'; did you mean 'shard'?\n"


def test_corrupt_program_says_where(program_file: Path, tmp_path: Path) -> None:
    lines = program_file.read_text().splitlines()
    lines[2] += " }}"
    corrupt = tmp_path / "corrupt.gir"
    corrupt.write_text("\n".join(lines))
    _, err = run("opt", corrupt, code=2)
    assert err.startswith(f"galvatron: error: {corrupt}: ") and "line 3, column " in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--cluster", "a100-80h:1x4", "--global-batch", 8),
            "unknown device preset 'a100-80h'; did you mean 'a100-80g'",
        ),
        ((*CLUSTER, "--memory", "36GiBB"), "unknown unit 'GiBB'; did you mean"),
        ((*CLUSTER, "--require", "block.0=tp2"), "has no layer 'block.0'; did you mean"),
        ((*CLUSTER, "--zero", "3,x"), "'x' is no ZeRO level"),
    ],
)
def test_bad_search(program_file: Path, arguments: tuple[object, ...], message: str) -> None:
    out, err = run("search", program_file, *arguments, code=2)
    assert not out and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("pp2/m2/1f1b/dp1-tq2", "unknown token 'tq2'; did you mean"),
        ("pp2/m2/1f1b/dp1-tp4", "for 8 devices, but there are 4"),
        ("missing.json", "missing.json"),
    ],
)
def test_bad_plan(program_file: Path, plan: str, message: str) -> None:
    _, err = run("estimate", program_file, *CLUSTER, "--plan", plan, code=2)
    assert message in err


def test_missing_file_is_one_message() -> None:
    _, err = run("opt", "nowhere.gir", code=2)
    assert err.startswith("galvatron: error: ") and "nowhere.gir" in err and err.count("\n") == 1


def test_a_program_with_an_operator_of_another_library_is_read_after_a_file_that_registers_it(tmp_path: Path) -> None:
    (tmp_path / "doubling.py").write_text(
        "import galvatron, torch\n"
        "library = torch.library.Library('galvatron_cli', 'DEF')\n"
        "library.define('double(Tensor x) -> Tensor')\n"
        "library.impl('double', lambda x: x * 2, 'CompositeExplicitAutograd')\n"
        "galvatron.register_rule('galvatron_cli::double', 'b* -> b*')\n"
    )
    program = tmp_path / "p.gir"
    program.write_text(
        "galvatron ir 2\n\nprogram Doubling captured batch 4\n\ninput %x : f32[B, 2]\n\n"
        "graph {\n  input %x : f32[B, 2]\n"
        "  %y = galvatron_cli.double.default(%x) : f32[B, 2]\n"
        "  %loss = aten.sum.default(%y) : f32[]\n  return %loss\n}\n\noutput %loss\n"
    )
    _, err = run("opt", program, "--passes", "normalize", code=2)
    assert "'galvatron_cli.double.default'" in err and "galvatron --import FILE.py" in err
    out, _ = run("--import", tmp_path / "doubling.py", "opt", program, "--passes", "normalize")
    assert "galvatron_cli.double.default" in out
    _, err = run("--import", tmp_path / "nowhere.py", "opt", program, "--passes", "normalize", code=2)
    assert "there is no file" in err


def test_debug_shows_the_exception() -> None:
    with pytest.raises(GalvatronError, match="unknown pass"):
        run("--debug", "opt", "nowhere.gir", "--passes", "sherd")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("toy_model.py", "is not FILE.py:FACTORY"),
        ("{dir}/nowhere.py:model", "there is no file"),
        ("{dir}/toy_model.py:modle", "has no function 'modle'; did you mean 'model'"),
        ("{dir}/toy_model.py:broken", r"toy_model.py:\d+: return Model\(width=7\)\nTypeError: "),
        ("{dir}/toy_model.py:wrong", "must return .* not int"),
    ],
)
def test_bad_factory(model_file: Path, factory: str, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        call_factory(factory.format(dir=model_file.parent))


def test_syntax_error_in_the_model_file(tmp_path: Path) -> None:
    path = tmp_path / "bad_syntax.py"
    path.write_text("x = 1\ndef model(:\n")
    with pytest.raises(CaptureError, match=r"bad_syntax.py:2: "):
        call_factory(f"{path}:model")


PLANNED = "annotate-costs{cluster=a100-80g:1x4},enumerate-strategies{roles=[tp],pipeline-degrees=[1]},prune,search"


def test_stats_leave_stdout_to_the_program(program_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    passes = f"{PLANNED},shard,redistribute,split-stages"
    plain, silence = run("opt", program_file, "--passes", passes)
    out, err = run("opt", program_file, "--passes", passes, "--stats", "--json", path)
    assert out == plain and not silence
    assert "ops that run whole on an axis" in err and "(small ops)" in err
    told = json.loads(path.read_text())
    assert sum(cls["layers"] for cls in told["sharding"]) == 6
    assert sum(row["count"] for cls in told["sharding"] for row in cls["whole"]) > 0
    assert [one["pass"] for one in told["passes"]][-3:] == ["shard", "redistribute", "split-stages"]
    assert "what passes did" in err and "comm.all_reduce" in err


def test_stats_of_one_device_per_stage_say_so(program_file: Path) -> None:
    single = PLANNED.replace("degrees=[1]", "degrees=[4]")
    _, err = run("opt", program_file, "--passes", f"{single},shard", "--stats")
    assert "nothing to shard" in err
