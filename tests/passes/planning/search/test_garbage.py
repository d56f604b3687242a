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


@pytest.mark.parametrize("frozen", [True, False])
def test_what_was_made_meanwhile_is_old_and_what_others_froze_stays_so(frozen: bool) -> None:
    circle: list[object] = []
    if frozen:
        gc.freeze()
    else:
        gc.unfreeze()
    before = gc.get_freeze_count()
    try:
        with uncollected():
            circle.append(circle)
        assert gc.get_freeze_count() <= before and bool(gc.get_freeze_count()) == frozen  # some may have been freed
        assert any(one is circle for one in gc.get_objects(generation=2)) != frozen
    finally:
        gc.freeze()  # as all tests begin
