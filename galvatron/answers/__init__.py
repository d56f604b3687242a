"""Answers to what is asked about plans: offline, by the costs that the search minimises."""
