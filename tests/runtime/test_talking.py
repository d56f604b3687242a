"""Threads that talk to the job's store are waited for, and a store that is not there is told soon."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
import torch.distributed as dist
from common.jobs import free_port

from galvatron.errors import GalvatronError
from galvatron.runtime import starts
from galvatron.runtime.mesh import initialize
from galvatron.runtime.talking import all_silent, talking


def test_a_thread_that_waits_in_the_store_is_waited_for() -> None:
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]  # as its other kinds are

    def asks() -> None:
        with suppress(RuntimeError):
            store.wait(["never"], timedelta(seconds=0.3))

    thread = talking(asks, "asks")
    assert not all_silent(0.0)
    assert all_silent(60.0)
    assert not thread.is_alive()


def test_a_launcher_that_has_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "_THERE", timedelta(seconds=0.5))
    told = {"TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in (told | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(GalvatronError, match=r"the store of its launcher, 127.0.0.1:\d+, does not answer in"):
        initialize("cpu")
