"""The store: what is measured is merged with what is known, and what is of another machine is left alone and out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from galvatron.errors import GalvatronError
from galvatron.profiler import store
from galvatron.profiler.profile import LayerTime, Profile
from tests.profiler.profiles import ENVIRONMENT, MEASUREMENTS, OVERLAP, PROFILE

OTHER = replace(PROFILE, name="other", environment=replace(ENVIRONMENT, torch="2.11.0"))


def test_profiles_of_one_environment_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    store.save(path, replace(PROFILE, measurements=MEASUREMENTS[:3]))
    again = replace(MEASUREMENTS[2], seconds=0.5)
    later = replace(PROFILE, taken="2027-01-01", measurements=(again, MEASUREMENTS[3]), overlaps=(), facts=())
    merged = store.save(path, later)
    assert merged.measurements == (*MEASUREMENTS[:2], again, MEASUREMENTS[3])
    assert (merged.taken, merged.overlaps, merged.facts) == ("2027-01-01", (OVERLAP,), PROFILE.facts)
    (found,) = store.load(path)
    assert found.measurements[2].seconds == 0.5


def test_profiles_of_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for profile in (PROFILE, OTHER, PROFILE):
        store.save(path, profile)
    assert [p.name for p in store.load(path)] == ["other", "local:2x2"]
    assert not list(tmp_path.glob(".*")), "nothing else is left"


def test_what_is_no_profile_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "thesis.json"
    path.write_text('{"chapters": 7}')
    with pytest.raises(GalvatronError, match=r"thesis\.json is no document of profiles"):
        store.save(path, PROFILE)
    assert path.read_text() == '{"chapters": 7}'


def test_foreign_and_unreadable_profiles_do_not_count_and_it_is_said_why(tmp_path: Path) -> None:
    store.save(tmp_path / "a.json", OTHER)
    (tmp_path / "b.json").write_text("{")
    found = store.find([tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"], ENVIRONMENT)
    assert found.profile is None
    first, second, third = found.reasons
    assert first == "other in a.json is of another environment: torch 2.11.0, not 2.13.0"
    assert second.startswith("b.json cannot be read: ")
    assert third.startswith("c.json cannot be read: ")


def test_the_latest_of_several_counts(tmp_path: Path) -> None:
    for name, taken in (("a", "2026-01-01"), ("b", "2027-01-01"), ("c", "2025-01-01")):
        store.save(tmp_path / f"{name}.json", replace(PROFILE, taken=taken))
    found = store.find(sorted(tmp_path.glob("*.json")), ENVIRONMENT).profile
    assert found is not None and found.taken == "2027-01-01"


def test_a_little_more_memory_is_no_other_machine(tmp_path: Path) -> None:
    booted = replace(ENVIRONMENT, memory_bytes=ENVIRONMENT.memory_bytes + 2**20)
    assert not ENVIRONMENT.differences(booted)
    assert store.store_file(ENVIRONMENT, tmp_path) == store.store_file(booted, tmp_path)
    larger = replace(ENVIRONMENT, memory_bytes=2 * ENVIRONMENT.memory_bytes)
    assert ENVIRONMENT.differences(larger) == [f"memory bytes {16 * 2**30}, not {8 * 2**30}"]


def test_every_environment_has_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.store_file(ENVIRONMENT, tmp_path)
    assert path.parent == tmp_path / "profiles"
    assert path.name.startswith("abacus-3000-2x2-gloo-")
    assert store.store_file(OTHER.environment, tmp_path) != path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store.store_directory() == tmp_path / "cache" / "galvatron" / "profiles"
    assert store.stored_files() == []
    store.save(store.store_file(ENVIRONMENT), PROFILE)
    assert store.stored_files() == [store.store_file(ENVIRONMENT)]


def test_a_profile_of_a_class_of_layers_has_a_place(tmp_path: Path) -> None:
    layer = LayerTime("decoder under dp2", "9f3a21c09f3a21c0", "forward", 4, 0.01, 0.02, 3)
    profile: Profile = replace(PROFILE, classes=(layer,))
    store.save(tmp_path / "p.json", profile)
    (found,) = store.load(tmp_path / "p.json")
    assert found.classes == (layer,)
