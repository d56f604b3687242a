"""The collector of garbage is left as it was found."""

from __future__ import annotations

import gc

import pytest

from galvatron.passes.planning.search.garbage import uncollected


@pytest.mark.parametrize("collects", [True, False])
def test_the_collector_rests_in_the_block_only(collects: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with pytest.raises(KeyboardInterrupt), uncollected():
            assert not gc.isenabled()
            raise KeyboardInterrupt
        assert gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()
