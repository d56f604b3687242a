"""Makes the pictures of a report and of a layer that are kept beside this file: `python docs/pictures.py`, with
Chromium installed.

The model is a Llama of 32 layers, and its plans are for two nodes of eight devices: one that a search finds for a
pipeline of four ranks, and beside it one with the same strategy for all layers.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import galvatron
from galvatron.forms import with_costs
from galvatron.inspection.pictures.svg import svg
from galvatron.ir.planned import read_plan, with_plan

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))

from accuracy.models import LLAMA_2_7B  # noqa: E402  # found by the path above
from accuracy.programs import program_of  # noqa: E402
from common.browser import Page, browser  # noqa: E402

CLUSTER, BATCH, MEMORY = "a100-80g:2x8", 64, "17GiB"
OPTIONS = galvatron.SearchOptions(pipeline_degree=4, micro_batches=16, schedule="1f1b", roles=("dp", "tp"))
OTHER = "pp4/m16/zbv/dp1-tp4-recompute=selective"


def main() -> None:
    """Writes `report.png` and `report-dark.png`, of one plan, `report-two.png`, and `layer.svg`."""
    program = program_of(LLAMA_2_7B, "bf16")
    (HERE / "layer.svg").write_text(svg(galvatron.graph(program, layer="blocks.0")), encoding="utf-8")
    found = galvatron.search(program, CLUSTER, memory=MEMORY, global_batch_size=BATCH, search=OPTIONS)
    machines = galvatron.Cluster.parse(CLUSTER)
    other = with_plan(with_costs(program, machines, BATCH), read_plan(OTHER)).required_plan
    with tempfile.TemporaryDirectory() as folder, browser() as page:
        for name, against in (("report", None), ("report-two", other)):
            path = Path(folder) / f"{name}.html"
            text = galvatron.report(program, found, machines, memory=MEMORY, against=against)
            path.write_text(text, encoding="utf-8")
            _picture(page, path, HERE / f"{name}.png")
            if against is None:
                _picture(page, path, HERE / f"{name}-dark.png", dark=True)


def _picture(page: Page, path: Path, target: Path, *, dark: bool = False) -> None:
    page.open(path, width=1180, height=1180, dark=dark)
    page.picture(target)
    print(target)


if __name__ == "__main__":
    main()
