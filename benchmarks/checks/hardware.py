"""The hardware profile of the device, as `galvatron profile hardware` takes it, with a larger grid in little time.

The document goes beside the report, as `profile.json`: what it says is what `prediction` predicts from.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from checks import Setting
from checks.report import Report
from galvatron import runtime
from galvatron.profiler import store
from galvatron.profiler.hardware import profile_hardware
from galvatron.profiler.meter import FULL, GLANCE, Effort
from galvatron.profiler.profile import Profile

WIDE = replace(FULL, total_s=80.0, window_s=0.01, certainty=0.02, windows=(3, 15), longest_s=0.1)
"""The sizes of a full profile, each with few samples."""

PROFILE = "profile.json"


def run(report: Report, setting: Setting) -> None:
    """One profile; a row for each series of measurements."""
    if setting.on_gpu:
        report.document["device"] = properties(setting.device)
    profile = report.attempt("profile", measured, report, GLANCE if setting.tiny else WIDE)
    if profile is None:
        return
    series = sorted({(m.name, m.how, m.dtype) for m in profile.measurements})
    for name, how, dtype in series:
        found = profile.of(name, how, dtype)
        report.add(
            {
                "name": f"{name} {how}".strip(),
                "dtype": dtype,
                "sizes": len(found),
                "shortest_s": min(m.seconds for m in found),
                "longest_s": max(m.seconds for m in found),
                "spread": max(m.spread for m in found),
            }
        )


def measured(report: Report, effort: Effort) -> Profile:
    """The profile of a job of one rank, which is kept beside the report."""
    profile = profile_hardware(runtime.initialize(), effort)
    store.save(report.path.parent / PROFILE, profile)
    return profile


def properties(device: torch.device) -> dict[str, object]:
    """What the driver says of a GPU, and what it has left."""
    found = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return {
        "name": found.name,
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "cache_bytes": found.L2_cache_size,
        "mem_get_info": {"free": free, "total": total},
    }
