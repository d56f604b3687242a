"""One strategy for each layer of a chain, and the stages that it is divided into: the fastest that fit."""

from galvatron.solver.bounds import Bounds, glance, least_bytes, least_s
from galvatron.solver.placed import placed_best
from galvatron.solver.ranks import FEW_ROUNDS, RankBounds, Ranks, rank_bounds
from galvatron.solver.solve import Choice, InfeasibleError, Solution, TableError, improved, solve, solve_pipeline
from galvatron.solver.tables import Chain, Opening, Pipeline, Rates

__all__ = [
    "FEW_ROUNDS",
    "Bounds",
    "Chain",
    "Choice",
    "InfeasibleError",
    "Opening",
    "Pipeline",
    "RankBounds",
    "Ranks",
    "Rates",
    "Solution",
    "TableError",
    "glance",
    "improved",
    "least_bytes",
    "least_s",
    "placed_best",
    "rank_bounds",
    "solve",
    "solve_pipeline",
]
