"""What `galvatron.estimate` says of the cases that `steps` has timed, over what was measured there.

The device is once the preset of its name, published figures, and once what `hardware` measured in the same run. Needs
no GPU: it can be run again later on the same files.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import galvatron
from checks import Setting
from checks.hardware import PROFILE
from checks.llama import Shape
from checks.report import Report
from checks.steps import PRECISION, VARIANTS, Subject
from galvatron.ir.cluster import Cluster
from galvatron.ir.presets import PRESETS
from galvatron.ir.program import Program
from galvatron.profiler.clusters import cluster_in

NAMES = {"h100": "h100-80g", "h200": "h200-141g", "b200": "b200-180g", "l40s": "l40s", "l4": "l4", "4090": "rtx-4090"}


@dataclass(frozen=True)
class Row:
    """Ratios are of what is predicted to what was measured; `busy_ratio` to what the device alone was busy for."""

    subject: str
    variant: str
    samples: int
    cluster: str
    predicted_step_s: float
    measured_step_s: float
    step_ratio: float
    busy_ratio: float | None
    predicted_peak_bytes: int
    measured_peak_bytes: int | None
    peak_ratio: float | None


def run(report: Report, setting: Setting) -> None:
    """One capture for each model, then every case on every description of the device."""
    steps = json.loads((report.path.parent / "steps.json").read_text(encoding="utf-8"))
    subjects = [Subject(s["kind"], Shape(**s["shape"]), tuple(s["samples"])) for s in steps["subjects"]]
    clusters = {"measured": cluster_in(report.path.parent / PROFILE)}
    if preset := preset_of(steps["conditions"]["gpu"], clusters["measured"].device.memory_bytes):
        clusters[preset] = Cluster.parse(f"{preset}:1x1")
    for subject in subjects:
        program = report.attempt(subject.kind, captured, subject)
        for row in steps["rows"] if program is not None else ():
            for name, cluster in clusters.items():
                if row["subject"] == subject.kind:
                    case = f"{subject.kind} {row['variant']} {row['samples']} on {name}"
                    report.attempt(case, _add, report, program, row, name, cluster)


def captured(subject: Subject) -> Program:
    batch = subject.batch(subject.samples[0], "meta")
    return galvatron.capture(subject.model("meta"), batch, precision=PRECISION)


def preset_of(gpu: str | None, memory_bytes: int) -> str | None:
    """The preset whose name is in that of a GPU, such as `NVIDIA H100 80GB HBM3 x 1`."""
    words = (gpu or "").lower().replace("-", " ").split()
    if "a100" in words:
        return "a100-80g" if memory_bytes > 60e9 else "a100-40g"
    return next((NAMES[word] for word in words if word in NAMES and NAMES[word] in PRESETS), None)


def _add(report: Report, program: Program, measured: dict[str, Any], name: str, cluster: Cluster) -> None:
    samples = measured["samples"]
    plan, inductor = VARIANTS[measured["variant"]]
    found = galvatron.estimate(program, plan, cluster, global_batch_size=samples, inductor=inductor)
    (peak,) = found.peak_bytes
    step_s, peak_bytes = measured["step_s"]["median"], measured["peak_bytes"]
    warm = measured["warm"]
    row = Row(
        measured["subject"],
        measured["variant"],
        samples,
        name,
        found.step_time_s,
        step_s,
        found.step_time_s / step_s,
        found.step_time_s / warm["busy_s"] if warm else None,
        peak,
        peak_bytes,
        peak / peak_bytes if peak_bytes else None,
    )
    report.add(row, parts={name: value for name, value in asdict(found.stages[0]).items() if name != "layers"})
