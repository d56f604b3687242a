"""Calibrates what presets say of kernels on measured ones: products of matrices and kernels that memory bounds.

    python benchmarks/calibrate_kernels.py [--data DIR] [--fit] [--seed 0]

Without `--fit` it prints how far the presets are from the measured times; with it, it first finds the figures that the
presets should have, on every other weight shape, and tells the errors of the others apart. A step time is never looked
at. The tables are those of microsoft/vidur (MIT): durations of kernels on the device, without what passes from one to
the next, `GAP_S`.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

from common.results import RESULTS, conditions, entry, save
from rich.console import Console
from rich.table import Table

from galvatron.ir.cluster import Cluster
from galvatron.ir.device import Device, Products
from galvatron.ir.ops.work import product
from galvatron.machine.kernel import Kernel
from galvatron.machine.kernels import Kernels

PRESETS = {"a100": "a100-80g", "h100": "h100-80g"}
"""Table → preset of the same card."""

GAP_S = 1e-6
"""Between two kernels in a row. An assumption: microseconds are too coarse a unit of the tables to tell."""

HALF_BYTES = 2
"""Of an element: all tables are of bf16 or fp16."""

LARGE_ROWS = 512
"""Rows of a product that is one of training, not of generating a token."""

BANDS = {"m >= 512": (LARGE_ROWS, 10**9), "64 <= m < 512": (64, LARGE_ROWS), "m < 64": (1, 64)}

FITTED = {
    "tile_share": (0.7, 1.0),
    "edge": (0.0, 60.0),
    "ramp": (0.0, 400.0),
    "tail": (0.05, 1.0),
    "start_s": (0.0, 8e-6),
}
"""What is searched for, and where."""

SMALL_WEIGHT = 0.3
"""Of products of 64 to 511 rows, relative to larger ones."""

TOLERATED = 0.10
"""Errors beyond this count almost twice: one product that is far off matters more than many that are slightly."""

BYTES_OF_MATVEC = 2e8
"""Of a matrix that is so large that reading it is all that counts."""

MOVED = {"add": (3, "pointwise"), "input_layernorm": (2, "norm"), "mlp_act": (3, "pointwise"), "attn_rope": (2, "")}
"""Kernel of the tables → tensors of rows × width that it reads and writes, and the class of which it is one."""

OTHERS = {("add", 2560), ("mlp_act", 10240)}
"""Kernel and width of the one model in which they are others: two adds, and an activation that nothing gates."""


@dataclass(frozen=True)
class Row:
    """One measured product or kernel and what it takes by the figures."""

    kernel: Kernel
    rows: int
    columns: int
    inner: int
    seconds: float


@dataclass(frozen=True)
class Errors:
    """Relative errors of predictions, in percent; `bias` is the median with its sign."""

    table: str
    what: str
    count: int
    median: float
    p90: float
    worst: float
    bias: float

    @staticmethod
    def of(table: str, what: str, pairs: Iterable[tuple[float, float]]) -> Errors:
        signed = sorted(100 * (predicted / measured - 1) for predicted, measured in pairs)
        sizes = sorted(map(abs, signed))
        p90 = sizes[min(len(sizes) - 1, round(0.9 * len(sizes)))]
        return Errors(table, what, len(sizes), median(sizes), p90, sizes[-1], median(signed))


def products(path: Path) -> list[Row]:
    """The measured products of a table."""
    with path.open(encoding="utf-8") as file:
        return [_product(int(r["m"]), int(r["n"]), int(r["k"]), float(r["median_ms"])) for r in csv.DictReader(file)]


def _product(m: int, n: int, k: int, median_ms: float) -> Row:
    touched = HALF_BYTES * (m * k + k * n + m * n)
    return Row(Kernel("mm", "bf16", touched, product(1, m, n, k)), m, n, k, median_ms * 1e-3)


def flat(device: Device) -> Device:
    """The device by its best rates alone."""
    return replace(device, products=Products(), moving_share=(), attention_share=())


def predictions(device: Device, rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Predicted and measured seconds of each row."""
    kernels = Kernels(device)
    return [(kernels.seconds(row.kernel) - GAP_S, row.seconds) for row in rows]


def band(rows: Sequence[Row], least: int, most: int) -> list[Row]:
    return [row for row in rows if least <= row.rows < most]


