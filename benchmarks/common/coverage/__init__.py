"""The parts of `benchmarks/coverage.py`: which plans a row is tried under, what becomes of it, and the document."""
