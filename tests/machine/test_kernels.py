"""Seconds of kernels by their shapes: properties that hold on any device, and what is known of measured ones."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.errors import ClusterError
from galvatron.ir.cluster import Cluster
from galvatron.ir.device import Device, Measured, Products, alignment
from galvatron.ir.kernel_figures import CUDNN_H100, FLASH_2_H100
from galvatron.ir.ops.work import Work, attention, product
from galvatron.ir.presets import PRESETS
from galvatron.ir.text import parse_program, print_program
from galvatron.machine.kernel import Kernel
from galvatron.machine.kernels import Kernels
from galvatron.machine.measured import Grid
from galvatron.machine.products import reads_of
from tests.ir import programs

A100 = Cluster.parse("a100-80g:1x1").device
H100 = replace(Cluster.parse("h100-80g:1x1").device, curves="")
PLAIN = Device("plain", 10**9, (("f32", 1e12), ("bf16", 2e12)), 1e11, kernel_launch_s=1e-6)
DATA = next(
    (at / "shared/data/kernels" for at in Path(__file__).parents if (at / "shared/data/kernels").is_dir()), None
)

MEASURED = replace(
    PLAIN,
    measured=Measured(
        products=(
            (
                "f32",
                tuple(
                    (count, rows, columns, inner, 3e-6 + 2 * count * rows * columns * inner / 4e11)
                    for count in (1.0, 16.0)
                    for rows in (32.0, 256.0, 2048.0)
                    for columns in (64.0, 1024.0)
                    for inner in (64.0, 1024.0)
                    if count * rows * columns * inner < 1e9
                ),
            ),
        ),
        moving=(("norm", ((1e4, 5e-6), (1e6, 4e-5), (1e8, 3e-3))), ("optimizer", ((1e6, 2e-5), (1e8, 2e-3)))),
        attention=(("f32.forward", ((1.0, 64.0, 32.0, 1e-5), (1.0, 512.0, 32.0, 4e-4))),),
    ),
)

devices = st.sampled_from(
    [A100, H100, PLAIN, MEASURED, *(replace(Cluster.parse(f"{name}:1x1").device, curves="") for name in PRESETS)]
)
sizes = st.integers(1, 1 << 16) | st.floats(0.25, 1 << 16)
aligned = st.integers(1, 1 << 10).map(lambda size: 64 * size)
factors = st.integers(1, 4)
dtypes = st.sampled_from(["bf16", "f32", "f64"])


def seconds(device: Device, dtype: str, work: Work | None, traffic_bytes: float = 1e6, name: str = "mm") -> float:
    return Kernels(device).seconds(Kernel(name, dtype, traffic_bytes, work))


@given(devices, dtypes, st.integers(1, 64), sizes, sizes, sizes, st.floats(0, 1e12))
def test_products_of_every_shape_take_seconds(
    device: Device, dtype: str, count: int, rows: float, columns: float, inner: float, traffic_bytes: float
) -> None:
    found = seconds(device, dtype, product(count, rows, columns, inner), traffic_bytes)
    assert device.kernel_launch_s <= found < math.inf and found > 0


@given(devices, dtypes, st.tuples(factors, sizes, aligned, aligned), st.tuples(factors, factors, factors, factors))
def test_a_larger_product_takes_no_less(
    device: Device, dtype: str, small: tuple[float, ...], by: tuple[int, ...]
) -> None:
    """Of matrices whose rows are aligned alike; others may be faster when they grow, and are on a GPU."""
    large = tuple(size * factor for size, factor in zip(small, by, strict=True))
    before, after = (seconds(device, dtype, product(*of)) for of in (small, large))
    assert before <= after * (1 + 1e-9)


@given(dtypes, st.tuples(factors, sizes, sizes, sizes), st.floats(1, 4), st.floats(0, 1e10))
def test_a_faster_device_takes_no_longer(
    dtype: str, of: tuple[float, ...], faster: float, traffic_bytes: float
) -> None:
    for device in (A100, H100, PLAIN):
        rates = tuple((name, rate * faster) for name, rate in device.matmul_flop_per_s)
        others = (
            replace(device, matmul_flop_per_s=rates),
            replace(device, memory_bytes_per_s=device.memory_bytes_per_s * faster),
            replace(device, kernel_launch_s=device.kernel_launch_s / faster),
        )
        for work in (product(*of), attention(of, of, of, causal=True), None):
            slow = seconds(device, dtype, work, traffic_bytes)
            assert all(seconds(other, dtype, work, traffic_bytes) <= slow * (1 + 1e-9) for other in others)


@given(devices, st.sampled_from(["add", "layer_norm", "native_layer_norm_backward", "sum"]), st.floats(0, 1e13))
def test_more_bytes_take_no_less(device: Device, name: str, size: float) -> None:
    few, many = (seconds(device, "f32", None, traffic_bytes, name) for traffic_bytes in (size, 1.5 * size))
    assert 0 < few <= many < math.inf


@given(
    devices, dtypes, st.booleans(), st.booleans(),
    st.tuples(st.integers(1, 256), st.integers(1, 1 << 14), st.integers(1, 1 << 14)),
    st.sampled_from([16, 40, 64, 96, 128, 256]), st.tuples(factors, factors, factors),
)  # fmt: skip
def test_more_attention_takes_no_less(
    device: Device, dtype: str, causal: bool, backward: bool, of: tuple[int, ...], width: int, by: tuple[int, ...]
) -> None:
    def at(heads: int, queries: int, keys: int) -> float:
        shapes = ((heads, queries, width), (heads, keys, width), (heads, keys, width))
        return seconds(device, dtype, attention(*shapes, causal=causal, backward=backward))

    more = (size * factor for size, factor in zip(of, by, strict=True))
    assert 0 < at(*of) <= at(*more) * (1 + 1e-9) < math.inf


def test_a_device_without_figures_computes_every_shape_at_its_best_rate() -> None:
    assert seconds(PLAIN, "f32", product(1, 1000, 1000, 1000), 0) == pytest.approx(2e9 / 1e12 + 1e-6)
    assert seconds(PLAIN, "f32", product(1, 10, 10, 10), 1e6) == pytest.approx(1e6 / 1e11 + 1e-6)
    assert seconds(PLAIN, "f32", None, 1e6, "layer_norm") == pytest.approx(1e6 / 1e11 + 1e-6)
    work = attention((8, 64, 32), (8, 64, 32), (8, 64, 32), causal=False)
    assert seconds(PLAIN, "f32", work, 0) == pytest.approx(work.flop / 1e12 + 1e-6)


def test_tiles_that_do_not_fit_cost_what_the_next_do() -> None:
    """One row of tiles more than the multiprocessors take at once is nearly another turn."""
    kernels = Kernels(H100)

    def rate(rows: int) -> float:
        work = product(1, rows, 8448, 8192)  # 66 tiles wide: two rows of tiles are a turn of 132
        return work.flop / kernels.seconds(Kernel("mm", "bf16", 1e8, work))

    assert rate(260) < 0.85 * rate(256)
    assert rate(4096) == pytest.approx(rate(8192), rel=0.05)


def test_shallow_and_small_products_lose_more() -> None:
    def share(rows: int, columns: int, inner: int) -> float:
        work = product(1, rows, columns, inner)
        touched = 2 * (rows * inner + inner * columns + rows * columns)
        return work.flop / seconds(A100, "bf16", work, touched) / A100.flop_per_s("bf16")

    assert 0.8 < share(8192, 8192, 8192) < 0.95
    assert share(8192, 8192, 64) < 0.6 * share(8192, 8192, 8192)
    assert share(256, 256, 8192) < 0.3 * share(8192, 8192, 8192)


def test_rows_that_are_not_aligned_are_read_in_more_pieces() -> None:
    assert reads_of(alignment("bf16", 4096)) == 1
    assert reads_of(alignment("bf16", 4104)) == 1.5  # 16 bytes, but not 32
    assert reads_of(alignment("bf16", 180)) == 3  # 8 bytes
    assert reads_of(alignment("bf16", 50257)) == reads_of(alignment("f32", 50257)) == 4
    assert reads_of(alignment("bf16", 50257.5)) == 1  # is padded
    padded, odd = (seconds(A100, "bf16", product(1, 8192, columns, 768)) for columns in (50304, 50257))
    assert 1.2 * padded < odd < 1.6 * padded


PUBLISHED_H100 = {
    ("flash", "forward", 64, False): (282, 306, 318, 321, 322, 324),
    ("flash", "forward", 64, True): (180, 229, 262, 284, 295, 299),
    ("flash", "forward", 128, False): (309, 350, 362, 368, 370, 370),
    ("flash", "forward", 128, True): (191, 260, 298, 319, 333, 335),
    ("flash", "forward", 256, False): (275, 313, 321, 323, 324, 326),
    ("flash", "forward", 256, True): (208, 251, 278, 293, 297, 298),
    ("flash", "backward", 64, False): (198, 238, 264, 279, 287, 291),
    ("flash", "backward", 128, False): (214, 260, 291, 310, 318, 322),
    ("cudnn", "forward", 64, False): (335, 373, 395, 408, 412, 413),
    ("cudnn", "forward", 64, True): (225, 288, 334, 363, 379, 388),
    ("cudnn", "forward", 128, False): (497, 574, 617, 609, 600, 595),
    ("cudnn", "forward", 128, True): (315, 410, 484, 518, 529, 539),
    ("cudnn", "forward", 256, False): (470, 546, 580, 581, 580, 581),
    ("cudnn", "forward", 256, True): (308, 391, 450, 483, 497, 509),
    ("cudnn", "backward", 64, False): (266, 348, 395, 417, 432, 433),
    ("cudnn", "backward", 128, False): (305, 408, 465, 499, 518, 516),
}
"""TFLOP/s by kernel, direction, width of a head and mask, with 512 to 16,384 keys: Shah et al., "FlashAttention-3",
2024, H100, 16,384 tokens of 2,048 elements."""

SHARES = {"flash": FLASH_2_H100, "cudnn": CUDNN_H100}


@pytest.mark.parametrize("of", PUBLISHED_H100, ids=str)
def test_attention_reaches_what_was_published(of: tuple[str, str, int, bool]) -> None:
    kernel, direction, width, causal = of
    device = replace(H100, attention_share=SHARES[kernel])
    tensor_bytes = 2 * 16384 * 2048
    for length, published in zip((512, 1024, 2048, 4096, 8192, 16384), PUBLISHED_H100[of], strict=True):
        shape = (16384 // length * 2048 // width, length, width)
        work = attention(shape, shape, shape, causal=causal, backward=direction == "backward")
        found_s = seconds(device, "bf16", work, 4 * tensor_bytes)
        if direction == "backward":  # it multiplies gradient and result before, and casts the gradient of queries after
            found_s += 2 * seconds(device, "bf16", None, 2 * tensor_bytes)
        assert work.flop / found_s / 1e12 == pytest.approx(published, rel=0.15 if length == 512 else 0.1)


def test_measured_seconds_count_where_there_are_some() -> None:
    assert seconds(MEASURED, "f32", product(1, 256, 1024, 64)) == pytest.approx(3e-6 + 2 * 256 * 1024 * 64 / 4e11)
    assert seconds(MEASURED, "f32", None, 1e6, "layer_norm") == pytest.approx(4e-5)
    assert seconds(MEASURED, "f32", None, 1e6, "add") == seconds(PLAIN, "f32", None, 1e6, "add")
    assert seconds(MEASURED, "bf16", product(1, 256, 1024, 64)) == seconds(PLAIN, "bf16", product(1, 256, 1024, 64))
    square, oblong = (
        attention((1, queries, 32), (1, keys, 32), (1, keys, 32), causal=True)
        for queries, keys in ((512, 512), (128, 2048))
    )
    assert seconds(MEASURED, "f32", square) == pytest.approx(4e-4) == seconds(MEASURED, "f32", oblong)
    assert Kernels(MEASURED).updating_s(1e7) == pytest.approx(2e-4)
    assert Kernels(PLAIN).updating_s(1e7) == pytest.approx(1e-4)


def test_text_and_json_keep_what_a_device_says_of_its_kernels() -> None:
    for device in (MEASURED, H100):
        program = programs.planned()
        assert program.cluster is not None
        cluster = replace(program.cluster, device=device)
        assert parse_program(print_program(replace(program, cluster=cluster))).cluster == cluster
        assert Cluster.from_json(cluster.to_json()) == cluster


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from([1, 8, 64]), st.sampled_from([2, 32, 512])), st.floats(1e-6, 1), min_size=1
    ),
    st.tuples(st.floats(0.01, 1e4), st.floats(0.01, 1e4)),
    st.tuples(st.floats(1, 10), st.floats(1, 10)),
)
def test_grids_rise_with_every_size(
    measured: dict[tuple[int, int], float], small: tuple[float, float], by: tuple[float, float]
) -> None:
    grid = Grid(tuple((float(a), float(b), s) for (a, b), s in measured.items()))
    before, after = grid(small), grid((small[0] * by[0], small[1] * by[1]))
    assert 0 < before <= after * (1 + 1e-9) < math.inf


def test_grids_keep_what_was_measured_and_go_on_in_proportion() -> None:
    grid = Grid(((1, 1, 1e-3), (1, 100, 2e-3), (10, 1, 4e-3)))
    assert grid((1, 100)) == pytest.approx(2e-3) and grid((10, 1)) == pytest.approx(4e-3)
    assert grid((10, 100)) == pytest.approx(0.4)  # a hundred times what (10, 1) takes
    assert grid((0.1, 0.1)) == pytest.approx(1e-3)
    assert grid((30, 1)) == pytest.approx(12e-3)
    assert grid((math.sqrt(10), 1)) == pytest.approx(2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moving_share": (("nrom", 0.5),)}, "moving_share.nrom.*'norm'"),
        ({"moving_share": (("norm", 1.5),)}, "moving_share.norm' is a share"),
        ({"attention_share": (("sideways.64", 0.5),)}, "as in 'forward.128'"),
        ({"products": Products(tail=0.0)}, "'tail' is a share"),
        ({"products": Products(multiprocessors=-1)}, "'multiprocessors' is -1"),
        ({"measured": Measured(products=(("f32", ((1.0, 2.0, 3.0),)),))}, "rows of 5 numbers"),
        (
            {
                "measured": Measured(
                    products=(("f32", tuple((1.0 + i, 2.0 + i, 3.0 + i, 4.0, 1e-3) for i in range(64))),)
                )
            },
            "grid of 262144 points",
        ),
        ({"measured": Measured(moving=(("norm", ()),))}, "'moving.norm' must have 1 to"),
        ({"measured": Measured(moving=(("norm", ((1.0, -1.0),)),))}, "'moving.norm' has a size or a time"),
    ],
)
def test_impossible_figures_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        replace(PLAIN, **changes).check()  # type: ignore[arg-type]  # fields of several types


@pytest.mark.skipif(DATA is None, reason="no shared/data/kernels in a folder above")
@pytest.mark.parametrize(("table", "median", "p90"), [("a100", 5, 13), ("h100", 6, 18)])
def test_products_take_what_was_measured(table: str, median: float, p90: float) -> None:
    """What the calibration says of its held-out half holds."""
    from calibrate_kernels import BANDS, PRESETS, Errors, band, flat, halves, predictions, products

    assert DATA is not None
    device = replace(Cluster.parse(f"{PRESETS[table]}:1x1").device, curves="")
    _, held = halves(band(products(DATA / f"gemm_{table}.csv"), *BANDS["m >= 512"]))
    figures, best = (Errors.of(table, "", predictions(of, held)) for of in (device, flat(device)))
    assert figures.median < median and figures.p90 < p90
    assert abs(figures.bias) < 2 < 10 < best.median
