"""Passes that choose or take a plan: costs, candidates, pruning, search."""
