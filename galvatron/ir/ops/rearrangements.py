"""The same elements under other dimensions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from galvatron.ir.ops import shapes
from galvatron.ir.ops.call import Call, DimsFunction
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.operator import EVERY, Operator
from galvatron.ir.ops.views import view_dims


def _view(call: Call) -> OpDims:
    (shape,) = call.operand_shapes()
    return view_dims(shape, call.results[0])


def _permuted(order: Callable[[Call, int], list[int]]) -> DimsFunction:
    """A rule that reorders dimensions: `order` gives the operand's dimension at each result dimension."""

    def rule(call: Call) -> OpDims:
        (shape,) = call.operand_shapes()
        operand = tuple((f"d{i}",) if size != 1 else () for i, size in enumerate(shape))
        result = tuple(operand[i] for i in order(call, len(shape)))
        sizes = {f"d{i}": size for i, size in enumerate(shape) if size != 1}
        return OpDims((operand,), (result,), sizes, sums=frozenset({0}))

    return rule


def _swap(call: Call, rank: int) -> list[int]:
    order = list(range(rank))
    first, second = int(call["dim0"]) % rank, int(call["dim1"]) % rank  # type: ignore[arg-type]  # ints by schema
    order[first], order[second] = order[second], order[first]
    return order


_free = partial(Operator, dtype="same", free=True, padded=EVERY)

OPERATORS: dict[str, Operator] = {
    "view_as_complex": Operator(
        "+b* 2! -> b*", written="torch.view_as_complex(self)", shapes=shapes.pairs_as_complex, reads_memory=True
    ),
    "view_as_real": Operator("+b* -> b* 2!", written="torch.view_as_real(self)", shapes=shapes.complex_as_pairs),
    "view": _free(_view, written="self.view(*size)", shapes=shapes.view, size="size", on_values="reshape"),
    "reshape": _free(_view, written="self.reshape(*shape)", shapes=shapes.view, size="shape"),
    "expand": _free("+b* -> b*", written="self.expand(*size)", shapes=shapes.expand, size="size"),
    "squeeze": _free(
        _view,
        written={"default": "self.squeeze()", "dim": "self.squeeze(dim)", "dims": "self.squeeze(dim)"},
        shapes=shapes.squeeze,
    ),
    "unsqueeze": _free(_view, written="self.unsqueeze(dim)", shapes=shapes.unsqueeze, grows=True),
    "flatten": Operator(
        _view, written={"using_ints": "self.flatten(start_dim, end_dim)"}, padded=EVERY, elements="moved"
    ),
    "unflatten": Operator(
        _view, written={"int": "self.unflatten(dim, sizes)"}, padded=EVERY, factors="sizes", elements="moved"
    ),
    "permute": _free(
        _permuted(lambda call, rank: list(call.dims("dims", rank))),
        written="self.permute(*dims)",
        shapes=shapes.permute,
    ),
    "transpose": _free(_permuted(_swap), written={"int": "self.transpose(dim0, dim1)"}, shapes=shapes.transpose),
    "t": _free(_permuted(lambda call, rank: list(reversed(range(rank)))), written="self.t()", shapes=shapes.in_reverse),
    "numpy_T": Operator(_permuted(lambda call, rank: list(reversed(range(rank)))), padded=EVERY),
    "movedim": Operator(written={"int": "self.movedim(source, destination)"}),
    "_unsafe_view": Operator(shapes=shapes.view, dtype="same", on_values="reshape"),
    "view.dtype": Operator("b* d! -> b* e!", free=True, reads_memory=True),
}
