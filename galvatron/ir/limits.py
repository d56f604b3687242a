"""How much a file may ask for: every bound on text that may come from a stranger.

Each is far above what a real program needs (one of a thousand unlike layers has 5 MB of text and 3,000 names) and low
enough that reading or refusing a file takes less than a second for each megabyte, or in all if it is smaller, and
never more than a few hundred megabytes of memory.
"""

from __future__ import annotations

FILE_CHARACTERS = 2**24
"""Of a program or a plan."""

HEADER_BYTES = 2**25
"""Of what says where in a file which tensor is: of a quarter of a million of them."""

LINE_CHARACTERS = 2**19
"""Of a line of a program's text: the time and memory of a pattern grow with what it matches."""

LEXEMES = 2**20
"""Words, numbers, strings and punctuation marks of a program's text."""

SHORT_TEXT_LEXEMES = 2**16
LEXEME_CHARACTERS = 2
"""A text has at most `SHORT_TEXT_LEXEMES`, and one more for each `LEXEME_CHARACTERS`: each takes a microsecond. Printed
programs have 2.5 characters or more to each."""

STRING_CHARACTERS = 2**16
"""Of a name or string."""

DIGITS = 320
"""Of a whole number, and of numerator and denominator of a fraction: as many as a float's exponent has."""

NUMBER_BITS = 1064
"""The same in bits."""

NESTING = 100
"""Brackets and signs of an argument that are in each other."""

LIST_DEPTH = 16
LIST_ITEMS = 2**16

RANK = 64
"""Dimensions of a tensor, the most that torch has."""

INTEGERS = 2 * RANK
"""Of a list of whole numbers among the arguments of an operator that gives no list itself: padding has two to each
dimension."""

ROUNDS = 64
"""How often the kernel of one op may go over what it reads (`Operator.rounds`)."""

SIZE = 2**63 - 1
"""Of one dimension."""

EXPRESSION_DEPTH = 32
EXPRESSION_PARTS = 256
"""Numbers, symbols and operations of one expression."""

FUNCTION_PARTS = 32
"""The same of the arguments of a function, such as `Mod` or `Max`: these take time with the square of it."""

EXPONENT = 64

COMPUTE = 6_000
"""Units of arithmetic (`Budget.compute`), each about 0.1 ms, of one text, and one more for each
`COMPUTE_CHARACTERS` that it has."""

COMPUTE_CHARACTERS = 256

REPEATS = 100_000
"""Times that one loop counts, layers that one run of strategies stands for, and layers of a plan."""

EXPANDED_CHARACTERS = 2**24
"""Of all names that loops write out, each counted as `NAME_CHARACTERS` more than it has."""

NAME_CHARACTERS = 64

JSON_DEPTH = 16

TIMELINE_CHARACTERS = 2**26
TIMELINE_EVENTS = 150_000
"""Of a timeline, whose events are read one by one; also of those that are written."""

DEVICES = 2**20
"""Of a cluster or a plan."""

MEASURED = 2**14
"""Rows of one table of what was measured on a device."""

MEASURED_GRID = 2**16
"""Points of the grid of sizes that such rows lie on."""

MESH_AXES = 20
"""As many axes of two devices as `DEVICES` have."""

LEVELS = 8
"""Of the network of a cluster."""

WAYS = 2**10
"""To keep the ties of a program that a search tries in each setting: those of one tie times those of the next."""

SAMPLES = 2**40
"""Of a global batch: sizes of tensors in it are still numbers that a computer counts with."""

PER_ELEMENT = 2.0**40
"""Bytes or FLOP of an update for each byte or element of a parameter."""
