"""What all tests of a run share."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from tests import captures


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Of a test `one_in(n)`, `make test` runs every n-th case of those that are not slow anyway."""
    seen: Counter[tuple[str, str]] = Counter()
    for item in items:
        thinned = item.get_closest_marker("one_in")
        if thinned is None or item.get_closest_marker("slow"):
            continue
        test = str(item.path), item.name.split("[")[0]
        if seen[test] % thinned.args[0]:
            item.add_marker(pytest.mark.slow)
        seen[test] += 1


@pytest.fixture(scope="session", autouse=True)
def folder_of_captures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One folder for all workers, which pytest removes some runs later."""
    own = tmp_path_factory.getbasetemp()
    captures.folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is kept between runs, such as profiles of the hardware, is kept for this one only; ranks inherit it."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(scope="module")
def shared_captures() -> Iterator[None]:
    """For modules about what comes after a capture: see `captures.sharing`."""
    with captures.sharing(captures.folder):
        yield


@pytest.fixture(scope="module", autouse=True)
def only_new_garbage() -> None:
    """Garbage is looked for in what a module makes: modules and caches are many objects, and `compile` collects."""
    gc.collect()
    gc.freeze()
