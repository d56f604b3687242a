"""What is in a program: its layer classes, the ops of one, all that is known of one op, and its graphs.

Figures are those of the cost model, and follow from the very graph that is looked at. Where a program says what its
classes cost they are read off, and torch is loaded for the figures of single ops alone.
"""
