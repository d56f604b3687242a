"""Passes that carry a plan out: local graphs, what stands between them, stages."""
