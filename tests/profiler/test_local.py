"""The hardware of a job: measured where nothing is known of it, and else as it was."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

import galvatron
from galvatron.profiler import grids, local, store
from galvatron.profiler.environment import environment_of
from galvatron.profiler.hardware import AT_A_GLANCE
from galvatron.profiler.local import local_cluster, local_profile
from galvatron.profiler.profile import Measurement
from tests.profiler.profiles import TINY, TINY_GRIDS, TINY_MESSAGES
from tests.profiler.test_hardware import ALONE


@pytest.fixture(autouse=True)
def a_glance_is_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GLANCE", TINY)
    monkeypatch.setitem(grids.GRIDS, ("cpu", "tiny"), TINY_GRIDS)
    monkeypatch.setitem(grids.MESSAGE_BYTES, "tiny", TINY_MESSAGES)


def test_a_profile_is_taken_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "galvatron"):
        first = local_profile(ALONE, tmp_path)
        path = store.store_file(first.environment, tmp_path)
        assert "it was measured for" in caplog.text and str(path) in caplog.text
        caplog.clear()
        second = local_profile(ALONE, tmp_path)
        assert f"costs are those of the profile of {first.taken}" in caplog.text
        assert "measured" not in caplog.text
    assert second == store.load(path)[0]
    assert local_cluster(cache_dir=tmp_path).name == "local:1x1"


def test_profiles_of_others_are_not_used_and_it_is_said_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = local_profile(ALONE, tmp_path)
    path = store.store_file(first.environment, tmp_path)
    elsewhere = replace(first, environment=replace(first.environment, device="Abacus 3000"))
    path.unlink()
    store.save(store.store_file(elsewhere.environment, tmp_path), elsewhere)
    with caplog.at_level(logging.INFO, "galvatron"):
        again = local_profile(ALONE, tmp_path)
    assert again.environment == environment_of(ALONE)
    assert "is of another environment: device Abacus 3000, not" in caplog.text
    assert path.exists()


def test_a_job_can_do_without_a_place_for_profiles(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no directory")
    with caplog.at_level(logging.INFO, "galvatron"):
        assert local_profile(ALONE, tmp_path / "file").measurements
    assert "and is not kept" in caplog.text


@pytest.mark.parametrize("asked_for", [True, False])
def test_a_profile_that_is_no_longer_so_is_told_or_taken_anew(
    asked_for: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = local_profile(ALONE, tmp_path)
    first = replace(first, facts=((AT_A_GLANCE, 0.0 if asked_for else 1.0),))
    product = Measurement("product", "nn", "f32", tuple((n, 64.0) for n in ("rows", "columns", "inner")), 1e5, 0.0, 1)
    product = replace(product, sizes=(("count", 1.0), *product.sizes))
    store.save(store.store_file(first.environment, tmp_path), replace(first, measurements=(product,)))
    with caplog.at_level(logging.WARNING, "galvatron"):
        again = local_profile(ALONE, tmp_path)
    if asked_for:
        assert "may be out of date: product takes" in caplog.text
        assert product in again.measurements
    else:
        assert "was taken while others used this hardware, which is faster now: it was measured for" in caplog.text


def test_measuring_now_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert local_cluster(effort=TINY).world_size == 1
    assert not list(tmp_path.iterdir())


def test_a_search_reads_a_profile(tmp_path: Path) -> None:
    first = local_profile(ALONE, tmp_path)
    path = store.store_file(first.environment, tmp_path)
    with pytest.raises(galvatron.GalvatronError, match="a program is what"):
        galvatron.search(None, str(path))  # type: ignore[arg-type]  # the cluster is read, which is all that is asked
