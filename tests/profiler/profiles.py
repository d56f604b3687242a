"""A made-up profile of a made-up machine, whose figures follow from its rates."""

from __future__ import annotations

from itertools import product

from galvatron.profiler.grids import Grids, Products
from galvatron.profiler.meter import Effort
from galvatron.profiler.profile import Environment, Measurement, Overlap, Profile

ENVIRONMENT = Environment(
    device="Abacus 3000",
    kind="cpu",
    memory_bytes=8 * 2**30,
    cores=4,
    threads=1,
    nodes=2,
    devices_per_node=2,
    backend="gloo",
    torch="2.13.0",
)
FLOP_PER_S, BYTES_PER_S, LINK_BYTES_PER_S, STEP_S = 1e10, 1e9, 1e8, 1e-4


def sizes(**numbers: float) -> tuple[tuple[str, float], ...]:
    return tuple((name, float(number)) for name, number in numbers.items())


def measurement(name: str, how: str, seconds: float, dtype: str = "f32", **numbers: float) -> Measurement:
    return Measurement(name, how, dtype, sizes(**numbers), seconds, 0.01, 5)


def all_reduce(group: int, stride: int, nbytes: float) -> Measurement:
    """By a ring over links of one rate."""
    steps = 2 * (group - 1)
    seconds = steps * (STEP_S + nbytes / group / LINK_BYTES_PER_S)
    return measurement("all_reduce", "", seconds, group=group, stride=stride, bytes=nbytes)


MEASUREMENTS = (
    measurement("host", "recorded op", 3e-6),
    measurement("launch", "kernel", 2e-6),
    *(
        measurement("product", "nn", 2 * r * c * i / FLOP_PER_S, count=1, rows=r, columns=c, inner=i)
        for r, c, i in product((64, 512), repeat=3)
    ),
    *(measurement("pointwise", how, n / BYTES_PER_S, bytes=n) for how in ("add", "accumulate") for n in (1e4, 1e7)),
    *(measurement("pointwise", "gelu", 4 * n / BYTES_PER_S, bytes=n) for n in (1e4, 1e7)),
    *(measurement("norm", how, 2 * n / BYTES_PER_S, bytes=n) for how in ("forward", "backward") for n in (1e4, 1e7)),
    measurement("attention", "causal forward", 1e-3, count=8, length=128, width=64),
    *(all_reduce(*shape, nbytes) for shape in ((2, 1), (2, 2), (4, 1)) for nbytes in (1e3, 1e5, 1e7)),
    *(measurement("p2p", "one way", 5e-5 + n / 1e8, group=2, stride=1, bytes=n) for n in (1e3, 1e6)),
)
OVERLAP = Overlap("all_reduce", "product", 4, 1, 2**20, 0.004, 0.010, 0.005, 0.011)
PROFILE = Profile(
    "local:2x2", ENVIRONMENT, "2026-11-27T10:00:00+00:00", sizes(context_bytes=2**28), MEASUREMENTS, (OVERLAP,)
)

TINY = Effort("tiny", total_s=0.0, window_s=1e-4, certainty=1.0, windows=(1, 2), longest_s=1.0)
"""One window of everything."""

TINY_GRIDS = Grids(
    products={"f32": Products((1, 2), (16, 32), 2**20), "bf16": Products((1,), (16,), 2**20)},
    layouts=(16,),
    elements={"f32": (2**10, 2**12)},
    attention={"f32": ((4,), (16,), (8,))},
)
TINY_MESSAGES = (2**10, 2**12)