def halves(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The products with every other weight, to fit, and the rest, to check."""
    weights = sorted({(row.columns, row.inner) for row in rows})
    fitted = set(weights[::2])
    return (
        [row for row in rows if (row.columns, row.inner) in fitted],
        [row for row in rows if (row.columns, row.inner) not in fitted],
    )


def memory_share(device: Device, rows: Sequence[Row]) -> float:
    """What reading whole matrices reaches of the bandwidth: products with a vector of the largest ones."""
    rates = [row.kernel.traffic_bytes / row.seconds for row in rows if row.rows == 1]
    large = [row.kernel.traffic_bytes / row.seconds for row in rows if row.rows == 1 and row.inner * row.columns > 1e8]
    return min(1.0, median(large or rates) / device.memory_bytes_per_s)


def cost(device: Device, rows: Sequence[Row]) -> float:
    """What is to be small: the mean of the errors, as logarithms, of which large ones count more."""
    errors = [abs(math.log(predicted / measured)) for predicted, measured in predictions(device, rows)]
    return sum(e + 0.9 * max(0.0, e - TOLERATED) for e in errors) / len(errors)


def fit(device: Device, rows: Sequence[Row], seed: int, progress: Callable[[str], None]) -> Products:
    """The figures with which the products of the rows are predicted best."""
    from scipy.optimize import differential_evolution

    start = replace(device.products, memory_share=round(memory_share(device, rows), 2))
    large, small = band(rows, *BANDS["m >= 512"]), band(rows, *BANDS["64 <= m < 512"])

    def at(figures: Sequence[float]) -> Device:
        return replace(device, products=replace(start, **dict(zip(FITTED, map(float, figures), strict=True))))

    def goal(figures: Sequence[float]) -> float:
        return cost(at(figures), large) + SMALL_WEIGHT * cost(at(figures), small)

    found = differential_evolution(
        goal, list(FITTED.values()), rng=seed, maxiter=25, popsize=8, polish=False,
        callback=lambda figures, convergence: progress(f"{goal(figures):.4f}"),
    )  # fmt: skip
    rounded = [float(f"{figure:.3g}") for figure in found.x]
    return at(rounded).products


def product_errors(table: str, device: Device, rows: Sequence[Row]) -> list[Errors]:
    """Errors of the best rate, and of the figures, by the number of rows; those of what was fitted and held out."""
    found = []
    for what, (least, most) in BANDS.items():
        of_band = band(rows, least, most)
        found.append(Errors.of(table, f"best rate, {what}", predictions(flat(device), of_band)))
        fitted, held = halves(of_band)
        found.append(Errors.of(table, f"figures, {what}, fitted", predictions(device, fitted)))
        found.append(Errors.of(table, f"figures, {what}, held out", predictions(device, held)))
    return found


def moved(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Bytes and seconds of each kernel of a table that memory bounds."""
    found: dict[str, list[tuple[float, float]]] = {}
    with path.open(encoding="utf-8") as file:
        for r in csv.DictReader(file):
            if (r["kernel"], int(r["width"])) in OTHERS:
                continue
            passes, _ = MOVED[r["kernel"]]
            size = passes * HALF_BYTES * int(r["rows"]) * int(r["width"])
            found.setdefault(r["kernel"], []).append((size, float(r["median_ms"]) * 1e-3))
    return found


def reached(device: Device, points: Sequence[tuple[float, float]]) -> float:
    """Share of the bandwidth that the largest kernels reach."""
    largest = sorted(points)[-len(points) // 4 :]
    return median(size / seconds for size, seconds in largest) / device.memory_bytes_per_s


def moved_errors(table: str, device: Device, path: Path) -> list[Errors]:
    """Errors of kernels that memory bounds, at all of the bandwidth and with the figures of their class."""
    found = []
    for name, points in moved(path).items():
        _, kind = MOVED[name]
        kernel = {"pointwise": "add", "norm": "layer_norm"}.get(kind)
        if kernel is None:
            continue
        for what, kernels in (("all of the bandwidth", Kernels(flat(device))), ("figures", Kernels(device))):
            pairs = [(kernels.seconds(Kernel(kernel, "bf16", size)) - GAP_S, seconds) for size, seconds in points]
            found.append(Errors.of(table, f"{name}, {what}", pairs))
    return found


def show(rows: Sequence[Errors]) -> None:
    table = Table(title="Errors of predicted kernel times, in percent")
    for heading in ("table", "what", "kernels", "median", "p90", "worst", "bias"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        figures = (f"{figure:.1f}" for figure in (row.median, row.p90, row.worst, row.bias))
        table.add_row(row.table, row.what, str(row.count), *figures)
    Console(width=max(120, Console().width)).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data/kernels")
    parser.add_argument("--fit", action="store_true", help="find the figures anew")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(f"no tables of measured kernels in {arguments.data}: name their folder with --data", file=sys.stderr)
        return
    found: list[Errors] = []
    for table, preset in PRESETS.items():
        before = conditions()
        device = replace(Cluster.parse(f"{preset}:1x1").device, curves="")
        rows = products(arguments.data / f"gemm_{table}.csv")
        pointwise = arguments.data / f"pointwise_{table}.csv"
        if arguments.fit:
            fitted, _ = halves(rows)
            figures = fit(device, fitted, arguments.seed, partial(print, f"{preset}:", file=sys.stderr, flush=True))
            device = replace(device, products=figures)
            print(f"{preset}: {figures}")
            print({name: round(reached(device, points), 2) for name, points in moved(pointwise).items()})
        errors = [*product_errors(preset, device, rows), *moved_errors(preset, device, pointwise)]
        found += errors
        facts = {"preset": preset, "products": asdict(device.products)}
        save("calibrate_kernels", [entry(row, before, **facts) for row in errors], key=("table", "what"))
    show(found)
    print(f"written to {RESULTS / 'calibrate_kernels.json'}", file=sys.stderr)


if __name__ == "__main__":
    main()
