"""What a step reads of the values that it has noted."""

from __future__ import annotations

import torch

from galvatron.runtime.bounds import Bounds, Reading


def test_what_is_outside_is_counted_and_read() -> None:
    bounds = Bounds()
    bounds.start()
    bounds.note("index", torch.tensor([0, 4]), 5)
    bounds.note("label", torch.tensor([-1, 2]), 5)
    bounds.never("the model says no", torch.tensor([False, True]))
    assert Reading(bounds.outside(torch.device("cpu"))).read() == [2.0, 3.0]
    assert str(bounds.error({})).startswith("label -1 is outside of 0 to 4")
