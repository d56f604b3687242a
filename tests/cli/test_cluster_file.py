"""A cluster of one's own on the command line and in the interface."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

import galvatron
from galvatron.cli import app
from galvatron.ir.text import print_program
from tests.ir.programs import clustered

SLOW = 'preset = "a100-80g:2x2"\n[level.network]\ncards = 1\nbytes_per_s = "100Mbit/s"\n'


def test_a_file_stands_for_a_preset(tmp_path: Path) -> None:
    program, cluster = tmp_path / "p.gir", tmp_path / "slow.toml"
    program.write_text(print_program(clustered(4)), encoding="utf-8")
    cluster.write_text(SLOW, encoding="utf-8")
    plan = ["estimate", str(program), "--plan", "pp1/m1/dp4", "--global-batch", "8", "--json", "--cluster"]
    slow, fast = (CliRunner().invoke(app, [*plan, name]) for name in (str(cluster), "a100-80g:2x2"))
    assert slow.exit_code == fast.exit_code == 0, slow.output
    wrong = CliRunner().invoke(app, [*plan, str(tmp_path / "none.toml")])
    assert wrong.exit_code == 2 and "cannot read" in wrong.output
    times = [galvatron.estimate(clustered(4), "pp1/m1/dp4", where, global_batch_size=8).step_time_s
             for where in (str(cluster), "a100-80g:2x2")]  # fmt: skip
    assert times[0] > times[1]
