"""One strategy for each layer of a chain, and the stages that it is divided into: the fastest that fit."""

from galvatron.solver.bounds import least_s
from galvatron.solver.solve import Choice, InfeasibleError, Solution, TableError, possible, solve, solve_pipeline
from galvatron.solver.tables import Chain, Opening, Pipeline

__all__ = [
    "Chain",
    "Choice",
    "InfeasibleError",
    "Opening",
    "Pipeline",
    "Solution",
    "TableError",
    "least_s",
    "possible",
    "solve",
    "solve_pipeline",
]
