"""What passes did to a program, tried with numbers: each form is run before and after, in float64 and in one process.

`widened` takes a program to float64, `values` makes what it is given, `running` runs a flat graph with all gradients,
`simulation` runs the local graph of a class on all ranks of its mesh in lockstep, `comparison` finds the first op of
which a value or a gradient departs. `eager` runs a job beside its `model`, with a table of `differences`. Which of
these are `rounding` is one rule.
"""
