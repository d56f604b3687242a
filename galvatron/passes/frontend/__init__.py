"""Passes over the captured program: one spelling per computation, and layers found in it."""
