"""The demonstration: a small Llama, real text, four local ranks, and every step of the compiler shown."""

from galvatron.demo.launch import main

__all__ = ["main"]
