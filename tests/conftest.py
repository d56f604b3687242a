"""What all tests of a run share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from tests import captures


@pytest.fixture(scope="session", autouse=True)
def folder_of_captures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One folder for all workers, which pytest removes some runs later."""
    own = tmp_path_factory.getbasetemp()
    captures.folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


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
