"""Real models: what passes are right about is not called wrong, in any form."""

from __future__ import annotations

import pytest

from galvatron.debugging.passes import outcomes
from galvatron.ir.capture import capture_graph
from galvatron.passes import FRONT_END
from galvatron.passes.pipeline import Pipeline
from tests import models
from tests.marks import some_slow

PASSES = Pipeline.parse(
    f"{','.join(FRONT_END)},annotate-costs{{cluster=a100-80g:1x4}},use-plan{{plan=pp1/m1/1f1b/dp2-tp2}},shard,"
    "redistribute,split-stages"
)


@pytest.mark.parametrize("name", some_slow(["gpt2"], models.FAMILIES))
def test_no_pass_departs(name: str) -> None:
    case = models.hugging_face(name)
    program = capture_graph(case.model, case.batch(4, 0)).program
    found = list(outcomes(program, PASSES))
    assert [(one.pass_, one.kind, one.text) for one in found if one.kind not in ("unchanged", "same")] == []
    assert len(found) == len(PASSES.passes)
