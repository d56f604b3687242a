"""Results as JSON: rows that each say what they were measured on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent.parent / "results"


def conditions(*packages: str) -> dict[str, Any]:
    """What a measurement that begins now is made with: versions, device, and how busy the machine already is.

    Args:
        packages: whose versions matter, besides torch's.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "torch": torch.__version__,
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "cpu": f"{_processor()} x {os.cpu_count()}",
        "gpu": f"{torch.cuda.get_device_name()} x {torch.cuda.device_count()}" if torch.cuda.is_available() else None,
        "load_average_before": os.getloadavg(),
    }


def entry(row: Any, before: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """A row of a results file.

    Args:
        row: a dataclass.
        before: the `conditions` when its measurement began.
        facts: what else identifies the measurement, such as sizes.
    """
    return {**asdict(row), **facts, "conditions": {**before, "load_average_after": os.getloadavg()}}


def save(benchmark: str, entries: Sequence[dict[str, Any]], key: Sequence[str], path: Path | None = None) -> Path:
    """Writes entries to `results/<benchmark>.json`, or to another file; those already there that differ in a field of
    `key` stay."""
    path = path or RESULTS / f"{benchmark}.json"
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = {tuple(row.get(name) for name in key): row for row in [*old, *entries]}
    path.parent.mkdir(exist_ok=True)
    document = {"benchmark": benchmark, "rows": list(rows.values())}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path


def busy() -> str:
    """A warning when other programs had the processors too, else empty."""
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    return f"the machine is busy: load {load:.1f} on {cpus} CPUs" if load > 1.5 * cpus else ""


def _commit() -> str | None:
    """The commit of this source tree, with a `+` when files other than results differ from it."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)benchmarks/results")
    commit = _git("rev-parse", "--short", "HEAD")
    return commit and commit + ("+" if changed else "")


def _git(*words: str) -> str | None:
    try:
        found = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
