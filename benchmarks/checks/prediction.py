"""What `galvatron.estimate` says of the plans that `speed` has timed, over what was measured there.

The device is once the preset of its name, published figures, and once what `profiler.local` measured in the same run.
Needs no GPU: it can be run again later on the same `speed.json`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import galvatron
from checks import Setting
from checks.llama import Shape, batch_of, model_of, recomputing_blocks
from checks.report import Report
from checks.speed import VARIANTS
from galvatron.ir.cluster import Cluster
from galvatron.ir.planned import resolve
from galvatron.ir.presets import PRESETS
from galvatron.ir.program import Program

NAMES = {"h100": "h100-80g", "h200": "h200-141g", "b200": "b200-180g", "l40s": "l40s", "l4": "l4", "4090": "rtx-4090"}


@dataclass(frozen=True)
class Row:
    """Ratios are of what is predicted to what was measured."""

    contestant: str
    samples: int
    cluster: str
    predicted_step_s: float
    measured_step_s: float
    step_ratio: float
    predicted_peak_bytes: int
    measured_peak_bytes: int | None
    peak_ratio: float | None


def run(report: Report, setting: Setting) -> None:
    """One capture, then every plan on every description of the device."""
    speed = json.loads((Path(report.path).parent / "speed.json").read_text(encoding="utf-8"))
    shape = Shape(**{name: value for name, value in speed["model"].items() if name != "parameters"})
    measured = [row for row in speed["rows"] if row["contestant"].startswith("own ") and "step_s" in row]
    if not measured:
        raise RuntimeError("speed.json has no step times")
    program = galvatron.capture(
        model_of(shape, "meta"), batch_of(shape, measured[0]["samples"], "meta"), precision="bf16"
    )
    clusters = clusters_of(speed["conditions"]["gpu"], speed["cluster"])
    report.document["clusters"] = {name: json.loads(cluster.to_json()) for name, cluster in clusters.items()}
    for row in measured:
        for name, cluster in clusters.items():
            case = f"{row['contestant']} {row['samples']} on {name}"
            report.attempt(case, _add, report, program, row, name, cluster)


def clusters_of(gpu: str | None, measured: dict[str, Any]) -> dict[str, Cluster]:
    """The device as published, if there is a preset of its name, and as measured."""
    local = Cluster.from_json(json.dumps(measured))
    preset = preset_of(gpu, local.device.memory_bytes)
    return {**({preset: Cluster.parse(f"{preset}:1x1")} if preset else {}), "measured": local}


def preset_of(gpu: str | None, memory_bytes: int) -> str | None:
    """The preset whose name is in that of a GPU, such as `NVIDIA H100 80GB HBM3 x 1`."""
    words = (gpu or "").lower().replace("-", " ").split()
    if "a100" in words:
        return "a100-80g" if memory_bytes > 60e9 else "a100-40g"
    return next((NAMES[word] for word in words if word in NAMES and NAMES[word] in PRESETS), None)


def _add(report: Report, program: Program, measured: dict[str, Any], name: str, cluster: Cluster) -> None:
    recompute, _ = VARIANTS[measured["contestant"].removeprefix("own ")]
    samples = measured["samples"]
    plan = resolve(program, "dp1", samples, 1)
    if recompute != "none":
        plan = recomputing_blocks(plan, recompute)
    found = galvatron.estimate(program, plan, cluster, global_batch_size=samples)
    (peak,) = found.peak_bytes
    step_s, peak_bytes = measured["step_s"]["median"], measured["peak_bytes"]
    row = Row(
        measured["contestant"],
        samples,
        name,
        found.step_time_s,
        step_s,
        found.step_time_s / step_s,
        peak,
        peak_bytes,
        peak / peak_bytes if peak_bytes else None,
    )
    report.add(row, parts={name: value for name, value in asdict(found.stages[0]).items() if name != "layers"})
