"""Functions of square matrices, each of a batch by itself."""

from __future__ import annotations

from functools import partial

from galvatron.ir.ops import shapes
from galvatron.ir.ops.call import Call, by_line
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.operator import Operator, alike


def _solution(call: Call) -> OpDims:
    """`linalg.solve`: the columns of the right-hand side are independent, and each system of a batch."""
    matrix, side = call.shape("A"), call.shape("B")
    vectors = len(side) == 1 or (len(side) == len(matrix) - 1 and side == matrix[:-1])
    if vectors:
        return by_line(call, "b* m! k!, b* k! -> b* m!")
    return _triangular_solution(call)


def _triangular_solution(call: Call) -> OpDims:
    """`linalg.solve_triangular`, which takes no vectors."""
    return by_line(call, "b* m! k!, b* k! n -> b* m! n" if call["left"] else "b* m! k!, b* n k! -> b* n m!")


_of_matrix = partial(Operator, "b* m! n! -> b* m! n!")

OPERATORS: dict[str, Operator] = {
    "triu": _of_matrix(written="self.triu(diagonal)", shapes=shapes.like_first),
    "tril": _of_matrix(written="self.tril(diagonal)", shapes=shapes.like_first),
    **alike("linalg_inv linalg_cholesky linalg_matrix_exp", _of_matrix()),
    "linalg_matrix_power": _of_matrix(kept=True),
    "linalg_det": Operator("b* m! n! -> b*"),
    "linalg_slogdet": Operator("b* m! n! -> b*, b*"),
    **alike("linalg_svdvals linalg_eigvalsh", Operator("b* m! n! -> b* k!")),
    "linalg_solve": Operator(_solution),
    "linalg_solve_triangular": Operator(_triangular_solution),
    "linalg_multi_dot": Operator(rounds="tensors", kept=True),
    "chain_matmul": Operator(rounds="matrices", kept=True),
}
