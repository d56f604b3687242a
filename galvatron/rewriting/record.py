"""What was rewritten, and how much may be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from galvatron.errors import GalvatronError
from galvatron.ir.graph import Op


@dataclass(frozen=True)
class Rewrite:
    """A rule that was applied: its name, and the op that it took the place of, or changed."""

    rule: str
    op: Op


class Rewrites:
    """Keeps what is rewritten, in order, and stops it once there are so many.

    The first N rewrites of a run are those of a run without limit, so that the one after which something is wrong can
    be looked for by halving.

    Args:
        most: so many rewrites are done; None for all.
    """

    def __init__(self, most: int | None = None) -> None:
        if most is not None and most < 0:
            raise GalvatronError(f"there are no {most} rewrites: name a number from 0 on")
        self.done: list[Rewrite] = []
        self._most = most

    @property
    def may_go_on(self) -> bool:
        """Whether one more is allowed."""
        return self._most is None or len(self.done) < self._most

    def counts(self) -> Counter[str]:
        """How often each rule was applied."""
        return Counter(rewrite.rule for rewrite in self.done)
