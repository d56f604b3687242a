"""Pipeline schedules: which stages a pipeline rank holds, and what it does in which order.

A schedule is a small value (`kinds`) that says in which order a rank computes. Where messages stand in it follows
(`messages`), and so does the time that it takes (the cost model plays it). What runs is also what is priced: the
runtime and the cost model both ask here.
"""

from galvatron.schedules.actions import Action, Kind, at_turn, held_over_time
from galvatron.schedules.kinds import PATTERN, SCHEDULES, Schedule, default_schedule
from galvatron.schedules.messages import SENDS_IN_FLIGHT, orders
from galvatron.schedules.paths import held_when_most, paths, way_through

__all__ = [
    "PATTERN",
    "SCHEDULES",
    "SENDS_IN_FLIGHT",
    "Action",
    "Kind",
    "Schedule",
    "at_turn",
    "default_schedule",
    "held_over_time",
    "held_when_most",
    "orders",
    "paths",
    "way_through",
]
