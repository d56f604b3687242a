"""Which rows of a group are dropped."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from galvatron.solver.pareto import frontier
from tests.solver.tables import Drawn, drawn


@settings(max_examples=100, deadline=None)
@given(drawn(), st.integers(0, 40), st.integers(1, 4))
def test_what_is_kept_no_other_row_of_its_group_beats_or_equals(tables: Drawn, count: int, columns: int) -> None:
    values, groups = tables.whole(count, columns, most=4), tables.random.integers(0, 3, count)

    def drops(other: int, row: int) -> bool:
        a, b = values[other], values[row]
        return groups[other] == groups[row] and bool((a <= b).all()) and (bool((a < b).any()) or other < row)

    wanted = [row for row in range(count) if not any(drops(other, row) for other in range(count))]
    assert frontier(groups, values).tolist() == wanted
