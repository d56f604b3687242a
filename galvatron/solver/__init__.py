"""One strategy for each layer of a chain, and the stages that it is divided into: the fastest that fit."""

from galvatron.solver.bounds import Bounds, glance, least_s
from galvatron.solver.solve import Choice, InfeasibleError, Solution, TableError, improved, solve, solve_pipeline
from galvatron.solver.tables import Chain, Opening, Pipeline

__all__ = [
    "Bounds",
    "Chain",
    "Choice",
    "InfeasibleError",
    "Opening",
    "Pipeline",
    "Solution",
    "TableError",
    "glance",
    "improved",
    "least_s",
    "solve",
    "solve_pipeline",
]
