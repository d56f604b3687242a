"""Strategies: what one layer does with each axis of its stage's device group."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from galvatron.errors import StrategyError, did_you_mean
from galvatron.ir.layout import Axis, Mesh

ROLE_NAMES = ("dp", "tp", "tp+sp", "ulysses", "cp", "ep")
SAMPLE_ROLES = frozenset({"dp", "ep"})
"""The roles of axes whose ranks have samples of their own."""

RECOMPUTE = ("none", "full", "selective", "alternate", "attention")

_AXIS = re.compile(r"(dp|tp|ulysses|cp|ep)([0-9]{1,9})(\+sp)?")


_ZERO = {f"zero{level}": level for level in (1, 2, 3)}
_RECOMPUTE = {"recompute": "full", **{f"recompute={kind}": kind for kind in RECOMPUTE if kind != "none"}}


def _require_once(text: str, token: str, what: str, first: bool) -> None:
    if not first:
        raise StrategyError(f"strategy {text!r}: {token!r} is a second {what}")


class AxisRole(NamedTuple):
    """A degree on one mesh axis: `AxisRole("tp+sp", 4)` prints as `tp4+sp`."""

    role: str
    degree: int

    def __str__(self) -> str:
        base, _, suffix = self.role.partition("+")
        return f"{base}{self.degree}{'+' + suffix if suffix else ''}"


@dataclass(frozen=True)
class Strategy:
    """One layer's strategy, written `dp4-tp2+sp-zero3-recompute`, axes from the outermost to the innermost.

    Degrees of one are kept (`dp1-tp2`), so that text round-trips, but make no mesh axis.
    """

    axes: tuple[AxisRole, ...]
    zero: int = 0
    recompute: str = "none"

    @staticmethod
    def parse(text: str) -> Strategy:
        """Reads a strategy.

        Raises:
            StrategyError: an unknown or repeated token; the message names it and suggests the nearest known one.
        """
        axes: list[AxisRole] = []
        zero, recompute = 0, "none"
        for token in text.strip().split("-"):
            if match := _AXIS.fullmatch(token):
                role, degree, sp = match.group(1), int(match.group(2)), match.group(3) or ""
                if sp and role != "tp":
                    raise StrategyError(f"strategy {text!r}: '+sp' goes with tp, not with {role!r}")
                if degree < 1:
                    raise StrategyError(f"strategy {text!r}: the degree of {token!r} must be at least 1")
                if any(a.role.startswith(role) for a in axes):
                    raise StrategyError(f"strategy {text!r}: {role!r} is given twice")
                axes.append(AxisRole(role + sp, degree))
            elif token in _ZERO:
                _require_once(text, token, "ZeRO level", not zero)
                zero = _ZERO[token]
            elif token in _RECOMPUTE:
                _require_once(text, token, "recomputation", recompute == "none")
                recompute = _RECOMPUTE[token]
            else:
                degree = found.group() if (found := re.search("[0-9]{1,9}", token)) else "2"
                known = [f"{role}{degree}" for role in ("dp", "tp", "ulysses", "cp", "ep")]
                known += [*_ZERO, *(kind for kind in _RECOMPUTE if kind != "recompute=full"), f"tp{degree}+sp"]
                raise StrategyError(f"strategy {text!r}: unknown token {token!r}; {did_you_mean(token, known)}")
        return Strategy(tuple(axes), zero, recompute)

    def __str__(self) -> str:
        parts = [str(a) for a in self.axes] or ["dp1"]
        if self.zero:
            parts.append(f"zero{self.zero}")
        if self.recompute != "none":
            parts.append("recompute" if self.recompute == "full" else f"recompute={self.recompute}")
        return "-".join(parts)

    @cached_property
    def devices(self) -> int:
        """The number of devices it runs on: the product of its degrees."""
        return math.prod(a.degree for a in self.axes)

    def degree(self, role: str) -> int:
        """The degree of a role (`tp` also answers for `tp+sp`), 1 when absent."""
        return self._degrees.get(role, 1)

    @cached_property
    def sample_shards(self) -> int:
        """Into how many shards it cuts the samples of a batch."""
        return math.prod(a.degree for a in self.axes if a.role in SAMPLE_ROLES)

    @cached_property
    def _degrees(self) -> dict[str, int]:
        """By role, and by what it is called without `+sp`."""
        return {name: a.degree for a in reversed(self.axes) for name in (a.role, a.role.partition("+")[0])}

    @cached_property
    def mesh(self) -> Mesh:
        """The mesh axes with more than one device, outermost first. What they are called after their roles means
        nothing; the roles are in `roles`."""
        axes: list[Axis] = []
        stride = 1
        for axis in reversed(self.axes):
            if axis.degree > 1:
                axes.append(Axis(axis.role.partition("+")[0], axis.degree, stride))
            stride *= axis.degree
        return tuple(reversed(axes))

    @cached_property
    def keeping(self) -> Strategy | None:
        """What of it decides how parameters are kept, axes and ZeRO level; None if they are whole on every rank."""
        axes = tuple(axis for axis in self.axes if axis.degree > 1)
        return Strategy(axes, self.zero) if axes and (self.zero or self.parameter_shards > 1) else None

    @cached_property
    def parameter_shards(self) -> int:
        """Into how many shards it cuts a parameter at most, without ZeRO."""
        return self.degree("tp") * self.degree("ep")

    @cached_property
    def sequence_pieces(self) -> int:
        """Into how many pieces of one size it cuts a sequence; a folded slice is two."""
        pieces = {"tp+sp": 1, "ulysses": 1, "cp": 2}
        return math.prod(a.degree * pieces[a.role] for a in self.axes if a.role in pieces and a.degree > 1)

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """The role of each mesh axis."""
        return tuple(axis.role for axis in self.axes if axis.degree > 1)


WHOLE = Strategy(())
"""That of what every rank of a stage computes whole."""
