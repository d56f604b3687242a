"""`use-plan`: a plan that is given takes the place of a search."""

from __future__ import annotations

from dataclasses import dataclass

from galvatron.ir.planned import read_plan, with_plan
from galvatron.ir.program import Form, Program
from galvatron.passes.base import Pass


@dataclass(frozen=True)
class UsePlan(Pass):
    """Puts a program under a plan.

    `plan` is the path of a plan file, or one strategy for all layers such as `pp2/m4/1f1b/dp1-tp2`.
    """

    name = "use-plan"
    needs, leaves = Form.COSTED, Form.PLANNED

    plan: str = ""

    def run(self, program: Program) -> Program:
        return with_plan(program, read_plan(self.plan))
