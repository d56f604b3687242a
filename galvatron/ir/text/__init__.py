"""The text form of programs: `parse_program(print_program(p)) == p` in every form. Files end in `.gir`."""

from galvatron.ir import program as programs
from galvatron.ir.text.parser import parse_graph, parse_program
from galvatron.ir.text.printer import print_graph, print_program, program_text

__all__ = ["parse_graph", "parse_program", "print_graph", "print_program"]

programs.shown_as = program_text
