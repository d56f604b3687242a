"""Byte sizes: what reads, what does not, and that printing loses nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galvatron.errors import GalvatronError
from galvatron.units import format_bytes, format_flop, format_seconds, parse_bytes, parse_quantity, print_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("36GiB", 36 * 2**30),
        ("512MB", 512 * 10**6),
        ("4096", 4096),
        (4096, 4096),
        ("1.5 GiB", 3 * 2**29),
        ("0.3KB", 300),
        ("80gib", 80 * 2**30),
        ("7B", 7),
        ("0", 0),
    ],
)
def test_reads(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "-1GiB", "1..5GB", "1e9", "nan", "0.3B", -1, True, None, "²GiB"])
def test_refuses(text: str) -> None:
    with pytest.raises(GalvatronError):
        parse_bytes(text)


def test_unknown_unit_suggests_the_nearest() -> None:
    with pytest.raises(GalvatronError, match="unknown unit 'GiBB'; did you mean .*'GiB'"):
        parse_bytes("36GiBB")


def test_prints_the_shortest_exact_text() -> None:
    assert print_bytes(36 * 2**30) == "36GiB"
    assert print_bytes(512 * 10**6) == "512MB"
    assert print_bytes(36 * 2**30 + 1) == str(36 * 2**30 + 1)
    assert print_bytes(0) == "0"


@given(st.integers(0, 2**60) | st.builds(lambda n, k: n * 2**k, st.integers(0, 999), st.integers(0, 40)))
def test_printing_loses_nothing(size: int) -> None:
    assert parse_bytes(print_bytes(size)) == size


def test_formats_for_a_reader() -> None:
    assert format_bytes(0) == "0 B"
    assert format_bytes(1023) == "1023 B"
    assert format_bytes(35.25 * 2**30) == "35.25 GiB"
    assert format_bytes(2**50) == "1024 TiB"
    assert [format_flop(n) for n in (0, 1536, 3.12e14)] == ["0 FLOP", "1.536 kFLOP", "312 TFLOP"]
    assert [format_seconds(s) for s in (1.24, 0.0351, 4.2e-6, 0)] == ["1.24 s", "35.1 ms", "4.2 us", "0 us"]


@pytest.mark.parametrize(
    ("text", "quantity", "value"),
    [
        ("79.25GiB", "bytes", 79.25 * 2**30),
        ("25 GB/s", "bytes/s", 25e9),
        ("200Gbit/s", "bytes/s", 25e9),
        ("312TFLOP/s", "FLOP/s", 312e12),
        ("2.5us", "s", 2.5e-6),
        ("1e-3 ms", "s", 1e-6),
    ],
)
def test_reads_quantities(text: str, quantity: str, value: float) -> None:
    assert parse_quantity(text, quantity) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "quantity", "message"),
    [
        ("25", "bytes/s", "not a number with a unit, such as '25GB/s'"),
        ("fast", "s", "not a number with a unit"),
        ("25Gb/s", "bytes/s", "'Gb/s' is no unit of bytes/s; did you mean 'Gbit/s' or 'GB/s'"),
        ("25GB", "bytes/s", "did you mean 'GB/s'"),
        ("5 minutes", "s", "'minutes' is no unit of s"),
    ],
)
def test_refuses_other_quantities(text: str, quantity: str, message: str) -> None:
    with pytest.raises(GalvatronError, match=message):
        parse_quantity(text, quantity)
