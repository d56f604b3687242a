"""What a form promises of a program, and how a program answers that was asked too early."""

from __future__ import annotations

from dataclasses import replace

import pytest

from galvatron.errors import PassError, PlanError
from tests.ir.programs import captured, costed, planned, sharded


def test_parts_of_its_form_are_there() -> None:
    assert captured().required_graph == captured().graph
    assert planned().required_plan == planned().plan
    assert planned().required_cluster == planned().cluster


def test_parts_of_another_form_are_refused_with_its_name() -> None:
    with pytest.raises(PassError, match="a program in form costed has no plan; one in form planned to staged has"):
        _ = costed().required_plan
    with pytest.raises(PassError, match="a program in form costed has no graph; one in form captured has"):
        _ = costed().required_graph


def test_a_program_without_a_cluster_says_how_to_name_one() -> None:
    with pytest.raises(PlanError, match="annotate-costs{cluster="):
        _ = replace(costed(), cluster=None).required_cluster


def test_layers_stand_in_the_groups_in_which_they_run() -> None:
    assert [index for index, _ in planned().layer_groups] == [None]
    assert [index for index, _ in sharded().layer_groups] == [stage.index for stage in sharded().stages]
