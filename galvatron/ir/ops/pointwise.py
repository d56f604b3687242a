"""Functions of each element, after broadcasting."""

from __future__ import annotations

from functools import partial

from galvatron.ir.ops import shapes
from galvatron.ir.ops.call import Call, by_line
from galvatron.ir.ops.notation import OpDims
from galvatron.ir.ops.operator import EVERY, Operator, alike


def _prelu(call: Call) -> OpDims:
    """One slope for all, or one for each channel."""
    return by_line(call, "b*, 1 -> b*" if call.shape("weight") in ((), (1,)) else "n c d*, c -> n c d*")


def _infix(sign: str) -> dict[str, str]:
    return dict.fromkeys(("Tensor", "Scalar"), f"self {sign} other")


_pointwise = partial(Operator, shapes=shapes.pointwise)
_of_real = partial(_pointwise, dtype="shared")
_promoted = partial(_pointwise, dtype="promoted")
_arithmetic = partial(_promoted, numbers=True)
_of_bits = partial(_pointwise, dtype="bits")
_choice = partial(_promoted, shapes=shapes.chosen, elements="mixed")
_comparison = partial(Operator, shapes=shapes.pointwise, dtype="bool")
_with_number = partial(_comparison, thresholds=("other",))
_EQUAL, _BELOW, _UP_TO = (0,), (-1, 0), (0, 1)

_WHERE = "torch.where(condition, self, other)"

