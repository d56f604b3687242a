"""What passes that rewrite the op graph tell of it."""

from __future__ import annotations

from galvatron.ir.graph import Graph
from galvatron.ir.program import Program
from galvatron.passes.base import PassResult, Remark
from galvatron.rewriting import Rewrites


def rewriting_result(program: Program, before: Graph, after: Graph, rewrites: Rewrites) -> PassResult:
    """A rewritten program, with how often each rule was applied, where, and which ops nobody reads any more.

    Args:
        after: the graph with its values called as before.
    """
    kept = {value.name for op in after.ops for value in op.results}
    at_hand = {value.name for rewrite in rewrites.done for value in rewrite.op.results}
    unread = [
        op for op in before.ops if kept.isdisjoint(names := {v.name for v in op.results}) and at_hand.isdisjoint(names)
    ]
    remarks = [Remark(f"rewritten by {rewrite.rule!r}", rewrite.op, rule=rewrite.rule) for rewrite in rewrites.done]
    remarks += [Remark("gone: nothing reads it any more", op) for op in unread]
    return PassResult(program, {**rewrites.counts(), "gone": len(unread)}, tuple(remarks))
