"""What all tests of a run share."""

from __future__ import annotations

import os

import pytest

from tests import captures


@pytest.fixture(scope="session", autouse=True)
def folder_of_captures(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One folder for all workers, which pytest removes some runs later."""
    own = tmp_path_factory.getbasetemp()
    captures.folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
