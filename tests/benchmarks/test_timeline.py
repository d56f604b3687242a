"""What is read of a trace of several steps."""

from __future__ import annotations

import pytest
from checks.timeline import read


def kernel(name: str, begun: float, ended: float, kind: str = "kernel") -> dict[str, object]:
    return {"ph": "X", "cat": kind, "name": name, "ts": begun, "dur": ended - begun}


def test_what_lies_between_kernels_is_told_by_the_kernels_around_it() -> None:
    events = [
        kernel("a", 0.0, 10.0),
        kernel("copy", 5.0, 20.0, "gpu_memcpy"),  # beside it, in another stream
        kernel("launch", 0.0, 500.0, "cuda_runtime"),
        kernel("b", 21.0, 30.0),
        kernel("a", 80.0, 90.0),
        kernel("b", 91.0, 100.0),
    ]
    found = read(events, 2)
    assert found.step_s == pytest.approx(50e-6)
    assert found.busy_s == pytest.approx(24e-6)
    assert found.kernels["a"] == pytest.approx((1.0, 10e-6))
    assert found.idle_s["2"] == pytest.approx(1e-6)
    assert found.idle_s["100"] == pytest.approx(25e-6)
    worst = found.gaps[0]
    assert (worst.behind, worst.before, worst.count) == ("b", "a", 0.5)
    assert worst.seconds == pytest.approx(25e-6)
