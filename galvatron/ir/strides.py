"""Ops that read a tensor's memory: values of the IR have no order in memory, so these get one that is in order."""

READS_MEMORY = frozenset({"aten.view_as_complex.default", "aten.view.dtype"})
"""Their first operand is made contiguous."""
