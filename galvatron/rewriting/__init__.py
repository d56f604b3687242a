"""Rewriting op graphs by tables of rules.

A rule is a `Formula`, such as `x * sigmoid(x)` → `silu(x)` under a condition (`notation` says how to read it), or a
`Function` of an op and of the graph under construction, the `Builder`. Both say what takes the place of an op.
`rewritten` is the only driver: it applies a table until nothing changes, drops what nobody reads, and computes once
what is computed twice.
"""

from galvatron.rewriting.builder import Builder
from galvatron.rewriting.driver import rewritten
from galvatron.rewriting.matcher import Match
from galvatron.rewriting.record import Rewrite, Rewrites
from galvatron.rewriting.rules import Formula, Function, Meanings, RewriteRule
from galvatron.rewriting.sharing import numbered

__all__ = [
    "Builder",
    "Formula",
    "Function",
    "Match",
    "Meanings",
    "Rewrite",
    "RewriteRule",
    "Rewrites",
    "numbered",
    "rewritten",
]