OPERATORS: dict[str, Operator] = {
    "mul": _arithmetic("~b*, ~b* -> b*", written=_infix("*"), commutes=True, padded=EVERY),
    "div.Tensor": _arithmetic("~b*, b* -> b*", dtype="shared", written={"Tensor": "self / other"}, padded=range(1)),
    "add": _arithmetic(shapes=shapes.added, dims="+b*, +b* -> b*", written=_infix("+"), commutes=True, padded=EVERY),
    "sub": _arithmetic(shapes=shapes.subtracted, dims="+b*, +b* -> b*", written=_infix("-"), padded=EVERY),
    "rsub": _promoted(shapes=shapes.subtracted, dims="+b*, +b* -> b*", written={"Scalar": "other - self"}),
    "lerp.Scalar": _pointwise("+b*, +b* -> b*", written={"Scalar": "self.lerp(end, weight)"}),
    "neg": _promoted("+b* -> b*", written="-self", padded=EVERY),
    "clone": _pointwise(
        "+b* -> b*", written="self.clone(memory_format=)", dtype="same", padded=EVERY, moves="copy", elements="moved"
    ),
    "_to_copy": _pointwise(
        dtype="named", dims="b* -> b*", written="self.to(dtype!)", short="cast", casts=True, padded=EVERY
    ),
    "detach": _pointwise("b* -> b*", written="self.detach()", free=True, casts=True, stops_gradient=True),
    "where.ScalarOther": _choice("b*, b* -> b*", written={"ScalarOther": _WHERE}, pointwise=True),
    "where.ScalarSelf": _choice("b*, b*, b* -> b*", written={"ScalarSelf": _WHERE}, pointwise=True),
    "hardswish": Operator("b* -> b*", written="F.hardswish(self)"),
    "log_sigmoid": Operator("b* -> b*", written="F.logsigmoid(self)"),
    "prelu": Operator(_prelu),
    "fill": Operator("b*, b* -> b*"),
    "copy": Operator("b*, b* -> b*", moves="copy"),
    "complex": _pointwise("+b*, +b* -> b*", written="torch.complex(real, imag)"),
    "real": Operator("+b* -> b*", written="torch.real(self)", shapes=shapes.like_first),
    "imag": Operator("+b* -> b*", written="torch.imag(self)", shapes=shapes.like_first),
    "conj_physical": Operator("+b* -> b*", written="self.conj_physical()", shapes=shapes.like_first),
    "polar": _pointwise("b*, b* -> b*", written="torch.polar(abs, angle)"),
    "log1p": Operator(written="self.log1p()"),
    "square": Operator(written="self.square()"),
    "type_as": Operator(written="self.type_as(other)"),
    "div": _arithmetic(
        written={"Scalar": "self / other", "Tensor_mode": "torch.div(self, other, rounding_mode=)"},
        dtype="",
        padded=range(1),
    ),
    **alike("multiply divide true_divide subtract", Operator(numbers=True, pointwise=True)),
    "pow": _of_real(
        written={
            "Tensor_Scalar": "self**exponent",
            "Tensor_Tensor": "self**exponent",
            "Scalar": "torch.pow(self, exponent)",
        }
    ),
    "abs": _promoted(written="self.abs()"),
    "sign": _pointwise(written="self.sign()"),
    "exp": _of_real(written="self.exp()"),
    "log": _of_real(written="self.log()"),
    "sqrt": _of_real(written="self.sqrt()"),
    "rsqrt": _of_real(written="self.rsqrt()"),
    "reciprocal": _of_real(written="self.reciprocal()"),
    "sin": _of_real(written="self.sin()"),
    "cos": _of_real(written="self.cos()"),
    **alike("tan elu round trunc fmod __xor__ alias", _pointwise()),
    "hardtanh": _pointwise(thresholds=("min_val", "max_val")),
    "threshold": Operator(thresholds=("threshold",)),
    "tanh": _of_real(written="self.tanh()", padded=EVERY),
    "sigmoid": _of_real(written="self.sigmoid()"),
    "erf": _of_real(written="self.erf()"),
    "relu": _of_real(written="F.relu(self)"),
    "gelu": _of_real(written="F.gelu(self, approximate=)", shapes=shapes.bent),
    "silu": _of_real(written="F.silu(self)"),
    "mish": _of_real(written="F.mish(self)"),
    "softplus": _of_real(written="F.softplus(self, beta, threshold)"),
    "leaky_relu": _of_real(written="F.leaky_relu(self, negative_slope)"),
    "where": _choice(written={"self": _WHERE}),
    "where.default": Operator(),
    "masked_fill": _choice(
        written={"Scalar": "self.masked_fill(mask, value)", "Tensor": "self.masked_fill(mask, value)"}, pointwise=True
    ),
    "clamp": _promoted(
        shapes=shapes.clamped, written="self.clamp(min=, max=)", thresholds=("min", "max"), elements="mixed"
    ),
    "clamp_min": _promoted(written="self.clamp_min(min)", thresholds=("min",), elements="mixed"),
    "clamp_max": _promoted(written="self.clamp_max(max)", thresholds=("max",), elements="mixed"),
    "maximum": _promoted(written="torch.maximum(self, other)"),
    "max.other": _promoted(written={"other": "torch.maximum(self, other)"}),
    "min.other": _promoted(written={"other": "torch.minimum(self, other)"}),
    "minimum": _promoted(written="torch.minimum(self, other)"),
    "floor": _pointwise(written="self.floor()"),
    "ceil": _pointwise(written="self.ceil()"),
    "floor_divide": _arithmetic(written="self // other", dtype="", pointwise=True),
    "remainder": _pointwise(written=_infix("%")),
    "bitwise_and": _of_bits(written={"Tensor": "self & other"}, commutes=True),
    "bitwise_or": _of_bits(written={"Tensor": "self | other"}, commutes=True),
    "bitwise_xor": _of_bits(written={"Tensor": "self ^ other"}),
    "bitwise_not": _of_bits(written="~self"),
    "__and__": _of_bits(written={"Tensor": "self & other"}, pointwise=True),
    "__or__": _of_bits(written={"Tensor": "self | other"}, pointwise=True),
    "to": _pointwise(written={"dtype": "self.to(dtype)"}, shapes=shapes.like_first, dtype="named"),
    "contiguous": _pointwise(written="self.contiguous()", moves="copy", elements="moved"),
    "eq": _with_number(written=_infix("=="), beside=_EQUAL),
    "ne": _with_number(written=_infix("!="), beside=_EQUAL),
    "lt": _with_number(written=_infix("<"), beside=_BELOW),
    "le": _with_number(written=_infix("<="), beside=_UP_TO),
    "gt": _with_number(written=_infix(">"), beside=_UP_TO),
    "ge": _with_number(written=_infix(">="), beside=_BELOW),
    "logical_and": _comparison(written="torch.logical_and(self, other)", commutes=True),
    "logical_or": _comparison(written="torch.logical_or(self, other)"),
    "logical_not": _comparison(written="torch.logical_not(self)"),
    **alike("logical_xor isinf", _comparison()),
    **alike("greater less_equal", _with_number(pointwise=True, beside=_UP_TO)),
    **alike("less greater_equal", _with_number(pointwise=True, beside=_BELOW)),
    "not_equal": _with_number(pointwise=True, beside=_EQUAL),
    "isclose": Operator(pointwise=True),
    **alike("absolute negative fix", _pointwise(pointwise=True)),
    **alike("arccos arccosh arcsin arcsinh arctan arctan2 arctanh", _pointwise(pointwise=True)),
    "isnan": _comparison(written="self.isnan()"),
}
