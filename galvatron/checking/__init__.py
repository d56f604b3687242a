"""`galvatron check`: what there is to know of a model before it is trained, without ranks and without a GPU.

`examine` goes the way from a model to a `report`. What it has to say of a captured program is in the values of `found`,
of which `layers`, `whole` and `plans` each find some; `tables` show them. `program` does the same with a program in a
file: `galvatron.inspection.placements` has where its values are and why.
"""
